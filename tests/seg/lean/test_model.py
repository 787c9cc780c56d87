"""Prediction without torch: the bits of the torch path, in a process that cannot import it and in little memory."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from seg.tiny import tiny_config, tiny_model, write_scan

import ncakern
from ncaseg.budget import resident_bytes
from ncaseg.checkpoint.model import save_model
from ncaseg.cli.main import main
from ncaseg.config import UNetConfig, from_dict
from ncaseg.data.dataset import Volume, load_case
from ncaseg.data.index import Case
from ncaseg.inference.case import answer, predict_large
from ncaseg.inference.files import predict_path
from ncaseg.lean.model import from_torch, load_edge_model, run_member
from ncaseg.lean.tiled import Plan, check_loading, check_scratch, plan_prediction
from ncaseg.models.m3d import M3D

pytestmark = pytest.mark.skipif(ncakern.backends()["cpu"] is not None, reason="the extension is not built")

# An environment without torch and tqdm, in which a limit may be set on the memory. The peak is printed at the end.
WITHOUT_TORCH = """
import resource, sys
limit = int(sys.argv.pop(1))
if limit:
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for name in ("torch", "tqdm"):
    sys.modules[name] = None
from ncaseg.cli import main
code = main(sys.argv[1:])
from ncaseg.budget import peak_bytes
print("peak", peak_bytes())
sys.exit(code)
"""


def run_without_torch(*arguments: str | Path, limit: int = 0) -> tuple[str, int]:
    """Standard output and the peak of the memory in bytes of an `ncaseg` command."""
    command = [sys.executable, "-c", WITHOUT_TORCH, str(limit), *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout, int(result.stdout.split()[-1])


def two_levels(**model):
    """A recipe of two levels and its model."""
    entries = {"channels": 6, "hidden": 8, "kernel_sizes": [5, 3], "steps": [3, 4], "scales": [[2, 2, 2]], **model}
    cfg = from_dict({"name": "two", "model": entries, "data": {"labels": [1]}, "train": {"steps": 1}})
    return cfg, tiny_model(cfg)


def load_volume(path, cfg):
    return load_case(Case(id="scan", image=path, label=None), cfg.data)


def empty_volume(side: int) -> Volume:
    """Zeros that take no memory."""
    image = np.broadcast_to(np.float32(0), (1, side, side, side))
    return Volume("empty", image, None, (side,) * 3, np.eye(4), nib.Nifti1Header(), (1.0,) * 3)


MODELS = [
    {},
    {"norm": "none"},
    {"norm": "instance", "pad": "none"},
    {"pad": "zeros", "out_channels": 1, "scales": [[3, 1, 2]]},
    {"pool": "nearest", "pad": "none", "padding": "circular"},
    {"kernel_sizes": [3], "steps": [4], "scales": []},
    {"perception": "dense", "num_filters": 2, "norm": "none"},
    {"ndim": 2, "scales": [[2, 2, 1]], "norm": "instance"},
]


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_bits_are_those_of_the_torch_path(tmp_path, model):
    cfg, whole = two_levels(**model)
    volume = load_volume(write_scan(tmp_path / "scan.nii", (13, 11, 9)), cfg)
    expected = answer(whole, volume, cfg, 3, 5, with_spread=True)
    found = answer(from_torch(whole, cfg.model), volume, cfg, 3, 5, with_spread=True)
    assert np.array_equal(found.probabilities, expected.probabilities)
    assert np.array_equal(found.variance, expected.variance)
    assert expected.probabilities.std() > 1e-2 and expected.variance.max() > 1e-3


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_larger_volume_has_the_bits_of_a_run_alone(norm):
    cfg, whole = two_levels(norm=norm, channels=16, hidden=64)
    image = np.random.default_rng(0).random((1, 35, 50, 36), np.float32)
    with torch.no_grad():
        expected = whole(torch.from_numpy(image)[None], seed=4, first_sample=3)[0].numpy()
    found = run_member(from_torch(whole, cfg.model), image, seed=4, member=3)
    assert np.array_equal(found, expected) and found.std() > 1e-2


@pytest.mark.parametrize("pool", ["average", "trilinear"])
def test_other_poolings_agree_up_to_rounding(tmp_path, pool):
    cfg, whole = two_levels(pool=pool, norm="none")
    volume = load_volume(write_scan(tmp_path / "scan.nii", (13, 11, 9)), cfg)
    expected, found = (answer(m, volume, cfg, 2, 5).probabilities for m in (whole, from_torch(whole, cfg.model)))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_process_without_torch_writes_the_same_file(tmp_path):
    cfg = tiny_config(size=[10, 12, 8], clip_again=True)
    save_model(tmp_path / "m.safetensors", tiny_model(cfg), cfg)
    scan = write_scan(tmp_path / "scan.nii.gz", affine=np.diag([0.7, -1.0, 2.5, 1.0]))
    predict_path(tmp_path / "m.safetensors", scan, tmp_path / "a.nii.gz", samples=4, seed=2)
    common = (tmp_path / "m.safetensors", scan, "--samples", "4", "--seed", "2", "-o")
    said, _ = run_without_torch("predict", *common, tmp_path / "b.nii.gz")
    assert "torch is not installed: predicting with numpy and the C++ kernel alone" in said
    run_without_torch("predict", *common, tmp_path / "c.nii.gz", "--memory", "1GB", "--no-torch")
    expected = nib.load(tmp_path / "a.nii.gz")
    assert 0 < np.asarray(expected.dataobj).sum() < np.prod(expected.shape)
    for name in ("b.nii.gz", "c.nii.gz"):
        found = nib.load(tmp_path / name)
        assert np.array_equal(np.asarray(found.dataobj), np.asarray(expected.dataobj))
        assert found.header == expected.header


@pytest.mark.parametrize("command", [["ncaseg.edge"], ["ncaseg", "predict", "--memory", "1GB"]], ids=" ".join)
def test_commands_for_little_memory_load_no_torch(tmp_path, command):
    cfg = tiny_config()
    save_model(tmp_path / "m.safetensors", tiny_model(cfg), cfg)
    scan = write_scan(tmp_path / "scan.nii.gz")
    command = [sys.executable, "-X", "importtime", "-m", *command, tmp_path / "m.safetensors", scan]
    result = subprocess.run([*command, "-o", tmp_path / "seg.nii.gz"], capture_output=True, text=True, check=True)
    assert nib.load(tmp_path / "seg.nii.gz").shape == (7, 9, 6)
    imported = {line.split("|")[-1].strip() for line in result.stderr.splitlines() if line.startswith("import time")}
    assert "ncaseg.inference.case" in imported and "torch" not in imported


@pytest.mark.parametrize("fit", ["pad", "resize"])
@pytest.mark.parametrize(("norm", "tolerance"), [("none", 0), ("batch", 1e-5)])
def test_tiles_agree_with_the_whole(tmp_path, norm, tolerance, fit):
    cfg, whole = two_levels(norm=norm, channels=16)
    cfg = dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, size=(40, 20, 24), fit=fit))
    model = from_torch(whole, cfg.model)
    volume = load_volume(write_scan(tmp_path / "scan.nii", (33, 20, 22)), cfg)
    found = answer(model, volume, cfg, 2, 7, with_spread=True)
    labels, variance = found.labels, found.variance
    budget = resident_bytes() + 130 * 2**20
    plan = plan_prediction(model, volume, samples=2, budget_bytes=10 * budget)
    assert plan.tiles is None and str(plan).endswith("at once")
    assert np.array_equal(predict_large(model, volume, cfg, 2, 7, plan)[0], labels)

    # The reserve is large for so small a volume: the rest of the budget is what decides.
    plan = plan_prediction(model, volume, samples=2, budget_bytes=budget + 10**6)
    assert plan.tiles is not None and not plan.tiles[1].is_whole
    assert "in tiles" in str(plan) and "x the work" in str(plan)
    found, spread = predict_large(model, volume, cfg, 2, 7, plan, with_variance=True, scratch=tmp_path)
    assert np.mean(found != labels) <= 10 * tolerance
    np.testing.assert_allclose(spread, variance, atol=tolerance, rtol=0)
    assert variance.max() > 1e-3
    assert [p.name for p in tmp_path.iterdir()] == ["scan.nii"]


def test_budget_that_holds_no_tile_is_a_clear_error(tmp_path):
    cfg, whole = two_levels()
    with pytest.raises(ValueError, match="memory must hold at least one tile with its halo"):
        plan_prediction(from_torch(whole, cfg.model), empty_volume(400), samples=1, budget_bytes=10**6)


def test_folder_without_room_is_named(tmp_path):
    with pytest.raises(OSError, match=r"scratch must be a folder with \d+\.\d\d GB free .* Name another one"):
        check_scratch(Plan(1, 1, (), 10**18), tmp_path)


def test_too_small_an_image_names_level_and_kernel():
    cfg, whole = two_levels()
    with pytest.raises(
        ValueError, match="level 0 has 2 cells on axis X, and kernel 5 with reflect padding needs at least 3"
    ):
        from_torch(whole, cfg.model).sizes((4, 20, 20))


def test_other_models_than_automata_are_refused():
    _, whole = two_levels()
    with pytest.raises(ValueError, match="model.kind must be 'm3d' without torch or with a memory budget; got 'unet'"):
        from_torch(whole, UNetConfig())


def test_slices_cannot_be_tiled():
    cfg, whole = two_levels(ndim=2, scales=[[2, 2, 1]], norm="none")
    with pytest.raises(ValueError, match="memory must hold whole volumes with model.ndim 2"):
        plan_prediction(from_torch(whole, cfg.model), empty_volume(400), samples=1, budget_bytes=10**9)


def test_arrays_that_do_not_fit_the_recipe_are_named(tmp_path):
    cfg, whole = two_levels()
    other, _ = two_levels(hidden=9)
    save_model(tmp_path / "m.safetensors", whole, other)
    with pytest.raises(ValueError, match=r"levels.0.hidden_bias is \[8\], expected \[9\]"):
        load_edge_model(tmp_path / "m.safetensors")


def prostate_model(path: Path) -> Path:
    """M3D-NCA's model for the prostate (two levels, k 7 and 3) with weights that change the state a little."""
    cfg = from_dict(
        {
            "name": "prostate",
            "model": {"kernel_sizes": [7, 3], "steps": [20, 40], "scales": [[4, 4, 4]]},
            "data": {"labels": [1]},
            "train": {"steps": 1},
        }
    )
    model: M3D = tiny_model(cfg)
    with torch.no_grad():
        for level in model.levels:
            level.out_weight *= 0.05
    save_model(path, model, cfg)
    return path


