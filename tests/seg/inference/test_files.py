"""Ensemble and threshold against members run by hand; NIfTI geometry kept to the last bit of the header."""

import dataclasses

import nibabel as nib
import numpy as np
import pytest
import torch
from seg.tiny import tiny_config, tiny_model, write_scan

from ncaseg.checkpoint.model import save_model
from ncaseg.config import PredictConfig, load_recipe
from ncaseg.data.dataset import load_case
from ncaseg.data.formats.nifti import Nifti
from ncaseg.data.index import Case
from ncaseg.inference import case as case_module
from ncaseg.inference.case import answer, labels_of, predict_large
from ncaseg.inference.files import predict_path, save_labels
from ncaseg.lean.model import from_torch
from ncaseg.lean.tiled import Plan


@pytest.fixture
def volume(tmp_path):
    return load_scan(write_scan(tmp_path / "scan.nii.gz"), tiny_config())


def load_scan(path, cfg):
    return load_case(Case(id="scan", image=path, label=None), cfg.data)


def member(model, volume, seed, index):
    """One member alone, in a batch of one, with the norm the model was trained with."""
    with torch.no_grad():
        return model(torch.from_numpy(volume.image)[None], seed=seed, first_sample=index)[0]


def test_members_in_one_call_equal_members_one_by_one(volume):
    cfg = tiny_config()
    model = tiny_model(cfg)
    logits = torch.stack([member(model, volume, 5, i) for i in range(4)])
    assert logits.std(0).max() > 1e-2  # the members differ, so the comparison means something
    found = answer(model, volume, cfg, 4, 5, with_spread=True)
    probabilities, variance = found.probabilities, found.variance
    np.testing.assert_allclose(probabilities, torch.sigmoid(logits.mean(0)).numpy(), atol=1e-5)
    np.testing.assert_allclose(variance, torch.sigmoid(logits).var(0, unbiased=False)[0].numpy(), atol=1e-5)


@pytest.mark.parametrize("budget", [None, 1])
def test_flips_show_members_the_mirrored_image_in_turn(volume, monkeypatch, budget):
    cfg = tiny_config()
    cfg = dataclasses.replace(cfg, predict=dataclasses.replace(cfg.predict, flips="xz"))
    model = tiny_model(cfg)
    if budget is not None:
        monkeypatch.setattr(case_module, "MEMBER_BUDGET_BYTES", budget)
    logits = []
    for index, axes in enumerate([(), (1,), (3,), (1, 3), ()]):
        seen = dataclasses.replace(volume, image=np.ascontiguousarray(np.flip(volume.image, axes)))
        logits.append(member(model, seen, 5, index).flip(axes))
    expected = torch.sigmoid(torch.stack(logits).mean(0)).numpy()
    assert np.abs(expected - answer(model, volume, tiny_config(), 5, 5).probabilities).max() > 1e-3
    for network in (model, from_torch(model, cfg.model)):
        found = answer(network, volume, cfg, 5, 5).probabilities
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_wrong_flips_are_named(volume):
    for wrong in ("xx", "w"):
        with pytest.raises(ValueError, match="predict.flips must name some of the axes xyz, each once"):
            PredictConfig(flips=wrong)
    with pytest.raises(ValueError, match="predict.flips must be empty where masks are sampled"):
        load_recipe("medsegdiff-small", ["predict.flips=xy"])
    cfg = dataclasses.replace(tiny_config(), predict=PredictConfig(flips="x"))
    plan = Plan(2, 1, tiles=())
    with pytest.raises(ValueError, match="flips must be none for a volume in tiles"):
        predict_large(from_torch(tiny_model(cfg), cfg.model), volume, cfg, 1, 0, plan)


def test_turns_of_members_give_the_same_result(volume, monkeypatch):
    cfg = tiny_config()
    whole = answer(tiny_model(cfg), volume, cfg, 5, 0).probabilities
    monkeypatch.setattr(case_module, "MEMBER_BUDGET_BYTES", 1)
    turns = answer(tiny_model(cfg), volume, cfg, 5, 0).probabilities
    np.testing.assert_allclose(turns, whole, atol=1e-6)


def test_prediction_leaves_model_and_random_state_alone(volume):
    cfg = tiny_config()
    model = tiny_model(cfg)
    before = torch.get_rng_state()
    answer(model, volume, cfg, 2, 0)
    assert model.levels[0].spec.norm == "batch"
    assert torch.equal(torch.get_rng_state(), before)


