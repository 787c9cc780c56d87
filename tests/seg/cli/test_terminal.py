"""Terminals that show ASCII alone, readers that go away, disks that are full, and the exit codes of half-done work."""

import os
import resource
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
import torch
from seg.tiny import tiny_config, tiny_model, write_scan

from ncaseg.checkpoint.model import save_model
from ncaseg.cli.main import main
from ncaseg.data.phantom import write_phantoms


def run(*arguments):
    return main([str(argument) for argument in arguments])


def start(*arguments, **options):
    path = os.pathsep.join(p for p in sys.path if p)
    env = {**os.environ, "PYTHONPATH": path, **options.pop("env", {})}
    command = [sys.executable, "-m", "ncaseg", *map(str, arguments)]
    return subprocess.run(command, text=True, env=env, check=False, **{"stderr": subprocess.PIPE, **options})


def test_names_that_an_ascii_terminal_cannot_show(model, tmp_path):
    scan = write_scan(tmp_path / "bäuch.nii.gz")
    out = tmp_path / "ö.nii.gz"
    done = start(
        "predict", model, scan, "-o", out, "--no-torch", env={"PYTHONIOENCODING": "ascii"}, stdout=subprocess.PIPE
    )
    assert done.returncode == 0 and out.exists()
    assert "wrote 1 segmentation to" in done.stdout and r"\xf6.nii.gz" in done.stdout and done.stderr == ""


def test_a_reader_that_goes_away_does_not_end_the_work(model, tmp_path):
    for name in "ab":
        write_scan(tmp_path / "in" / f"{name}.nii.gz")
    reader, writer = os.pipe()
    os.close(reader)
    done = start(
        "predict", model, tmp_path / "in", "-o", tmp_path / "out", "--no-torch", "--memory", "4GB", stdout=writer
    )
    os.close(writer)
    assert done.returncode == 0 and "roken pipe" not in done.stderr
    assert len(list((tmp_path / "out").iterdir())) == 2


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_behind_standard_output_is_an_error_of_the_environment(model, tmp_path):
    with open("/dev/full", "w") as full:
        done = start(
            "predict", model, write_scan(tmp_path / "s.nii"), "-o", tmp_path / "o.nii", "--no-torch", stdout=full
        )
    assert done.returncode == 4 and "No space left on device" in done.stderr and "Traceback" not in done.stderr


def test_a_device_is_not_replaced(model, tmp_path, capsys):
    data = write_phantoms(tmp_path / "d", 2, size=(12, 12, 12))
    for option in ("--csv", "--json"):
        assert run("evaluate", model, "--data", data, "--samples", 1, option, "/dev/full") == 3
        assert "/dev/full must be a file" in capsys.readouterr().err
    assert not os.path.isfile("/dev/full")


def damage(folder, name="phantom_001"):
    path = folder / "imagesTr" / f"{name}.nii.gz"
    path.write_bytes(path.read_bytes()[:-20])


def test_evaluate_scores_the_rest_and_exits_with_3(model, tmp_path, capsys):
    data = write_phantoms(tmp_path / "d", 3, size=(12, 12, 12))
    damage(data)
    options = (
        "--data",
        data,
        "--samples",
        2,
        "--compare",
        1,
        "--json",
        tmp_path / "s.json",
        "--csv",
        tmp_path / "s.csv",
    )
    assert run("evaluate", model, *options) == 3
    told = capsys.readouterr()
    assert "phantom_000" in told.out and "2 cases, ensemble of 2" in told.out
    assert "1 of 3 cases failed, the others are done" in told.err and "phantom_001.nii.gz must be" in told.err
    assert len((tmp_path / "s.csv").read_text().splitlines()) == 3
    assert '"failed"' in (tmp_path / "s.json").read_text()
    for name in ("phantom_000", "phantom_002"):
        damage(data, name)
    assert run("evaluate", model, "--data", data) == 3
    assert "3 of 3 cases failed: " in capsys.readouterr().err


def test_qc_measures_the_rest_and_exits_with_3(model, tmp_path, capsys):
    data = write_phantoms(tmp_path / "d", 3, size=(12, 12, 12))
    damage(data)
    arguments = ("qc", model, data / "imagesTr", "-o", tmp_path / "qc.csv", "--threshold", 1000)
    assert run(*arguments) == 3
    told = capsys.readouterr()
    assert "phantom_002" in told.out and "phantom_001.nii.gz must be" in told.err
    assert len((tmp_path / "qc.csv").read_text().splitlines()) == 3


def test_qc_makes_missing_pictures_again(model, tmp_path):
    data = write_phantoms(tmp_path / "d", 1, size=(12, 12, 12))
    maps = tmp_path / "maps"
    arguments = (
        "qc",
        model,
        data / "imagesTr",
        "-o",
        tmp_path / "qc.csv",
        "--threshold",
        1000,
        "--maps",
        maps,
        "--png",
    )
    assert run(*arguments) == 0
    names = sorted(path.name for path in maps.iterdir())
    assert len(names) == 3
    (maps / "phantom_000_overlay.png").unlink()
    assert run(*arguments) == 0
    assert sorted(path.name for path in maps.iterdir()) == names