def test_hippocampus_sized_volume_in_less_than_200_megabytes(tmp_path):
    scan = write_scan(tmp_path / "scan.nii.gz", (35, 50, 36))
    target = tmp_path / "seg.nii.gz"
    model = ("m3d-hippocampus-fast", scan, "-o", target, "--samples", "2")
    _, peak = run_without_torch("predict", *model, "--memory", "2GB", limit=2 * 10**9)
    assert nib.load(target).shape == (35, 50, 36)
    assert peak < 200e6, f"{peak / 1e6:.0f} MB"


def test_tiles_keep_to_the_budget_that_the_whole_would_break(tmp_path):
    cfg, whole = two_levels(kernel_sizes=[3], steps=[2], scales=[], norm="none", channels=16, hidden=16)
    save_model(tmp_path / "m.safetensors", whole, cfg)
    scan, target = write_scan(tmp_path / "scan.nii", (112, 112, 112)), tmp_path / "seg.nii"
    common = ("predict", tmp_path / "m.safetensors", scan, "-o", target, "--samples", "3", "--rule", "median", "--png")
    said, peak = run_without_torch(*common, "--memory", "260MB", "--scratch", tmp_path)
    assert "in tiles" in said and peak <= 260e6, f"{peak / 1e6:.0f} MB"
    tiled = np.asarray(nib.load(target).dataobj)
    said, peak = run_without_torch(*common, "--memory", "1GB")
    assert "at once" in said and peak > 300e6, f"{peak / 1e6:.0f} MB"
    assert np.array_equal(np.asarray(nib.load(target).dataobj), tiled) and 0 < tiled.mean() < 1


