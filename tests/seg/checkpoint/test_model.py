"""Checkpoints: the model comes back with its recipe, and every file that does not fit is explained."""

import json
import resource

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import ncakern
from ncaseg import config, zoo
from ncaseg.checkpoint.model import add_metadata, load_model, load_state, save_model, save_state
from ncaseg.lean.model import load_edge_model
from ncaseg.models import build_model
from ncaseg.papers.runs import significant_differences

CFG = config.load_recipe("demo", ["model.hidden=8", "model.channels=4", "model.steps=[2]"])


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = build_model(CFG.model)
    torch.nn.init.normal_(model.levels[0].out_weight)
    return model


@pytest.fixture
def path(tmp_path, model):
    save_model(tmp_path / "m.safetensors", model, CFG, {"step": "7"})
    return tmp_path / "m.safetensors"


def test_model_recipe_and_metadata_come_back(path, model):
    loaded, cfg, metadata = load_model(path)
    assert cfg == CFG
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    image = torch.rand(1, 1, 6, 6, 6)
    assert torch.equal(loaded(image, seed=0), model(image, seed=0))
    assert metadata["step"] == "7" and metadata["format_version"] == "1"
    assert metadata["ncakern_version"] == ncakern.__version__
    assert json.loads(metadata["labels"]) == [[1, 2]]  # one channel: the merged foreground


def test_labels_of_separate_channels_are_listed(tmp_path):
    cfg = config.load_recipe("demo", ["model.out_channels=2"])
    save_model(tmp_path / "m", build_model(cfg.model), cfg)
    assert json.loads(load_model(tmp_path / "m")[2]["labels"]) == [[1], [2]]


def test_no_temporary_file_stays(path):
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def rewrite(path, tensors, **metadata):
    save_file(tensors, path, metadata=load_model(path)[2] | metadata)


def test_missing_and_surplus_tensors_are_named(path):
    tensors = load_file(path)
    tensors["levels.0.other"] = tensors.pop("levels.0.out_weight")
    rewrite(path, tensors)
    words = r"missing tensors \['levels.0.out_weight'\], surplus tensors \['levels.0.other'\]"
    with pytest.raises(ValueError, match=words):
        load_model(path)


def test_wrong_shape_is_named(path):
    tensors = load_file(path)
    tensors["levels.0.out_weight"] = torch.zeros(4, 9)
    rewrite(path, tensors)
    with pytest.raises(ValueError, match=r"levels.0.out_weight is \[4, 9\], expected \[4, 8\]"):
        load_model(path)


def test_other_format_version_is_named(path):
    rewrite(path, load_file(path), format_version="2", ncakern_version="9.9")
    with pytest.raises(ValueError, match="format_version 2.*reads 1.*written by ncakern 9.9"):
        load_model(path)


def test_foreign_files_are_named(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(ValueError, match="must be a checkpoint of ncaseg"):
        load_model(tmp_path / "foreign.safetensors")
    (tmp_path / "text").write_text("hello, this is not a model")
    with pytest.raises(ValueError, match="must be a safetensors file"):
        load_model(tmp_path / "text")
    with pytest.raises(ValueError, match="must be the state of a run; it is not a file"):
        load_state(tmp_path / "text")


def test_state_that_would_run_code_is_refused(tmp_path):
    torch.save({"step": tmp_path}, tmp_path / "s.pt")  # a path is an object, which unpickling would have to build
    with pytest.raises(ValueError, match="must be the state of a run; it cannot be read"):
        load_state(tmp_path / "s.pt")


def test_unknown_name_lists_the_zoo(tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, "names", lambda: ["first", "second"])
    with pytest.raises(ValueError, match="first, second.*got 'thrid'"):
        load_model("thrid")
    with pytest.raises(ValueError, match="known: first, second"):
        zoo.path("third")


def test_zoo_entries_load_and_hold_the_recipe_of_their_name():
    for name in zoo.names():
        recipe = load_model(name)[1]
        assert recipe.name == name
        assert not significant_differences(recipe, config.load_recipe(recipe.name))


def test_state_comes_back(tmp_path):
    state = {"step": 3, "model": {"w": torch.arange(3.0)}, "optimizer": {"param_groups": [{"lr": 0.1}]}}
    save_state(tmp_path / "s.pt", state)
    loaded = load_state(tmp_path / "s.pt")
    assert loaded["step"] == 3 and torch.equal(loaded["model"]["w"], torch.arange(3.0))
    assert loaded["optimizer"] == state["optimizer"]


def test_added_metadata_leave_the_rest_alone(path, model):
    before = load_model(path)[2]
    add_metadata(path, {"quality": "0.2", "step": "8"})
    loaded, cfg, after = load_model(path)
    assert after == before | {"quality": "0.2", "step": "8"}
    assert cfg == CFG
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)