def test_predict_says_what_is_done_and_what_failed(model, tmp_path, capsys):
    data = write_phantoms(tmp_path / "d", 3, size=(12, 12, 12))
    damage(data)
    assert run("predict", model, data / "imagesTr", "-o", tmp_path / "out") == 3
    told = capsys.readouterr()
    assert "wrote 2 segmentations" in told.out and "1 failed" in told.out and "phantom_001.nii.gz" in told.err


def test_words_on_reading_reach_a_finished_model(model, tmp_path, capsys):
    data = write_phantoms(tmp_path / "d", 2, size=(12, 12, 12))
    for path in (data / "labelsTr").iterdir():
        label = nib.load(path)
        nib.save(nib.Nifti1Image(np.asarray(label.dataobj) * np.uint8(5), label.affine), path)
    assert run("evaluate", model, "--data", data, "--samples", 1) == 3
    assert "data.label_map" in capsys.readouterr().err
    assert run("evaluate", model, "--data", data, "--samples", 1, "data.label_map=5:1, 10:2") == 0
    assert run("evaluate", model, "--data", data, "data.size=[3, 3, 3]") == 2
    assert "a trained model takes only data.label_map" in capsys.readouterr().err


def test_empty_pairs_are_said_to_be_empty(tmp_path, capsys):
    cfg = tiny_config()
    model = tiny_model(cfg)
    with torch.no_grad():
        for level in model.levels:
            level.out_weight.zero_()  # logits of 0: nothing is foreground
    save_model(tmp_path / "m.safetensors", model, cfg)
    data = write_phantoms(tmp_path / "d", 3, size=(12, 12, 12))
    path = data / "labelsTr" / "phantom_001.nii.gz"
    label = nib.load(path)
    nib.save(nib.Nifti1Image(np.zeros(label.shape, np.uint8), label.affine), path)
    for empty, words in (("one", "counted as 1"), ("zero", "counted as 0"), ("skip", "left out")):
        assert run("evaluate", tmp_path / "m.safetensors", "--data", data, "--samples", 1, "--empty", empty) == 0
        said = f"foreground; empty in prediction and label in 1 of 3 cases, {words}: phantom_001"
        assert said in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["predict", "evaluate", "qc"])
def test_a_disk_without_room_leaves_what_was_there(model, tmp_path, kind):
    """Files may grow to 100 bytes only, which the system reports as it does a full disk."""
    data = write_phantoms(tmp_path / "d", 2, size=(12, 12, 12))
    out = tmp_path / "out"
    out.mkdir()
    arguments = {
        "predict": ("predict", model, data / "imagesTr" / "phantom_000.nii.gz", "-o", out / "s.nii"),
        "evaluate": ("evaluate", model, "--data", data, "--samples", 1, "--json", out / "s.json"),
        "qc": ("qc", model, data / "imagesTr", "-o", out / "s.csv", "--threshold", 9),
    }[kind]
    target = arguments[arguments.index("--json" if kind == "evaluate" else "-o") + 1]
    if kind != "qc":
        target.write_text("before")

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))

    done = start(*arguments, stdout=subprocess.DEVNULL, preexec_fn=limit)
    assert done.returncode == 4 and "Traceback" not in done.stderr
    assert "File too large" in done.stderr and str(out) in done.stderr
    left = {path.name: path.read_text() for path in out.iterdir()}
    assert left == ({} if kind == "qc" else {target.name: "before"})


@pytest.mark.parametrize("closed", [1, 2])
def test_streams_may_be_closed_from_the_start(model, tmp_path, closed):
    scan, out = write_scan(tmp_path / "s.nii"), tmp_path / "o.nii"
    arguments = ("predict", model, scan, "-o", out, "--no-torch")
    done = start(*arguments, stderr=None, preexec_fn=lambda: os.close(closed))
    assert done.returncode == 0 and out.exists()


def test_names_that_are_no_text(model, tmp_path):
    """Bytes of another encoding in a file name: everything is written, and escaped where it must be text."""
    data = write_phantoms(tmp_path / "d", 2, size=(12, 12, 12))
    strange = os.fsdecode("b\xe4uch.nii.gz".encode("latin-1"))
    for kind in ("imagesTr", "labelsTr"):
        (data / kind / "phantom_000.nii.gz").rename(data / kind / strange)
    (data / "dataset.json").unlink()
    options = ("--samples", 1, "--json", tmp_path / "s.json", "--csv", tmp_path / "s.csv")
    assert run("evaluate", model, "--data", data, *options) == 0
    assert run("qc", model, data / "imagesTr", "-o", tmp_path / "qc.csv", "--threshold", 1000) == 0
    assert r"b\udce4uch" in (tmp_path / "s.csv").read_text() and r"b\udce4uch" in (tmp_path / "qc.csv").read_text()
    assert run("predict", model, data / "imagesTr", "-o", tmp_path / "out", "--png") == 0
    assert (tmp_path / "out" / strange).exists()