def test_median_counts_all_members():
    cfg, whole = two_levels(norm="none")
    model, volume = from_torch(whole, cfg.model), empty_volume(200)
    plans = {
        (rule, samples): plan_prediction(model, volume, samples=samples, budget_bytes=10**12, rule=rule).whole_bytes
        for rule in ("mean-logit", "median")
        for samples in (1, 11)
    }
    logits = 4 * cfg.model.out_channels * 200**3
    assert plans["median", 11] - plans["median", 1] == pytest.approx(10 * logits, rel=0.01)
    assert plans["mean-logit", 11] == pytest.approx(plans["mean-logit", 1], rel=0.01)


def test_budget_that_does_not_hold_the_loading_is_refused_before_it(tmp_path):
    cfg, whole = two_levels()
    case = Case(id="scan", image=write_scan(tmp_path / "scan.nii", (20, 20, 20)), label=None)
    check_loading(case, cfg.data, resident_bytes() + 2**25)
    with pytest.raises(ValueError, match=r"memory must hold .*scan\.nii while it is read and normalised, .* Give more"):
        check_loading(case, cfg.data, resident_bytes() + 2**23)


@pytest.mark.slow
def test_prostate_sized_volume_in_less_than_2_gigabytes(tmp_path):
    scan = write_scan(tmp_path / "scan.nii.gz", (320, 320, 24))
    model = prostate_model(tmp_path / "m.safetensors")
    said, peak = run_without_torch(
        "predict", model, scan, "-o", tmp_path / "seg.nii.gz", "--samples", "1", "--memory", "2GB", limit=2 * 10**9
    )
    assert "at once" in said
    assert nib.load(tmp_path / "seg.nii.gz").shape == (320, 320, 24)
    assert peak < 1e9, f"{peak / 1e6:.0f} MB"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scratch", "."], "--scratch needs --memory SIZE"),
        (["--memory", "2G"], "memory must be a positive number with a unit, such as 2GB"),
    ],
)
def test_wrong_options_are_usage_errors(tmp_path, capsys, arguments, message):
    command = ["predict", "m3d-hippocampus-fast", str(tmp_path / "scan.nii"), "-o", str(tmp_path / "out.nii")]
    try:
        code = main([*command, *arguments])
    except SystemExit as stop:  # argparse ends the process itself
        code = stop.code
    assert code == 2
    assert message in capsys.readouterr().err


def test_budget_on_the_command_line_is_used_and_explained(tmp_path, capsys):
    scan = write_scan(tmp_path / "scan.nii.gz", (12, 10, 8))
    command = ["predict", "m3d-hippocampus-fast", str(scan), "-o", str(tmp_path / "out.nii.gz"), "--samples", "1"]
    assert main([*command, "--memory", "100GB"]) == 0
    assert "scan: the whole volume at once needs" in capsys.readouterr().out
    assert main([*command, "--memory", "1MB"]) == 3
    assert "Give more memory" in capsys.readouterr().err
