"""What befalls photographs, each by hand: casts of colour, uneven light, hairs, dark corners; and colour constancy."""

import numpy as np
import pytest
import torch

from ncaseg.data.light import cast, dark_corners, hairs, uneven_light
from ncaseg.data.standard import shades_of_gray


def drawn(change, setting, seed=0, image=None):
    image = torch.full((3, 40, 60, 1), 0.5) if image is None else image
    return change(image, setting, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("change", "setting"),
    [(cast, (0.8, 1.2)), (uneven_light, (0.1, 0.4)), (hairs, (3, 9)), (dark_corners, (0.7, 1.1))],
)
def test_a_seed_names_the_change_and_the_input_stays(change, setting):
    image = torch.rand(3, 17, 33, 2, generator=torch.Generator().manual_seed(4))
    before = image.clone()
    first, again, other = (drawn(change, setting, seed, image) for seed in (1, 1, 2))
    assert torch.equal(image, before) and first.shape == image.shape and first.dtype == torch.float32
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.min() >= 0 and first.max() <= 1


def test_a_cast_has_one_factor_per_channel_and_clips():
    factors = torch.stack([drawn(cast, (0.8, 1.2), seed)[:, 0, 0, 0] / 0.5 for seed in range(100)])
    assert factors.min() >= 0.8 and factors.max() <= 1.2 and factors.std(0).min() > 0.08
    assert (factors.std(1) > 0.01).float().mean() > 0.9  # channels differ
    out = drawn(cast, (0.8, 1.2))
    assert torch.equal(out, out[:, :1, :1].expand_as(out))
    assert drawn(cast, (3.0, 3.0)).eq(1).all()


def test_light_falls_off_linearly_about_the_middle():
    out = drawn(uneven_light, (0.4, 0.4), 3)[0, :, :, 0]
    steps = out[1:] - out[:-1], out[:, 1:] - out[:, :-1]
    assert all(step.max() - step.min() < 1e-5 for step in steps)
    assert out.mean().item() == pytest.approx(0.5, abs=1e-5)
    corners = 0.5 * 1.4, 0.5 * 0.6  # of cells, whose centres lie a little inside
    assert out.max().item() == pytest.approx(corners[0], abs=0.01) and out.max() < corners[0]
    assert out.min().item() == pytest.approx(corners[1], abs=0.01)


def test_dark_corners_are_an_ellipse_that_touches_the_sides_at_1():
    out = drawn(dark_corners, (1.0, 1.0))[0, :, :, 0]
    assert (out[0, 0], out[-1, 0], out[0, -1], out[-1, -1]) == (0, 0, 0, 0)
    assert out[20, 0] == 0.5 and out[0, 30] == 0.5
    assert out.eq(0.5).float().mean().item() == pytest.approx(np.pi / 4, abs=0.02)
    assert 0.01 < (out.gt(0) & out.lt(0.5)).float().mean() < 0.1  # the soft edge
    assert drawn(dark_corners, (1.42, 1.5)).eq(0.5).all()


def test_hairs_are_thin_dark_and_as_many_as_asked():
    one, many = (drawn(hairs, (n, n), 1)[0, :, :, 0] for n in (1, 30))
    covered = [int((out < 0.5).sum()) for out in (one, many)]
    assert 5 <= covered[0] <= 120 and covered[1] > 5 * covered[0] and covered[1] < 40 * 60 / 2
    assert one[one < 0.5].unique().numel() == 1  # one tint and opacity
    assert torch.equal(*(drawn(hairs, (30, 30), 1)[c] for c in (0, 2)))


def test_shades_of_gray_undo_the_colour_and_strength_of_the_light():
    picture = np.random.default_rng(0).random((3, 9, 8, 1)).astype(np.float32) * 0.4
    light = np.array([1.0, 0.7, 0.5], np.float32).reshape(3, 1, 1, 1)
    out = shades_of_gray(picture)
    np.testing.assert_allclose(shades_of_gray(picture * light), out, rtol=1e-5)
    norm = (out.astype(np.float64) ** 6).mean((1, 2, 3)) ** (1 / 6)
    np.testing.assert_allclose(norm[norm > 0], 0.7, atol=0.01)  # but for what was clipped
    assert out.dtype == np.float32 and out.max() <= 1


def test_shades_of_gray_leave_black_black_and_by_hand():
    picture = np.zeros((2, 1, 2, 1), np.float32)
    picture[0] = 0.35
    out = shades_of_gray(picture)
    assert out[0] == pytest.approx(0.7) and not out[1].any()
