"""The loop: what it draws, that it learns, and that a killed run continues bit for bit."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
import torch
from seg.tiny import task_of

from ncaseg import config
from ncaseg.checkpoint.model import load_model, load_state, save_model
from ncaseg.data.dataset import CaseStore
from ncaseg.data.index import find_cases
from ncaseg.data.phantom import write_phantoms
from ncaseg.data.split import Split, load_split, save_split
from ncaseg.evaluation.cases import score_cases
from ncaseg.evaluation.result import METRICS
from ncaseg.models import build_model
from ncaseg.streams import FIRE, stream
from ncaseg.training import batches, loop
from ncaseg.training.batches import load_batch, load_sample
from ncaseg.training.logs import read_rows
from ncaseg.training.loop import State
from ncaseg.training.losses import dice_bce
from ncaseg.training.tasks.base import Outcome
from ncaseg.training.tasks.segmentation import Segmentation

TINY = [
    "model.channels=4",
    "model.hidden=8",
    "model.steps=[4]",
    "train.steps=10",
    "train.checkpoint_every=5",
    "train.validate_every=0",
    "data.validation_fraction=0.25",
]


def tiny(*overrides):
    return config.load_recipe("demo", [*TINY, *overrides])


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    return write_phantoms(tmp_path_factory.mktemp("phantoms"), 4, seed=0, size=(12, 12, 12))


def same_state(a, b):
    """Whether two nested structures are equal bit for bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same_state(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same_state(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def rows_without_time(run):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read_rows(run / "log.jsonl")]


def test_run_folder_holds_everything(data, tmp_path):
    cfg = tiny("train.steps=3", "train.validate_every=2")
    assert loop.train(cfg, data, tmp_path / "run") == tmp_path / "run" / "model.safetensors"
    names = [".lock", "log.csv", "log.jsonl", "model.safetensors", "recipe.toml", "split.json", "state.pt"]
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == names
    assert config.load_recipe(tmp_path / "run" / "recipe.toml") == cfg
    rows = read_rows(tmp_path / "run" / "log.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert [row["epoch"] for row in rows] == [0, 0, 1]  # three training cases, two per step
    assert [row["val_dice"] is None for row in rows] == [True, False, False]
    assert tuple(rows[0]) == loop.COLUMNS
    model, loaded, metadata = load_model(tmp_path / "run" / "model.safetensors")
    assert loaded == cfg and metadata["step"] == "3"
    assert metadata["split_sha256"] == load_split(tmp_path / "run" / "split.json").sha256
    assert same_state(dict(model.state_dict()), dict(load_state(tmp_path / "run" / "state.pt")["model"]))


KILLED = """
import os, signal, sys
from ncaseg import config
from ncaseg.training import loop
real = loop.draw_batches
def kill_at_step_7(ids, cfg, step):
    if step == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(ids, cfg, step)
loop.draw_batches = kill_at_step_7
loop.train(config.load_recipe(sys.argv[1]), sys.argv[2], sys.argv[3])
"""


TWO_LEVELS = ["model.kernel_sizes=[3, 3]", "model.steps=[2, 2]", "model.scales=[[2, 2, 2]]", "train.duplication=2"]
RICH = [
    *("train.ema_decay=0.9", "train.ema_start=2", "augment.flip=[0.5, 0.5, 0.5]", "augment.affine=0.7"),
    *("augment.noise=0.5", "augment.gamma=0.5", "train.validate_every=3"),
]


@pytest.mark.parametrize("more", [[], TWO_LEVELS, RICH], ids=["one-level", "two-levels", "average-and-augmentation"])
def test_killed_run_continues_bit_for_bit(data, tmp_path, more):
    cfg = tiny("train.seed=3", *more)
    loop.train(cfg, data, tmp_path / "whole")

    (tmp_path / "r.toml").write_text(config.to_toml(cfg))
    arguments = [str(tmp_path / "r.toml"), str(data), str(tmp_path / "killed")]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-c", KILLED, *arguments]
    child = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert child.returncode == -signal.SIGKILL, child.stderr.decode()
    assert load_state(tmp_path / "killed" / "state.pt")["step"] == 5
    assert len(read_rows(tmp_path / "killed" / "log.jsonl")) == 7

    loop.train(cfg, data, tmp_path / "killed")
    states = [load_state(tmp_path / name / "state.pt") for name in ("whole", "killed")]
    assert states[0]["step"] == 10 and same_state(*states)
    assert rows_without_time(tmp_path / "whole") == rows_without_time(tmp_path / "killed")
    weights = [dict(load_model(tmp_path / name / "model.safetensors")[0].state_dict()) for name in ("whole", "killed")]
    assert same_state(*weights)


def test_run_killed_before_its_first_checkpoint_starts_again(data, tmp_path):
    cfg = tiny("train.steps=2")
    loop.train(cfg, data, tmp_path / "whole")
    loop.train(cfg, data, tmp_path / "cut")
    for name in ("state.pt", "model.safetensors"):
        (tmp_path / "cut" / name).unlink()
    loop.train(cfg, data, tmp_path / "cut")
    assert rows_without_time(tmp_path / "whole") == rows_without_time(tmp_path / "cut")


def test_finished_run_is_left_alone(data, tmp_path):
    cfg = tiny("train.steps=2")
    model = loop.train(cfg, data, tmp_path / "run")
    before = model.read_bytes(), (tmp_path / "run" / "log.jsonl").read_text()
    assert loop.train(cfg, data, tmp_path / "run") == model
    assert (model.read_bytes(), (tmp_path / "run" / "log.jsonl").read_text()) == before


def test_global_generator_neither_matters_nor_moves(data, tmp_path):
    cfg = tiny("train.steps=2")
    torch.manual_seed(1)
    before = torch.get_rng_state()
    loop.train(cfg, data, tmp_path / "a")
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    loop.train(cfg, data, tmp_path / "b")
    assert rows_without_time(tmp_path / "a") == rows_without_time(tmp_path / "b")


def test_another_seed_is_another_run(data, tmp_path):
    loop.train(tiny("train.steps=2"), data, tmp_path / "a")
    loop.train(tiny("train.steps=2", "train.seed=1"), data, tmp_path / "b")
    assert rows_without_time(tmp_path / "a") != rows_without_time(tmp_path / "b")


def test_another_recipe_is_refused_with_the_difference(data, tmp_path):
    loop.train(tiny("train.steps=1"), data, tmp_path)
    with pytest.raises(ValueError, match=r"another recipe.*train\.lr: 0\.0032 -> 0\.1"):
        loop.train(tiny("train.steps=1", "train.lr=0.1"), data, tmp_path)
    with pytest.raises(FileExistsError, match="holds a run"):
        loop.train(tiny("train.steps=1"), data, tmp_path, resume=False)


@pytest.mark.parametrize("name", ["taken", "taken/run"])
def test_a_file_where_the_folder_should_be_is_named(data, tmp_path, name):
    (tmp_path / "taken").write_bytes(b"kept")
    with pytest.raises(ValueError, match=r"must be a folder, or not exist yet; .*taken is a file"):
        loop.train(tiny("train.steps=1"), data, tmp_path / name)
    assert (tmp_path / "taken").read_bytes() == b"kept"


def test_state_of_another_split_is_refused(data, tmp_path):
    loop.train(tiny("train.steps=1"), data, tmp_path)
    state = load_state(tmp_path / "state.pt")
    torch.save(state | {"split_sha256": "0"}, tmp_path / "state.pt")
    with pytest.raises(ValueError, match="belongs to another split"):
        loop.train(tiny("train.steps=1"), data, tmp_path)


def test_training_lowers_the_loss_and_finds_the_body(data, tmp_path):
    cfg = tiny("train.steps=60", "train.validate_every=60", "train.lr=0.02", "model.hidden=16")
    loop.train(cfg, data, tmp_path)
    rows = read_rows(tmp_path / "log.jsonl")
    assert sum(row["loss"] for row in rows[-5:]) / 5 < 0.5 * rows[0]["loss"]
    assert rows[-1]["val_dice"] > 0.7


def test_first_loss_is_that_of_probability_one_half(data, tmp_path):
    cfg = tiny("train.steps=1", "train.accumulate=1")
    loop.train(cfg, data, tmp_path)
    split = load_split(tmp_path / "split.json")
    (case,) = loop.draw_batches(split.train, cfg.train, 0)[0]
    label = CaseStore(find_cases(data), cfg.data)[case].label
    foreground, cells = int((label > 0).sum()), label.size
    dice = 1 - (foreground + 1) / (cells / 2 + foreground + 1)
    assert read_rows(tmp_path / "log.jsonl")[0]["loss"] == pytest.approx(dice + math.log(2), rel=1e-5)


def test_accumulated_gradient_is_the_mean_over_single_volumes(data):
    cfg = tiny()
    torch.manual_seed(0)
    model = loop.build_model(cfg.model)
    torch.nn.init.normal_(model.levels[0].out_weight, std=0.1)
    volumes = CaseStore(find_cases(data), cfg.data)
    ids = ("phantom_000", "phantom_001")
    loss, learned, _ = Segmentation(cfg, model).accumulate(volumes, [(i,) for i in ids], step=4)
    got = [p.grad.clone() for p in model.parameters()]

    model.zero_grad()
    losses = []
    for number, case in enumerate(ids):
        image, target = load_batch(volumes, (case,), cfg, 4, number)
        losses.append(dice_bce(model(image, seed=stream(cfg.train.seed, FIRE, 4, number)), target))
    (sum(losses) / 2).backward()
    assert learned and loss == pytest.approx(sum(x.item() for x in losses) / 2, rel=1e-6)
    for a, p in zip(got, model.parameters(), strict=True):
        torch.testing.assert_close(a, p.grad, rtol=1e-4, atol=1e-7)


def test_batch_without_foreground_takes_no_step(data, tmp_path, monkeypatch):
    def encode_nothing(label, labels, out_channels):
        return np.zeros((out_channels, *label.shape), np.float32)

    monkeypatch.setattr(batches, "encode_label", encode_nothing)
    loop.train(tiny("train.steps=2", "train.skip_empty=true"), data, tmp_path)
    state = load_state(tmp_path / "state.pt")
    assert (state["step"], state["updates"]) == (2, 0) and not state["optimizer"]["state"]
    assert [row["lr"] for row in read_rows(tmp_path / "log.jsonl")] == [3.2e-3] * 2


def test_divergence_before_the_first_checkpoint_saves_nothing(data, tmp_path):
    with pytest.raises(FloatingPointError, match=r"stopped at step \d+: loss .*, gradient norm .*, lr .*no good state"):
        loop.train(tiny("train.lr=1e30"), data, tmp_path)
    assert not list(tmp_path.glob("*.pt")) and not (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize(("every", "kept"), [(3, 3), (1, 4)], ids=["the-last", "the-one-before"])
def test_divergence_keeps_the_last_state_that_a_finite_step_followed(data, tmp_path, monkeypatch, every, kept):
    """Weights of step 5 give no finite loss, whether or not they have been saved."""
    real = Segmentation.batch_loss

    def diverging(self, image, target, step, number):
        loss, parts = real(self, image, target, step, number)
        return (loss * torch.nan if step == 5 else loss), parts

    cfg = tiny(f"train.checkpoint_every={every}")
    with monkeypatch.context() as patch:
        patch.setattr(Segmentation, "batch_loss", diverging)
        with pytest.raises(FloatingPointError, match=rf"stopped at step 5: .* of step {kept}, is in .*state.pt"):
            loop.train(cfg, data, tmp_path / "run")
    assert load_state(tmp_path / "run" / "state.pt")["step"] == kept
    loop.train(cfg, data, tmp_path / "run")
    loop.train(cfg, data, tmp_path / "whole")
    states = [load_state(tmp_path / name / "state.pt") for name in ("whole", "run")]
    assert same_state(*states)


def test_a_run_that_goes_on_with_other_files_says_so(data, tmp_path, capsys):
    folder = shutil.copytree(data, tmp_path / "data")
    loop.train(tiny("train.steps=2"), folder, tmp_path / "run")
    loop.train(tiny("train.steps=2"), shutil.copytree(folder, tmp_path / "moved"), tmp_path / "run")
    assert "began with" not in capsys.readouterr().err
    other = write_phantoms(tmp_path / "other", 4, seed=1, size=(12, 12, 12))
    loop.train(tiny("train.steps=2"), other, tmp_path / "run")
    assert "images are not the files that this run began with, e.g. phantom_000" in capsys.readouterr().err


def test_a_model_without_its_state_is_not_replaced(data, tmp_path):
    loop.train(tiny("train.steps=2"), data, tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "state.pt").unlink()
    with pytest.raises(ValueError, match=r"model.safetensors has no state.pt beside it"):
        loop.train(tiny("train.steps=2"), data, tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("damage", ["missing", "older", "damaged"])
def test_a_model_that_does_not_belong_to_the_state_is_written_again(data, tmp_path, damage):
    """A run killed between the two files, or a result that was deleted."""
    loop.train(tiny("train.steps=2"), data, tmp_path)
    path = tmp_path / "model.safetensors"
    before = dict(load_model(path)[0].state_dict())
    if damage == "missing":
        path.unlink()
    elif damage == "damaged":
        path.write_bytes(path.read_bytes()[:-9])
    else:
        _, cfg, _ = load_model(path)
        save_model(path, build_model(cfg.model, cfg.cdal), cfg, {"step": "1"})
    loop.train(tiny("train.steps=2"), data, tmp_path)
    model, _, metadata = load_model(path)
    assert metadata["step"] == "2" and same_state(dict(model.state_dict()), before)


def test_validation_labels_are_not_read_by_training(data, tmp_path):
    folder = write_phantoms(tmp_path / "p", 4, seed=0, size=(12, 12, 12))
    loop.train(tiny("train.steps=1"), folder, tmp_path / "a")
    split = load_split(tmp_path / "a" / "split.json")
    loop.train(tiny("train.steps=4"), folder, tmp_path / "b")
    for case in split.validation:
        path = folder / "labelsTr" / f"{case}.nii.gz"
        label = nib.load(path)
        nib.save(nib.Nifti1Image(2 - np.asarray(label.dataobj), label.affine), path)
    loop.train(tiny("train.steps=4"), folder, tmp_path / "c")
    assert load_split(tmp_path / "c" / "split.json") == split
    models = [load_model(tmp_path / run / "model.safetensors")[0].state_dict() for run in "bc"]
    assert all(torch.equal(value, models[1][name]) for name, value in models[0].items())


def test_folder_pairs_train_too(data, tmp_path):
    cfg = tiny("train.steps=1")
    loop.train(cfg, None, tmp_path / "a", images=data / "imagesTr", labels=data / "labelsTr")
    loop.train(cfg, data, tmp_path / "b")
    assert rows_without_time(tmp_path / "a") == rows_without_time(tmp_path / "b")


def test_volume_too_small_for_a_level_is_named_before_training(data, tmp_path):
    two = ["model.kernel_sizes=[7, 3]", "model.steps=[2, 2]", "model.scales=[[2, 2, 4]]"]
    with pytest.raises(ValueError, match="case phantom_000: image is too small: level 0 has 3 cells on axis Z"):
        loop.train(tiny(*two), data, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_data_that_do_not_fit_the_run_are_named(data, tmp_path):
    loop.train(tiny("train.steps=1"), data, tmp_path / "run")
    fewer = write_phantoms(tmp_path / "fewer", 2, seed=0, size=(12, 12, 12))
    with pytest.raises(ValueError, match="split.json names 2 cases that the data do not hold"):
        loop.train(tiny("train.steps=1"), fewer, tmp_path / "run")
    with pytest.raises(ValueError, match="4 images have no label, e.g. phantom_000"):
        loop.train(tiny(), None, tmp_path / "other", images=data / "imagesTr")


def test_images_that_the_given_split_leaves_out_need_no_label(data, tmp_path):
    """A split of three of the four cases; the label of the fourth is not there."""
    shutil.copytree(data / "imagesTr", tmp_path / "data" / "imagesTr")
    shutil.copytree(data / "labelsTr", tmp_path / "data" / "labelsTr")
    (tmp_path / "data" / "labelsTr" / "phantom_003.nii.gz").unlink()
    with pytest.raises(ValueError, match="1 images have no label, e.g. phantom_003.*or a split.json in the folder"):
        loop.train(tiny("train.steps=1"), tmp_path / "data", tmp_path / "none")
    assert not (tmp_path / "none" / "split.json").exists()
    given = Split(("phantom_000", "phantom_002"), ("phantom_001",), 0.25, 0)
    (tmp_path / "run").mkdir()
    save_split(tmp_path / "run" / "split.json", given)
    loop.train(tiny("train.steps=1"), tmp_path / "data", tmp_path / "run")
    assert load_split(tmp_path / "run" / "split.json") == given
    (tmp_path / "wrong").mkdir()
    save_split(tmp_path / "wrong" / "split.json", Split(("phantom_000",), ("phantom_003",), 0.25, 0))
    with pytest.raises(ValueError, match="1 images have no label, e.g. phantom_003"):
        loop.train(tiny("train.steps=1"), tmp_path / "data", tmp_path / "wrong")


def test_boxes_count_in_the_check_of_sizes(data):
    """Three levels fit whole volumes of 12 cells, but not boxes of 4."""
    flat = ["model.kernel_sizes=[3, 3, 3]", "model.steps=[1, 1, 1]", "model.scales=[[2, 2, 2], [2, 2, 2]]"]
    sizes = {"a": (12, 12, 12)}
    loop.check_sizes(sizes, task_of(tiny(*flat, "data.crop=[8, 8, 8]")))
    with pytest.raises(ValueError, match="case a: image is too small: level 0 has 1 cells on axis Y"):
        loop.check_sizes(sizes, task_of(tiny(*flat, "data.crop=[0, 4, 0]")))


def test_sizes_that_do_not_stack_are_named(tmp_path):
    folder = write_phantoms(tmp_path / "p", 2, size=(12, 12, 12))
    write_phantoms(tmp_path / "q", 2, size=(12, 12, 13))
    for kind in ("imagesTr", "labelsTr"):
        (tmp_path / "q" / kind / "phantom_001.nii.gz").rename(folder / kind / "phantom_001.nii.gz")
    with pytest.raises(ValueError, match="train.batch_size 2 needs volumes of one size"):
        loop.train(tiny("train.batch_size=2", "data.validation_fraction=0"), folder, tmp_path / "run")


def test_volumes_of_two_sizes_stack_when_padded(tmp_path):
    folder = write_phantoms(tmp_path / "p", 2, size=(12, 12, 12))
    write_phantoms(tmp_path / "q", 2, size=(12, 12, 13))
    for kind in ("imagesTr", "labelsTr"):
        (tmp_path / "q" / kind / "phantom_001.nii.gz").rename(folder / kind / "phantom_001.nii.gz")
    cfg = tiny("train.batch_size=1", "data.size=[14, 14, 14]", "train.validate_every=1", "data.validation_fraction=0.5")
    loop.train(cfg, folder, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])["val_dice"] is not None


def test_every_case_is_drawn_once_per_epoch_and_the_rest_is_kept():
    cfg = tiny("train.batch_size=2", "train.accumulate=2").train
    ids = tuple("abcdefghij")  # ten cases, four per step
    for epoch in range(3):
        steps = [loop.draw_batches(ids, cfg, 3 * epoch + i) for i in range(3)]
        assert [[len(batch) for batch in step] for step in steps] == [[2, 2], [2, 2], [2]]
        assert sorted(case for step in steps for batch in step for case in batch) == list(ids)
    assert loop.draw_batches(ids, cfg, 0) != loop.draw_batches(ids, cfg, 3)
    assert loop.draw_batches(ids, cfg, 4) == loop.draw_batches(ids, cfg, 4)


def test_average_is_the_running_mean_of_the_weights(data, tmp_path, monkeypatch):
    seen = []
    real = loop.is_averaged

    def record(*arguments):
        seen.append({name: p.detach().clone() for name, p in current.model.named_parameters()})
        return real(*arguments)

    class current:
        model = None

    def build(*parts):
        current.model = build_model(*parts)
        return current.model

    build_model = loop.build_model
    monkeypatch.setattr(loop, "build_model", build)
    monkeypatch.setattr(loop, "is_averaged", record)
    cfg = tiny("train.steps=5", "train.ema_decay=0.75", "train.ema_start=2", "train.lr=0.02")
    loop.train(cfg, data, tmp_path)
    kept, _, metadata = load_model(tmp_path / "model.safetensors")
    last = load_state(tmp_path / "state.pt")["model"]
    assert metadata["weights"] == "average" and len(seen) == 5
    for name, parameter in kept.named_parameters():
        third, fourth, fifth = (weights[name] for weights in seen[2:])
        expected = 0.75 * (0.75 * third + 0.25 * fourth) + 0.25 * fifth
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-5, atol=1e-7)
        assert torch.equal(last[name], fifth)
    assert not torch.equal(kept.levels[0].out_weight, last["levels.0.out_weight"])


def test_average_may_move_once_per_epoch():
    cfg = tiny("train.ema_decay=0.9", "train.ema_interval=epoch").train
    assert [step for step in range(1, 8) if loop.is_averaged(cfg, State(step, step), per_epoch=3)] == [3, 6]
    late = tiny("train.ema_decay=0.9", "train.ema_start=4").train
    assert [step for step in range(1, 8) if loop.is_averaged(late, State(step, step), per_epoch=3)] == [5, 6, 7]
    assert loop.is_averaged(cfg, State(3, 2, 1), per_epoch=3) and not loop.is_averaged(cfg, State(3, 2, 2), per_epoch=3)


def test_average_takes_an_epoch_whose_last_batch_is_skipped(data, tmp_path, monkeypatch):
    weights, real, is_killed = {}, Segmentation.step, False

    def step(task, volumes, batches, number, rate):
        nonlocal is_killed
        if number == 3 and not is_killed:
            is_killed = True
            raise KeyboardInterrupt
        if number in (1, 3, 4, 5):  # the last of two epochs, and all of the third
            return Outcome(1.0, 0.0, learned=False)
        outcome = real(task, volumes, batches, number, rate)
        weights[number] = {name: p.detach().clone() for name, p in task.model.named_parameters()}
        return outcome

    monkeypatch.setattr(Segmentation, "step", step)
    cfg = tiny("train.steps=6", "train.ema_decay=0.75", "train.ema_interval=epoch", "train.checkpoint_every=1")
    with pytest.raises(KeyboardInterrupt):
        loop.train(cfg, data, tmp_path)
    loop.train(cfg, data, tmp_path)
    kept, _, metadata = load_model(tmp_path / "model.safetensors")
    assert metadata["weights"] == "average" and sorted(weights) == [0, 2]
    for name, parameter in kept.named_parameters():
        torch.testing.assert_close(parameter.detach(), 0.75 * weights[0][name] + 0.25 * weights[2][name])
    assert not torch.equal(weights[0]["levels.0.out_weight"], weights[2]["levels.0.out_weight"])


def test_average_without_content_leaves_the_last_weights(data, tmp_path):
    loop.train(tiny("train.steps=2", "train.ema_decay=0.9", "train.ema_start=5"), data, tmp_path / "a")
    loop.train(tiny("train.steps=2"), data, tmp_path / "b")
    a, b = (load_model(tmp_path / name / "model.safetensors") for name in "ab")
    assert a[2]["weights"] == "last" and same_state(dict(a[0].state_dict()), dict(b[0].state_dict()))


def test_augmentation_is_a_function_of_seed_step_and_place(data):
    cfg = tiny("augment.affine=1", "augment.noise=1", "train.batch_size=2")
    volumes = CaseStore(find_cases(data), cfg.data)

    def image(step, place, cfg=cfg):
        return load_sample(volumes, "phantom_000", cfg, step, place)[0]

    plain = torch.from_numpy(volumes["phantom_000"].image)
    others = [plain, image(3, 1), image(4, 0), image(3, 0, tiny("augment.affine=1", "augment.noise=1", "train.seed=1"))]
    assert torch.equal(image(3, 0), image(3, 0)) and not any(torch.equal(image(3, 0), other) for other in others)
    batch, _ = load_batch(volumes, ("phantom_000",) * 2, cfg, 3, 1)
    assert torch.equal(batch[0], image(3, 2)) and torch.equal(batch[1], image(3, 3))
    assert torch.equal(plain, torch.from_numpy(volumes["phantom_000"].image))  # the stored volume is as it was


def test_padding_is_neither_moved_nor_made_noisy(data):
    cfg = tiny("augment.flip=[1, 1, 1]", "augment.noise=1", "data.size=[14, 13, 16]")
    volumes = CaseStore(find_cases(data), cfg.data)
    image, target = load_sample(volumes, "phantom_000", cfg, 0, 0)
    assert image.shape == target.shape == (1, 14, 13, 16)
    for tensor in (image, target):
        assert not tensor[:, 12:].any() and not tensor[:, :, 12:].any() and not tensor[:, :, :, 12:].any()
        assert tensor[:, :12, :12, :12].any()
    label = torch.from_numpy(volumes["phantom_000"].label > 0).float()
    assert torch.equal(target[0, :12, :12, :12], label.flip(0, 1, 2))


def test_duplication_repeats_each_case_in_its_batch(data):
    cfg = tiny("train.batch_size=2", "train.duplication=3")
    volumes = CaseStore(find_cases(data), cfg.data)
    image, target = load_batch(volumes, ("phantom_000", "phantom_001"), cfg, 0, 0)
    assert image.shape == target.shape == (6, 1, 12, 12, 12)
    assert torch.equal(image[0], image[2]) and torch.equal(target[3], target[5]) and not torch.equal(image[2], image[3])


def test_streams_differ_by_purpose_step_and_seed():
    cfg, other = tiny().train, tiny("train.seed=1").train
    keys = [(p, i) for p in range(6) for i in range(20)]
    seeds = {stream(c.seed, *key) for c in (cfg, other) for key in keys}
    assert len(seeds) == 240 and all(0 <= seed < 2**63 for seed in seeds)


def test_learning_rates_by_hand():
    exponential = tiny("train.schedule=exponential", "train.lr=0.5", "train.lr_decay=0.9").train
    assert loop.learning_rate(exponential, 2, 100) == pytest.approx(0.5 * 0.81)
    cosine = tiny("train.schedule=cosine", "train.lr=2.0", "train.lr_final=0.1").train
    assert [loop.learning_rate(cosine, u, 8) for u in (0, 4, 8)] == pytest.approx([2.0, 1.1, 0.2])
    assert loop.learning_rate(tiny("train.schedule=constant", "train.lr=0.3").train, 7, 8) == 0.3


def test_learning_rate_may_follow_epochs():
    cfg = tiny("train.schedule=exponential", "train.lr=0.5", "train.lr_decay=0.9", "train.lr_interval=epoch").train
    assert loop.learning_rate(cfg, updates=17, total=100, epoch=3, per_epoch=5) == pytest.approx(0.5 * 0.9**3)
    cosine = tiny("train.schedule=cosine", "train.lr=2.0", "train.lr_final=0.1", "train.lr_interval=epoch").train
    assert loop.learning_rate(cosine, updates=17, total=40, epoch=4, per_epoch=5) == pytest.approx(1.1)


@pytest.mark.parametrize(("interval", "powers"), [("step", [0, 1, 2, 3]), ("epoch", [0, 0, 1, 1])])
def test_rate_decays_per_step_unless_asked_otherwise(data, tmp_path, interval, powers):
    decay = ["train.schedule=exponential", "train.lr=0.1", "train.lr_decay=0.5", f"train.lr_interval={interval}"]
    loop.train(tiny("train.steps=4", *decay), data, tmp_path)  # three training cases, two per step
    assert [row["lr"] for row in read_rows(tmp_path / "log.jsonl")] == pytest.approx([0.1 * 0.5**p for p in powers])


@pytest.mark.parametrize("loss", ["m3d_upstream", "dice_focal"])
def test_every_loss_trains(data, tmp_path, loss):
    loop.train(tiny("train.steps=8", f"train.loss={loss}", "train.lr=0.02"), data, tmp_path)
    rows = read_rows(tmp_path / "log.jsonl")
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_automata_compute_in_float32_whatever_the_precision(data, tmp_path):
    for precision in ("float32", "bfloat16"):
        loop.train(tiny("train.steps=3", f"train.precision={precision}"), data, tmp_path / precision)
    assert rows_without_time(tmp_path / "float32") == rows_without_time(tmp_path / "bfloat16")


def test_a_channel_per_class_is_trained_and_scored(data, tmp_path):
    cfg = tiny("train.steps=60", "train.lr=0.02", "model.out_channels=2", "model.hidden=16", "train.validate_every=60")
    path = loop.train(cfg, data, tmp_path)
    assert read_rows(tmp_path / "log.jsonl")[-1]["val_dice"] > 0.5
    model, loaded, _ = load_model(path)
    scores = score_cases(model, loaded, find_cases(data), name="x", samples=2)
    assert set(scores["classes"]) == {"1", "2"}
    assert all(set(entry) == {*METRICS, "precision", "sensitivity"} for entry in scores["classes"].values())
    assert scores["classes"]["1"]["hard_dice"] > 0.3  # chance finds less than 0.1


def test_slices_train_and_whole_volumes_are_judged(data, tmp_path):
    flat = ["model.ndim=2", "model.norm=none", "model.kernel_sizes=[3, 3]", "model.steps=[3, 3]"]
    more = ["model.scales=[[2, 2, 1]]", "train.slices=5", "train.batch_size=2", "data.size=[16, 16, 0]"]
    cfg = tiny(*flat, *more, "data.fit=resize", "train.validate_every=10")
    volumes = CaseStore(find_cases(data), cfg.data)
    image, target = load_batch(volumes, ("phantom_000", "phantom_001"), cfg, 0, 0)
    assert image.shape == target.shape == (10, 1, 16, 16, 1)
    whole = volumes["phantom_001"].image[0]
    depths = [next(z for z in range(12) if np.array_equal(whole[..., z], s[0, ..., 0])) for s in image[5:].numpy()]
    assert len(set(depths)) == 5
    loop.train(cfg, data, tmp_path)
    assert read_rows(tmp_path / "log.jsonl")[-1]["val_dice"] is not None


def test_foreground_crops_are_part_of_the_run(data, tmp_path):
    two = [*TWO_LEVELS, "train.steps=2"]
    loop.train(tiny(*two), data, tmp_path / "a")
    loop.train(tiny(*two, "train.foreground_crops=1"), data, tmp_path / "b")
    assert rows_without_time(tmp_path / "a") != rows_without_time(tmp_path / "b")


def test_epochs_count_steps_when_steps_are_not_given(data, tmp_path):
    loop.train(tiny("train.steps=0", "train.epochs=2"), data, tmp_path)  # three cases, two per step: two steps each
    assert load_state(tmp_path / "state.pt")["step"] == 4


@pytest.mark.skipif(torch.cuda.is_available(), reason="names the absence of a CUDA device")
def test_missing_device_is_named(data, tmp_path):
    with pytest.raises(ValueError, match="train.device is 'cuda'.*sees no CUDA device"):
        loop.train(tiny("train.device=cuda"), data, tmp_path)
