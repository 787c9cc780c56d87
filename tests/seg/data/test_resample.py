"""Resizing to the network's grid and back: against sums by hand, and the axes kept apart."""

import nibabel as nib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from seg.tiny import tiny_config, tiny_model, write_scan

from ncaseg.data.resample import resize_back, resize_image, resize_mask
from ncaseg.inference.files import predict_path


def test_image_is_interpolated_with_the_published_cubic():
    # Doubling: the first fine cell between two coarse ones lies at 0.25, with a = -0.75.
    def weight(d, a=-0.75):
        d = abs(d)
        near = (a + 2) * d**3 - (a + 3) * d**2 + 1
        return near if d <= 1 else a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a

    line = np.array([3.0, 1.0, 4.0, 1.0, 5.0, 9.0], np.float32)
    at = 2.25  # centre of fine cell 5 of 12
    expected = sum(weight(at - i) * line[i] for i in range(1, 5))
    for axis in (1, 2, 3):
        shape = [1, 1, 1, 1]
        shape[axis] = 6
        size = [1, 1, 1]
        size[axis - 1] = 12
        out = resize_image(line.reshape(shape), tuple(size))
        assert out.shape == (1, *size) and out.dtype == np.float32
        np.testing.assert_allclose(out.flatten()[5], expected, rtol=1e-5)


def test_sizes_may_differ_per_axis_and_constants_stay():
    out = resize_image(np.full((2, 5, 6, 7), 0.3, np.float32), (8, 3, 9))
    assert out.shape == (2, 8, 3, 9)
    np.testing.assert_allclose(out, 0.3, rtol=1e-6)


def test_mask_takes_the_nearest_cell():
    mask = np.arange(3, dtype=np.float32).reshape(1, 3, 1, 1)
    assert resize_mask(mask, (7, 1, 1)).flatten().tolist() == [0, 0, 0, 1, 1, 2, 2]  # floor(i * 3 / 7)


def test_the_way_back_is_linear():
    logits = np.array([0.0, 1.0, 2.0, 3.0], np.float32).reshape(1, 1, 1, 4, 1)
    assert resize_back(logits, (1, 2, 1)).flatten().tolist() == [0.5, 2.5]


def test_prediction_of_a_resized_scan_lies_on_its_native_grid(tmp_path):
    affine = np.diag([0.6, 0.7, 4.0, 1.0])
    scan = write_scan(tmp_path / "scan.nii.gz", (7, 9, 6), affine=affine)
    cfg = tiny_config(size=[12, 8, 9], fit="resize")
    (out,) = predict_path((tiny_model(cfg), cfg), scan, tmp_path / "seg.nii.gz", png=True)
    labels = nib.load(out)
    assert labels.shape == (7, 9, 6) and np.allclose(labels.affine, affine)
    assert {p.name for p in tmp_path.glob("*.png")} == {"seg_overlay.png", "seg_variance.png"}


@pytest.mark.parametrize("size", [(9, 4, 6), (5, 12, 3), (6, 7, 5)])
def test_both_ways_agree_with_torch(size):
    image = np.random.default_rng(0).random((2, 6, 7, 5), np.float32)
    planes = F.interpolate(torch.from_numpy(image).movedim(3, 0), size[:2], mode="bicubic")  # [Z, C, X, Y]
    expected = F.interpolate(planes.permute(3, 1, 2, 0), (size[0], size[2]), mode="bicubic").permute(1, 2, 0, 3)
    np.testing.assert_allclose(resize_image(image, size), expected, atol=1e-5)
    expected = F.interpolate(torch.from_numpy(image)[None], size, mode="trilinear")[0]
    np.testing.assert_allclose(resize_back(image, size), expected, atol=1e-6)


@pytest.mark.parametrize("size", [(9, 4, 6), (2, 12, 3), (6, 3, 1)])
def test_area_and_centre_agree_with_torch(size):
    image = np.random.default_rng(0).random((2, 6, 7, 5), np.float32)
    how = {"mode": "bilinear", "antialias": True}
    planes = F.interpolate(torch.from_numpy(image).movedim(3, 0), size[:2], **how)  # [Z, C, X, Y]
    expected = F.interpolate(planes.permute(3, 1, 2, 0), (size[0], size[2]), **how).permute(1, 2, 0, 3)
    np.testing.assert_allclose(resize_image(image, size, "area"), expected, atol=1e-6)
    expected = F.interpolate(torch.from_numpy(image)[None], size, mode="nearest-exact")[0]
    np.testing.assert_array_equal(resize_mask(image, size, "centre"), expected)