def test_seed_names_the_prediction(volume):
    cfg = tiny_config()
    model = tiny_model(cfg)
    first, again, other = (answer(model, volume, cfg, 2, seed).probabilities for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_probability_of_one_half_is_background(volume):
    cfg = tiny_config()
    model = tiny_model(cfg)
    torch.nn.init.zeros_(model.levels[0].out_weight)
    found = answer(model, volume, cfg, 2, 0)
    probabilities, labels, variance = found.probabilities, found.labels, found.variance
    assert np.all(probabilities == 0.5)
    assert labels.dtype == np.uint8 and not labels.any()
    assert variance is None


def test_labels_are_the_values_of_the_most_probable_class_above_the_threshold():
    cfg = tiny_config(labels=[3, 7], out_channels=2)
    probabilities = np.array([[[[0.9, 0.6, 0.2, 0.5]]], [[[0.1, 0.7, 0.4, 0.5]]]], np.float32)
    assert labels_of(probabilities, cfg).ravel().tolist() == [3, 7, 0, 0]


def test_merged_foreground_is_label_one_whatever_the_classes_are():
    probabilities = np.array([[[[0.9, 0.2]]]], np.float32)
    assert labels_of(probabilities, tiny_config(labels=[3, 7])).ravel().tolist() == [1, 0]


def test_recipe_threshold_is_obeyed():
    cfg = tiny_config()
    strict = dataclasses.replace(cfg, predict=dataclasses.replace(cfg.predict, threshold=0.8))
    probabilities = np.array([[[[0.9, 0.7]]]], np.float32)
    assert labels_of(probabilities, strict).ravel().tolist() == [1, 0]


def test_padding_of_the_recipe_is_cut_off(tmp_path):
    cfg = tiny_config(size=[10, 12, 8])
    volume = load_scan(write_scan(tmp_path / "scan.nii", (7, 9, 6)), cfg)
    assert volume.image.shape == (1, 10, 12, 8)
    found = answer(tiny_model(cfg), volume, cfg, 2, 0, with_spread=True)
    probabilities, labels, variance = found.probabilities, found.labels, found.variance
    assert probabilities.shape == (1, 7, 9, 6)
    assert labels.shape == variance.shape == (7, 9, 6)


@pytest.mark.parametrize("samples", [0, -1])
def test_ensemble_without_members_is_refused(volume, samples):
    cfg = tiny_config()
    with pytest.raises(ValueError, match="samples must be at least 1"):
        answer(tiny_model(cfg), volume, cfg, samples, 0)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_oblique_and_flipped_geometry_survives(tmp_path, kind, suffix):
    turn = nib.eulerangles.euler2mat(0.1, 0.2, 0.3)
    affine = nib.affines.from_matvec(turn @ np.diag([-0.8, 1.1, 2.5]), [11.0, -7.5, 3.25])  # the first axis is flipped
    scan = kind(np.random.default_rng(0).integers(0, 900, (7, 9, 6)).astype(np.int16), affine)
    scan.set_sform(affine, code=1)
    scan.set_qform(affine, code=4)
    scan.header.set_xyzt_units("mm", "sec")
    scan.header.set_slope_inter(2.0, -5.0)
    scan.header["cal_max"] = 900
    scan.header["descrip"] = b"a scan"
    nib.save(scan, tmp_path / f"scan{suffix}")
    cfg = tiny_config()

    (written,) = predict_path((tiny_model(cfg), cfg), tmp_path / f"scan{suffix}", tmp_path / f"seg{suffix}")

    before, after = nib.load(tmp_path / f"scan{suffix}"), nib.load(written)
    assert type(after) is kind
    for name in ("sform", "qform"):
        matrix, code = getattr(after, f"get_{name}")(coded=True)
        expected, expected_code = getattr(before, f"get_{name}")(coded=True)
        assert code == expected_code
        assert np.array_equal(matrix, expected)
    assert np.array_equal(after.affine, before.affine)
    assert after.header.get_zooms() == before.header.get_zooms()
    assert after.header.get_xyzt_units() == ("mm", "sec")
    assert after.header["descrip"] == before.header["descrip"]
    assert after.shape == before.shape
    assert after.get_data_dtype() == np.uint8
    assert after.header["cal_max"] == 0
    volume = load_scan(tmp_path / f"scan{suffix}", cfg)
    labels = answer(tiny_model(cfg), volume, cfg, cfg.predict.samples, cfg.predict.seed).labels
    assert 0 < labels.sum() < labels.size
    assert np.array_equal(np.asarray(after.dataobj), labels)  # neither scaled nor reordered


def test_fourth_axis_of_the_scan_is_not_written(tmp_path):
    voxels = np.random.default_rng(0).normal(size=(7, 9, 6, 2)).astype(np.float32)
    nib.save(nib.Nifti1Image(voxels, np.diag([2.0, 1, 1, 1])), tmp_path / "scan.nii")
    cfg = tiny_config(drop_channels=True)
    (written,) = predict_path((tiny_model(cfg), cfg), tmp_path / "scan.nii", tmp_path / "seg.nii")
    assert nib.load(written).shape == (7, 9, 6)
    assert nib.load(written).header.get_zooms() == (2.0, 1.0, 1.0)


def test_folder_is_done_once(tmp_path, capsys):
    cfg = tiny_config()
    loaded = (tiny_model(cfg), cfg)
    for name in ("b.nii.gz", "a.nii"):
        write_scan(tmp_path / "in" / name)
    out = tmp_path / "out"
    assert predict_path(loaded, tmp_path / "in", out) == [out / "a.nii", out / "b.nii.gz"]
    (out / "b.nii.gz").unlink()
    (out / "a.nii").write_bytes(b"kept")
    assert predict_path(loaded, tmp_path / "in", out) == [out / "b.nii.gz"]
    assert (out / "a.nii").read_bytes() == b"kept"
    assert "skipping 1 of 2" in capsys.readouterr().out
    assert len(predict_path(loaded, tmp_path / "in", out, overwrite=True)) == 2
    assert nib.load(out / "a.nii").shape == (7, 9, 6)
    assert sorted(p.name for p in out.iterdir()) == ["a.nii", "b.nii.gz"]  # no temporary file is left


def test_file_goes_into_a_folder_under_its_own_name(tmp_path):
    cfg = tiny_config()
    scan = write_scan(tmp_path / "scan.nii.gz")
    assert predict_path((tiny_model(cfg), cfg), scan, tmp_path / "out") == [tmp_path / "out" / "scan.nii.gz"]


def test_model_may_be_a_checkpoint_file(tmp_path):
    cfg = tiny_config()
    save_model(tmp_path / "m.safetensors", tiny_model(cfg), cfg)
    scan = write_scan(tmp_path / "scan.nii.gz")
    (by_file,) = predict_path(tmp_path / "m.safetensors", scan, tmp_path / "a.nii.gz")
    (by_model,) = predict_path((tiny_model(cfg), cfg), scan, tmp_path / "b.nii.gz")
    assert np.array_equal(nib.load(by_file).get_fdata(), nib.load(by_model).get_fdata())


def test_pictures_lie_beside_the_segmentation(tmp_path):
    cfg = tiny_config()
    predict_path((tiny_model(cfg), cfg), write_scan(tmp_path / "s.nii"), tmp_path / "seg.nii", png=True)
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {"s.nii", "seg.nii", "seg_overlay.png", "seg_variance.png"}


def test_input_is_never_replaced(tmp_path):
    cfg = tiny_config()
    scan = write_scan(tmp_path / "in" / "scan.nii")
    before = scan.read_bytes()
    for source, out in ((scan, scan), (scan.parent, scan.parent), (scan, scan.parent)):
        with pytest.raises(ValueError, match="out must not replace its input"):
            predict_path((tiny_model(cfg), cfg), source, out, overwrite=True)
    assert scan.read_bytes() == before


def test_folder_needs_a_folder(tmp_path):
    cfg = tiny_config()
    write_scan(tmp_path / "in" / "scan.nii")
    with pytest.raises(ValueError, match="out must be a folder"):
        predict_path((tiny_model(cfg), cfg), tmp_path / "in", tmp_path / "seg.nii")


def test_missing_input_is_named(tmp_path):
    cfg = tiny_config()
    with pytest.raises(FileNotFoundError, match=r"nowhere\.nii does not exist"):
        predict_path((tiny_model(cfg), cfg), tmp_path / "nowhere.nii", tmp_path / "seg.nii")


def test_failed_write_leaves_the_old_file(tmp_path, volume, monkeypatch):
    path = tmp_path / "seg.nii"
    path.write_bytes(b"old")

    def fail(self, target, *_):
        target.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Nifti, "write", fail)
    with pytest.raises(OSError, match="disk full"):
        save_labels(path, np.zeros((7, 9, 6), np.uint8), volume)
    assert path.read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["scan.nii.gz", "seg.nii"]


def test_images_of_another_format_in_a_folder_are_left_out_with_a_word(tmp_path, capsys):
    cfg = tiny_config()
    write_scan(tmp_path / "in" / "a.nii.gz")
    for name in ("b.png", "._c.png", "notes.txt"):
        (tmp_path / "in" / name).write_bytes(b"")
    assert predict_path((tiny_model(cfg), cfg), tmp_path / "in", tmp_path / "out", samples=1) == [
        tmp_path / "out" / "a.nii.gz"
    ]
    assert "in also holds 1 of another format (picture), which are left out: b.png" in capsys.readouterr().out
