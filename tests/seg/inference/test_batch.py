"""Folders with bad files, outputs that cannot be, companions that are missing, models that have diverged."""

import os

import numpy as np
import pytest
import torch
from PIL import Image
from seg.tiny import tiny_config, tiny_model, write_scan

from ncaseg.batch import BatchError
from ncaseg.inference.files import predict_path
from ncaseg.lean.model import from_torch

CFG = tiny_config()


@pytest.fixture(scope="module")
def loaded():
    return tiny_model(CFG), CFG


@pytest.mark.parametrize("bad", ["a", "b", "c"])
def test_one_bad_file_does_not_end_a_folder(tmp_path, loaded, bad):
    for name in "abc":
        write_scan(tmp_path / "in" / f"{name}.nii.gz")
    (tmp_path / "in" / f"{bad}.nii.gz").write_bytes(b"damaged")
    good = [tmp_path / "out" / f"{name}.nii.gz" for name in "abc" if name != bad]
    with pytest.raises(
        BatchError, match=rf"1 of 3 cases failed, the others are done: .*{bad}\.nii\.gz must be"
    ) as caught:
        predict_path(loaded, tmp_path / "in", tmp_path / "out")
    assert caught.value.done == good and all(path.exists() for path in good)
    with pytest.raises(BatchError, match="1 of 1 cases failed"):
        predict_path(loaded, tmp_path / "in", tmp_path / "out")


def test_a_volume_that_does_not_fit_is_named(tmp_path, loaded):
    write_scan(tmp_path / "in" / "flat.nii.gz", (7, 9, 1))
    write_scan(tmp_path / "in" / "good.nii.gz")
    with pytest.raises(BatchError, match=r"in/flat\.nii\.gz: image is too small"):
        predict_path(loaded, tmp_path / "in", tmp_path / "out")
    with pytest.raises(ValueError, match=r"in/flat\.nii\.gz: image is too small"):
        predict_path(loaded, tmp_path / "in" / "flat.nii.gz", tmp_path / "o.nii.gz")


@pytest.mark.parametrize("name", ["x.png", "x.mha", "x.nrrd", "x.nii.bz2", "x.txt"])
def test_suffixes_that_are_not_written_are_refused_before_the_work(tmp_path, loaded, name, monkeypatch):
    scan = write_scan(tmp_path / "scan.nii.gz")
    monkeypatch.setattr("ncaseg.inference.files.load_case", lambda *_: pytest.fail("the work began"))
    with pytest.raises(ValueError, match=rf"out must end in \.nii\.gz or \.nii for scan\.nii\.gz, .*{name}"):
        predict_path(loaded, scan, tmp_path / name)
    picture = tmp_path / "p.jpg"
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(picture)
    if name != "x.png":
        with pytest.raises(ValueError, match=r"out must end in \.png for p\.jpg"):
            predict_path(loaded, picture, tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.jpg", "scan.nii.gz"]


@pytest.mark.parametrize("name", ["x.NII.GZ", "x.Nii", "new_folder"])
def test_names_in_upper_case_and_folders(tmp_path, loaded, name):
    scan = write_scan(tmp_path / "scan.nii.gz")
    (written,) = predict_path(loaded, scan, tmp_path / name)
    assert written.is_file() and written.name == (name if "." in name else "scan.nii.gz")
    (tmp_path / "made.v2").mkdir()
    assert predict_path(loaded, scan, tmp_path / "made.v2")[0].parent.name == "made.v2"


def test_outputs_that_cannot_be_written_are_told_before_the_work(tmp_path, loaded, monkeypatch):
    scan = write_scan(tmp_path / "in" / "scan.nii.gz")
    monkeypatch.setattr("ncaseg.inference.files.load_case", lambda *_: pytest.fail("the work began"))
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="must lie in a folder; .*file is a file"):
        predict_path(loaded, scan.parent, tmp_path / "file" / "out")
    (tmp_path / "out" / "scan.nii.gz").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"out/scan\.nii\.gz must be a file, or not exist yet; it is a folder"):
        predict_path(
            loaded, scan, tmp_path / "out" / "scan.nii.gz" / ".." / "scan.nii.gz" / ".." / ".." / "out", overwrite=True
        )


def test_missing_companions_are_made_again_and_segmentations_kept(tmp_path, loaded):
    for name in "ab":
        write_scan(tmp_path / "in" / f"{name}.nii.gz")
    out = tmp_path / "out"
    predict_path(loaded, tmp_path / "in", out)
    kept = (out / "a.nii.gz").read_bytes()
    assert len(predict_path(loaded, tmp_path / "in", out, png=True)) == 2
    names = sorted(f"{name}{end}" for name in "ab" for end in (".nii.gz", "_overlay.png", "_variance.png"))
    assert sorted(path.name for path in out.iterdir()) == names
    before = (out / "b_overlay.png").read_bytes()
    (out / "b_overlay.png").unlink()
    (out / "b.nii.gz").write_bytes(b"corrected by hand")
    assert predict_path(loaded, tmp_path / "in", out, png=True) == [out / "b.nii.gz"]
    assert (out / "b_overlay.png").read_bytes() == before
    assert (out / "b.nii.gz").read_bytes() == b"corrected by hand" and (out / "a.nii.gz").read_bytes() == kept
    assert predict_path(loaded, tmp_path / "in", out, png=True) == []


@pytest.mark.parametrize("lean", [False, True])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_a_diverged_model_predicts_nothing(tmp_path, lean, value):
    model = tiny_model(CFG)
    with torch.no_grad():
        model.levels[0].out_weight[1, 0] = value
    scan = write_scan(tmp_path / "scan.nii.gz")
    ready = (from_torch(model, CFG.model) if lean else model, CFG)
    with pytest.raises(FloatingPointError, match=r"scan\.nii\.gz: member 0 of the ensemble must be finite; \d+ of"):
        predict_path(ready, scan, tmp_path / "o.nii.gz")
    assert not (tmp_path / "o.nii.gz").exists()


def test_stale_files_of_a_killed_prediction_are_removed(tmp_path, loaded):
    scan = write_scan(tmp_path / "in" / "scan.nii.gz")
    stale = tmp_path / "out" / ".tmp-0123456789abcdef-scan.nii.gz"
    stale.parent.mkdir()
    stale.write_bytes(b"half")
    os.utime(stale, (0, 0))
    predict_path(loaded, scan.parent, tmp_path / "out")
    assert [path.name for path in stale.parent.iterdir()] == ["scan.nii.gz"]
