"""A batch goes on after a bad case; bounds on what a recipe asks for."""

from pathlib import Path

import pytest

from ncaseg import config
from ncaseg.batch import Batch, BatchError, about
from ncaseg.limits import check_limits


def run(texts):
    batch, done = Batch(), []
    for text in texts:
        with batch.case(text, Path(f"{text}.nii")):
            done.append(1 / int(text))
    batch.finish(len(texts), done)
    return done


def test_the_rest_is_done_and_what_failed_is_told():
    assert run(["1", "2"]) == [1.0, 0.5]
    with pytest.raises(BatchError, match=r"1 of 3 cases failed, the others are done: x.nii: invalid literal") as caught:
        run(["1", "x", "2"])
    assert caught.value.done == [1.0, 0.5] and list(caught.value.failed) == ["x"]
    with pytest.raises(BatchError, match="2 of 2 cases failed: "):
        run(["x", "y"])


def test_our_own_mistakes_end_a_batch():
    with pytest.raises(ZeroDivisionError):
        run(["1", "0", "2"])


def test_errors_name_their_file_once():
    for error in (ValueError("too small"), FloatingPointError("nan"), MemoryError("no room")):
        with pytest.raises(type(error), match=f"a/scan.nii: {error}"), about(Path("a/scan.nii")):
            raise error
    with pytest.raises(ValueError, match="^scan.nii is flat$"), about(Path("a/scan.nii")):
        raise ValueError("scan.nii is flat")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.steps=[1000000000]", "model.steps must be at most 100,000; got 1,000,000,000"),
        ("predict.samples=1000000", "predict.samples must be at most 10,000; got 1,000,000"),
        ("data.size=[512, 512, 512]", "data.size must be at most 100,000,000; got 134,217,728"),
        ("model.hidden=10000000", "model.hidden must be at most 100,000"),
    ],
)
def test_recipes_are_bounded_unless_asked(override, words, monkeypatch):
    with pytest.raises(ValueError, match=f"{words}.*NCASEG_UNBOUNDED=1 lifts this bound"):
        config.load_recipe("demo", [override])
    monkeypatch.setenv("NCASEG_UNBOUNDED", "1")
    config.load_recipe("demo", [override])


def test_recipes_of_the_package_are_far_below():
    for name in config.recipe_names():
        check_limits(config.to_dict(config.load_recipe(name)))


@pytest.mark.parametrize("value", ["inf", "nan", "-inf"])
def test_numbers_of_a_recipe_are_finite(value):
    with pytest.raises(ValueError, match="train.lr must be finite"):
        config.load_recipe("demo", [f"train.lr={value}"])


def test_a_damaged_recipe_is_named(tmp_path):
    path = tmp_path / "r.toml"
    for content in (b"", b"name = ", b'name = "x"\n[model]\nsteps = 3\n', b'name = "\xe4"', b"a = " + b"[" * 10_000):
        path.write_bytes(content)
        with pytest.raises((ValueError, TypeError), match=r"r\.toml"):
            config.load_recipe(path)
    path.write_bytes(b"\xef\xbb\xbf" + config.to_toml(config.load_recipe("demo")).encode())
    assert config.load_recipe(path) == config.load_recipe("demo")


def test_words_on_reading_may_be_given_to_a_finished_model():
    cfg = config.load_recipe("demo")
    changed = config.with_reading(cfg, ["data.label_map=5:1", "data.white=4095", "data.drop_channels=true"])
    assert (changed.data.label_map, changed.data.white, changed.data.drop_channels) == ("5:1", 4095.0, True)
    assert config.with_reading(cfg, []) == cfg
    with pytest.raises(ValueError, match="a trained model takes only data.label_map, .*; got 'data.size'"):
        config.with_reading(cfg, ["data.size=[1, 2, 3]"])