def flips(content, count, first=0):
    """Copies with one bit turned, at places drawn from a fixed seed."""
    rng = np.random.default_rng(0)
    for place in rng.integers(first, len(content), count):
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(rng.integers(8))
        yield bytes(damaged)


def test_no_flipped_bit_gives_another_model(path, model):
    content, expected = path.read_bytes(), model.state_dict()
    for damaged in flips(content, 150):
        path.write_bytes(damaged)
        try:
            loaded, cfg, _ = load_model(path)
        except ValueError as error:
            assert path.name in str(error)
            continue
        assert cfg == CFG and all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())


def test_no_flipped_bit_gives_another_state(tmp_path):
    state = {"step": 7, "model": {"w": torch.arange(200.0)}, "optimizer": {"lr": 0.25, "moments": [torch.ones(50)]}}
    path = tmp_path / "state.pt"
    save_state(path, state)
    for damaged in flips(path.read_bytes(), 150):
        path.write_bytes(damaged)
        try:
            loaded = load_state(path)
        except ValueError as error:
            assert path.name in str(error)
            continue
        assert loaded["step"] == 7 and loaded["optimizer"]["lr"] == 0.25
        assert torch.equal(loaded["model"]["w"], state["model"]["w"])
        assert torch.equal(loaded["optimizer"]["moments"][0], torch.ones(50))


def test_files_without_a_checksum_are_read(path, model):
    rewrite(path, load_file(path))
    assert torch.equal(
        load_model(path)[0].state_dict()["levels.0.out_weight"], model.state_dict()["levels.0.out_weight"]
    )


def test_weights_that_are_not_finite_are_named(path):
    tensors = load_file(path)
    tensors["levels.0.out_weight"][1, 0] = float("nan")
    rewrite(path, tensors)
    with pytest.raises(
        ValueError, match=r"m.safetensors holds weights that are NaN or infinite, in levels.0.out_weight"
    ):
        load_model(path)
    with pytest.raises(ValueError, match="NaN or infinite"):
        load_edge_model(path)


def test_tensors_of_another_type_are_named(path):
    tensors = load_file(path)
    tensors["levels.0.out_weight"] = tensors["levels.0.out_weight"].to(torch.int32)
    rewrite(path, tensors)
    with pytest.raises(ValueError, match=r"must hold float32 tensors; it holds levels.0.out_weight \(int32\)"):
        load_model(path)


@pytest.mark.parametrize("load", [load_model, load_edge_model])
def test_a_recipe_that_asks_for_gigabytes_is_refused_before_they_are_taken(path, load):
    recipe = config.to_dict(CFG)
    recipe["model"]["hidden"] = 99_999
    rewrite(path, load_file(path), recipe=json.dumps(recipe))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"wrong shapes \['levels.0.hidden_"):
        load(path)
    recipe["model"]["hidden"] = 10_000_000
    rewrite_unchecked(path, json.dumps(recipe))
    with pytest.raises(ValueError, match=r"m.safetensors must hold a recipe.*model.hidden must be at most 100,000"):
        load(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB


def rewrite_unchecked(path, recipe):
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file(load_file(path), path, metadata=metadata | {"recipe": recipe})


@pytest.mark.parametrize("recipe", ["", "{", "[]", "{}", '{"name": "x", "train": {"stepz": 1}}', "[" * 100_000])
def test_a_recipe_that_cannot_be_read_is_named(path, recipe):
    rewrite(path, load_file(path), recipe=recipe)
    with pytest.raises(ValueError, match=r"m.safetensors must hold a recipe that can be read"):
        load_model(path)


def test_a_file_named_like_a_zoo_entry_is_said_to_win(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    name = zoo.names()[0]
    path.rename(tmp_path / name)
    assert load_model(name)[1] == CFG
    assert f"note: {name} is a file here; it is used, not the zoo entry of that name" in capsys.readouterr().err
