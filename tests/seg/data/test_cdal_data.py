"""The three ways in which cDAL prepares its data, on data made here, and on real data where they are."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ncaseg import config
from ncaseg.data.dataset import CaseStore, load_case
from ncaseg.data.folds import run_folds, strided_folds
from ncaseg.data.index import find_cases
from ncaseg.data.phantom import write_phantoms
from ncaseg.data.standard import standardise, unstandardise
from ncaseg.evaluation import protocols
from ncaseg.evaluation.scores import grid_mask
from ncaseg.sampling.windows import mean_of_windows, windows
from ncaseg.training.batches import load_batch, load_sample

VOLUMES = {
    "model": {"ndim": 2, "norm": "none", "out_channels": 2},
    "data": {
        "labels": [1, 2],
        "clip_percentiles": [0.0, 100.0],
        "mean": [0.5],
        "std": [0.5],
        "crop": [16, 16, 16],
        "crops": 3,
        "crop_places": "balanced",
    },
    "train": {"steps": 1, "slices": 16},
}
HE = {
    "model": {"ndim": 2, "norm": "none", "in_channels": 3},
    "data": {
        "modalities": [0, 1, 2],
        "intensity": "stored",
        "size": [64, 64, 1],
        "fit": "resize",
        "resample": "area",
        "crop": [32, 32, 1],
        "mean": [0.55714, 0.3862, 0.52141],
        "std": [0.25796, 0.22373, 0.22659],
    },
    "augment": {
        "flip": [0.5, 0.5, 0.0],
        "affine": 1.0,
        "rotation_degrees": [0.0, 0.0, 22.0],
        "scale": [0.75, 1.25],
        "shift_mm": [0.0, 0.0, 0.0],
        "fill": "zeros",
        "jitter": 1.0,
    },
    "train": {"steps": 1, "batch_size": 2},
}
CXR = {
    "model": {"ndim": 2, "norm": "none"},
    "data": {
        "intensity": "stored",
        "size": [32, 32, 1],
        "fit": "resize",
        "resample": "area",
        "mean": [0.5],
        "std": [0.5],
    },
    "augment": {key: value for key, value in HE["augment"].items() if key not in ("flip", "jitter")},
    "train": {"steps": 1},
}


def recipe(content, **data):
    return config.from_dict({"name": "x", **content, "data": {**content["data"], **data}})


def write_pictures(folder, colours, size=(80, 100)):
    """Two pictures of noise with one bright rectangle each, which is the mask."""
    rng = np.random.default_rng(3)
    for i in range(2):
        mask = np.zeros(size, bool)
        mask[10 + i : 50, 20:70] = True
        pixels = rng.integers(60, 120, (*size, colours)) + 90 * mask[..., None]
        for kind, values in (("images", pixels.squeeze().astype(np.uint8)), ("masks", mask)):
            (folder / kind).mkdir(exist_ok=True)
            Image.fromarray(values).save(folder / kind / f"{i}.png")
    return folder


def test_slices_of_balanced_boxes(tmp_path):
    cases = find_cases(write_phantoms(tmp_path, 1, size=(20, 24, 13)))  # 13 slices: the border is repeated
    cfg = recipe(VOLUMES)
    volumes = CaseStore(cases, cfg.data)
    image, target = load_batch(volumes, (cases[0].id,), cfg, 0, 0)
    assert image.shape == (48, 1, 16, 16, 1) and target.shape == (48, 2, 16, 16, 1)
    assert -1 <= image.min() < -0.9 and 0.7 < image.max() <= 1
    assert target.unique().tolist() == [0, 1] and not (target[:, 0] * target[:, 1]).any()
    boxes = image.view(3, 16, 16, 16)
    assert not any(torch.equal(boxes[i].sum(0), boxes[j].sum(0)) for i, j in ((0, 1), (0, 2), (1, 2)))
    again, _ = load_batch(volumes, (cases[0].id,), cfg, 0, 0)
    other, _ = load_batch(volumes, (cases[0].id,), cfg, 1, 0)
    assert torch.equal(again, image) and not torch.equal(other, image)


def test_volumes_of_any_size_stack_as_boxes(tmp_path):
    write_phantoms(tmp_path / "a", 1, size=(20, 24, 13))
    write_phantoms(tmp_path / "b", 1, seed=1, size=(14, 22, 30))
    cfg = config.from_dict(
        {"name": "x", "data": {**VOLUMES["data"], "crops": 1}, "train": {"steps": 1, "batch_size": 2}}
    )
    cases = [find_cases(tmp_path / name)[0] for name in "ab"]
    stores = {name: CaseStore([case], cfg.data)[case.id] for name, case in zip("ab", cases, strict=True)}
    image, target = load_batch(stores, ("a", "b"), cfg, 0, 0)
    assert image.shape == target.shape == (2, 1, 16, 16, 16)


def test_pictures_are_resized_cut_changed_and_standardised(tmp_path):
    cases = find_cases(write_pictures(tmp_path, 3))
    cfg = recipe(HE)
    volumes = CaseStore(cases, cfg.data)
    seen = volumes["0"].image
    assert seen.shape == (3, 64, 64, 1)
    mean, std = (np.array(cfg.data.mean), np.array(cfg.data.std))
    back = seen * std.reshape(3, 1, 1, 1) + mean.reshape(3, 1, 1, 1)
    np.testing.assert_allclose(unstandardise(seen, cfg.data), back, atol=1e-5)
    assert back.min() > 0.2 and back.max() < 0.85
    image, target = load_batch(volumes, ("0", "1"), cfg, 0, 0)
    assert image.shape == (2, 3, 32, 32, 1) and target.shape == (2, 1, 32, 32, 1)
    assert target.unique().tolist() == [0, 1]
    black = torch.tensor(-mean / std, dtype=torch.float32).view(1, 3, 1, 1, 1)
    assert (image >= black - 1e-4).all()  # 0 of the file is the least there is, and what fills the corners
    means = [image[i][target[i].expand(3, -1, -1, -1) > 0].mean() for i in range(2)]
    assert all(m > image[i].mean() for i, m in enumerate(means))


def test_what_is_filled_is_black(tmp_path):
    cases = find_cases(write_pictures(tmp_path, 1))
    small = {**CXR, "augment": {**CXR["augment"], "scale": [0.75, 0.75]}}
    cfg = recipe(small)
    image, target = load_batch(CaseStore(cases, cfg.data), ("1",), cfg, 0, 0)
    assert image.shape == target.shape == (1, 1, 32, 32, 1)
    assert image[0, 0, 0, 0, 0] == -1 and image[0, 0, 16, 14, 0] > -0.2 and target[0, 0, 0].sum() == 0


def test_without_changes_a_batch_is_what_was_loaded(tmp_path):
    cases = find_cases(write_pictures(tmp_path, 1))
    cfg = recipe({**CXR, "augment": {}})
    volume = load_case(cases[0], cfg.data)
    image, _ = load_batch(CaseStore(cases, cfg.data), ("0",), cfg, 0, 0)
    assert np.array_equal(image[0].numpy(), volume.image) and volume.image.min() < -0.3
    plain = load_case(cases[0], recipe({**CXR, "augment": {}}, mean=[], std=[]).data)
    assert np.array_equal(standardise(plain.image, cfg.data), volume.image)
    assert standardise(plain.image, config.DataConfig()) is plain.image


def test_boxes_come_before_the_changes(tmp_path):
    cases = find_cases(write_pictures(tmp_path, 1))
    flipped = recipe({**CXR, "augment": {"flip": [1.0, 0.0, 0.0]}}, crop=[8, 0, 0])
    plain = recipe({**CXR, "augment": {}}, crop=[8, 0, 0])
    pairs = [load_sample(CaseStore(cases, cfg.data), "0", cfg, 5, 2) for cfg in (flipped, plain)]
    for one, other in zip(*pairs, strict=True):
        assert one.shape == (1, 8, 32, 1)
        torch.testing.assert_close(one, other.flip(1), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"mean": (0.5,)}, "data.std must be given if and only if data.mean is"),
        ({"mean": (0.5, 0.5), "std": (1.0, 1.0)}, r"data.mean must be empty or have one number per entry .*\(1\)"),
        ({"mean": (0.5,), "std": (0.0,)}, "data.std must be positive"),
        ({"crop": (32, 32)}, "data.crop must be empty"),
        ({"crop": (32, 32, -1)}, "data.crop must not be negative"),
        ({"crops": 2}, "data.crops must be 1 without data.crop"),
        ({"crops": 0}, "data.crops must be at least 1"),
        ({"crop_places": "centre"}, "data.crop_places must be one of uniform, balanced"),
    ],
)
def test_wrong_settings_are_named(keywords, words):
    with pytest.raises(ValueError, match=words):
        config.DataConfig(**keywords)


def real(name):
    folder = Path(os.environ["NCASEG_DATA"]) / name
    if not folder.is_dir():
        pytest.skip(f"needs {folder}")
    return find_cases(folder)


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "content", "more", "shape"),
    [
        ("Task04_Hippocampus", VOLUMES, {"crop": [32, 32, 32], "crops": 1}, (16, 1, 32, 32, 1)),
        ("MoNuSeg", HE, {"size": [512, 512, 1], "crop": [256, 256, 1]}, (1, 3, 256, 256, 1)),
        ("CXR_Kermany_V7", CXR, {"size": [256, 256, 1]}, (1, 1, 256, 256, 1)),
    ],
)
def test_real_data_become_batches(name, content, more, shape):
    cases = real(name)
    cfg = recipe(content, **more)
    image, target = load_batch(CaseStore(cases, cfg.data), (cases[0].id,), cfg, 0, 0)
    assert image.shape == shape and torch.isfinite(image).all() and target.any() and not target.all()
    ids = [case.id for case in cases]
    found = run_folds(ids, 4) if name.startswith("CXR") else strided_folds(ids, 4)
    assert sorted(i for fold in found for i in fold.validation) == sorted(ids)


def test_a_picture_is_scored_on_the_grid_from_its_four_tiles(tmp_path):
    cfg = recipe(HE)
    volume = load_case(find_cases(write_pictures(tmp_path, 3))[0], cfg.data)
    truth = grid_mask(volume)
    # Nearest neighbour: the centre of cell i of 64 lies in pixel (i + 1/2) 80 / 64, or 100 / 64.
    rows, columns = (np.floor((np.arange(64) + 0.5) * n / 64).astype(int) for n in (80, 100))
    assert truth.shape == (64, 64, 1) and np.array_equal(truth[..., 0], volume.label[rows][:, columns, 0] > 0)
    image = torch.from_numpy(volume.image)[None]
    tiles = windows((64, 64, 1), (32, 32, 0), 0.0)
    found = ((where, (image[(..., *where)].mean(1, keepdim=True) > 0).float()) for where in tiles)
    whole = mean_of_windows(found, (64, 64, 1))[0, 0].numpy()
    assert len(tiles) == 4
    assert np.array_equal(whole, volume.image.mean(0) > 0)
    assert protocols.e_cdal(whole, truth)["dice"] > 0.95  # bright is what is drawn; only edges are blurred


def test_the_padding_of_a_volume_is_no_foreground(tmp_path):
    cases = find_cases(write_phantoms(tmp_path, 1, size=(12, 13, 14)))
    volume = load_case(cases[0], config.DataConfig(labels=(1, 2), size=(16, 13, 20)))
    truth = grid_mask(volume)
    assert truth.shape == (16, 13, 20) and np.array_equal(truth[:12, :, :14], volume.label > 0)
    assert truth.sum() == (volume.label > 0).sum()
