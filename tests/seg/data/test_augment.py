"""Each change by hand, what it leaves alone, and that a seed names all of it."""

import math

import pytest
import torch

from ncaseg.config import AugmentConfig
from ncaseg.data import augment as A

UNIT = (1.0, 1.0, 1.0)
ALL = AugmentConfig(
    flip=(0.5, 0.5, 0.5), affine=0.8, noise=0.5, blur=0.5, brightness=0.5, contrast=0.5, gamma=0.5, low_resolution=0.5
)


def volume(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def run(cfg, seed=0, image=None, spacing=UNIT):
    image = volume(2, 6, 7, 5) if image is None else image
    target = (image[:1] > 0.5).float()
    return image, target, *A.augment(image, target, cfg, torch.Generator().manual_seed(seed), spacing)


def test_default_changes_nothing_and_draws_nothing():
    generator = torch.Generator().manual_seed(3)
    before = generator.get_state()
    image = volume(1, 4, 4, 4)
    out, target = A.augment(image, image, AugmentConfig(), generator, UNIT)
    assert torch.equal(out, image) and torch.equal(target, image)
    assert torch.equal(generator.get_state(), before) and not AugmentConfig().is_on


def test_a_seed_names_every_change():
    first, again, other = (run(ALL, seed)[2:] for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert first[0].shape == (2, 6, 7, 5) and first[1].shape == (1, 6, 7, 5) and ALL.is_on
    assert set(first[1].unique().tolist()) <= {0.0, 1.0}


def test_flip_mirrors_image_and_target_along_the_same_axes():
    image, target, out, moved = run(AugmentConfig(flip=(1.0, 0.0, 1.0)))
    assert torch.equal(out, image.flip(1, 3)) and torch.equal(moved, target.flip(1, 3))


def test_each_axis_is_flipped_as_often_as_asked():
    cfg = AugmentConfig(flip=(0.3, 0.0, 0.0))
    ramp = torch.arange(2.0).view(1, 2, 1, 1)
    flipped = sum(run(cfg, seed, ramp)[2][0, 0, 0, 0].item() for seed in range(400))
    assert abs(flipped / 400 - 0.3) < 0.07


def test_quarter_turn_moves_cells_exactly():
    image = volume(1, 5, 5, 3)
    for axis, plane in ((0, (2, 3)), (1, (1, 3)), (2, (1, 2))):
        cube = image if axis == 2 else volume(1, 5, 5, 5)
        angles = [math.pi / 2 if i == axis else 0.0 for i in range(3)]
        turned = A.warp(cube, A.rotation(angles), (0.0, 0.0, 0.0), UNIT, "nearest")
        assert torch.equal(turned, cube.rot90(1, plane))


def test_shift_and_scale_are_in_millimetres_along_the_right_axes():
    image = torch.zeros(1, 9, 7, 5)
    image[0, 4, 3, 2] = 1.0
    moved = A.warp(image, torch.eye(3), (4.0, -1.0, 3.0), (2.0, 1.0, 3.0), "nearest")
    assert moved[0, 6, 2, 3] == 1.0 and moved.sum() == 1.0
    ramp = torch.arange(9.0).view(1, 9, 1, 1).expand(1, 9, 4, 4)
    larger = A.warp(ramp, 2.0 * torch.eye(3), (0.0, 0.0, 0.0), (2.0, 1.0, 3.0), "bilinear")
    torch.testing.assert_close(larger[0, :, 0, 0], 4 + (torch.arange(9.0) - 4) / 2)


def test_turn_in_millimetres_keeps_distances():
    # A point 2 cells of 3 mm along X lands 6 cells of 1 mm along Y.
    image = torch.zeros(1, 9, 15, 1)
    image[0, 6, 7, 0] = 1.0
    turned = A.warp(image, A.rotation((0.0, 0.0, math.pi / 2)), (0.0, 0.0, 0.0), (3.0, 1.0, 1.0), "bilinear")
    assert turned[0, 4, 13, 0] == pytest.approx(1.0, abs=1e-4)


def test_outside_repeats_the_border():
    image = torch.ones(1, 4, 4, 4)
    assert torch.equal(A.warp(image, torch.eye(3), (3.0, 0.0, 0.0), UNIT, "nearest"), image)


def test_outside_is_zero_if_asked():
    cfg = AugmentConfig(
        affine=1.0, rotation_degrees=(0.0, 0.0, 22.0), scale=(0.75, 0.75), shift_mm=(0,) * 3, fill="zeros"
    )
    ones = torch.ones(2, 40, 40, 1)
    _, _, out, moved = run(cfg, image=ones)
    assert not out[:, 0].any() and not moved[:, 0].any()  # a picture of 30 x 30 cells, turned, in 40 x 40
    assert out[:, 20, 20].eq(1).all() and out.mean().item() == pytest.approx(0.75**2, abs=0.02)
    assert set(moved.unique().tolist()) == {0.0, 1.0}
    border = run(AugmentConfig(affine=1.0, scale=(0.75, 0.75)), image=ones)[2]
    torch.testing.assert_close(border, ones)


def test_noise_has_its_deviation_and_leaves_the_target():
    cfg = AugmentConfig(noise=1.0, noise_std=(0.1, 0.1))
    image, target, out, moved = run(cfg, image=volume(1, 20, 20, 20))
    assert (out - image).std().item() == pytest.approx(0.1, rel=0.03) and torch.equal(moved, target)


def test_blur_is_a_gaussian():
    point = torch.zeros(15, 15, 15)
    point[7, 7, 7] = 1.0
    out = A.blur(point, 1.0)
    assert out.sum().item() == pytest.approx(1.0, abs=1e-5)
    assert (out[7, 7, 8] / out[7, 7, 7]).item() == pytest.approx(math.exp(-0.5), rel=1e-4)
    assert (out[8, 8, 7] / out[7, 7, 7]).item() == pytest.approx(math.exp(-1.0), rel=1e-4)
    torch.testing.assert_close(A.blur(torch.full((2, 3, 1), 0.4), 1.0), torch.full((2, 3, 1), 0.4))


def test_intensities_by_hand():
    image = torch.tensor([0.0, 0.5, 1.0, 0.5]).view(1, 4, 1, 1)
    assert run(AugmentConfig(brightness=1.0, brightness_factor=(1.2, 1.2)), image=image)[2].flatten().tolist() == (
        pytest.approx([0.0, 0.6, 1.2, 0.6])
    )
    assert A.change_contrast(image, 0.5).flatten().tolist() == pytest.approx([0.25, 0.5, 0.75, 0.5])
    assert A.change_contrast(image, 2.0).flatten().tolist() == pytest.approx([0.0, 0.5, 1.0, 0.5])  # the old range
    assert A.change_gamma(3 * image, 2.0).flatten().tolist() == pytest.approx([0.0, 0.75, 3.0, 0.75])
    assert torch.equal(A.change_gamma(torch.full((1, 2, 2, 2), 0.3), 2.0), torch.full((1, 2, 2, 2), 0.3))


def test_light_leaves_the_target_and_follows_the_seed():
    cfg = AugmentConfig(cast=1.0, light=1.0, hair=1.0, corners=1.0)
    image, target, out, moved = run(cfg, 5, volume(3, 20, 24, 1))
    assert cfg.is_on and torch.equal(moved, target) and not torch.allclose(out, image, atol=0.1)
    assert torch.equal(out, run(cfg, 5, volume(3, 20, 24, 1))[2])
    assert not torch.equal(out, run(cfg, 6, volume(3, 20, 24, 1))[2])


@pytest.mark.parametrize("name", ["cast", "light", "hair", "corners"])
def test_each_change_of_light_happens_alone_and_as_often_as_asked(name):
    image = volume(3, 20, 24, 1) * 0.9 + 0.1
    cfg = AugmentConfig(**{name: 0.5}, corners_radius=(0.5, 0.8))
    changed = sum(not torch.equal(run(cfg, seed, image)[2], image) for seed in range(60))
    assert 18 <= changed <= 42 and cfg.is_on


def test_low_resolution_keeps_constants_and_size():
    assert torch.equal(A.lower_resolution(torch.full((1, 5, 4, 1), 0.3), 0.5), torch.full((1, 5, 4, 1), 0.3))
    noise = volume(2, 8, 8, 8)
    out = A.lower_resolution(noise, 0.5)
    assert out.shape == noise.shape and out.var() < noise.var()
    assert torch.equal(A.lower_resolution(noise, 1.0), noise)


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"affine": 1.5}, "augment.affine must be a probability"),
        ({"flip": (0.0, -0.1, 0.0)}, "augment.flip must be probabilities"),
        ({"scale": (1.1, 0.9)}, "augment.scale must be a range"),
        ({"fill": "mirror"}, "augment.fill must be one of border, zeros"),
        ({"jitter": -0.5}, "augment.jitter must be a probability"),
        ({"jitter_strengths": (0.4, 0.4, 0.4, 0.6)}, "augment.jitter_strengths must lie in"),
        ({"gamma_exponent": (0.0, 1.0)}, "augment.gamma_exponent must be a range"),
        ({"low_resolution_zoom": (0.5, 2.0)}, "augment.low_resolution_zoom must not exceed 1"),
        ({"hair": 2.0}, "augment.hair must be a probability"),
        ({"hair_count": (9, 3)}, "augment.hair_count must be a range"),
        ({"cast_gain": (0.0, 1.0)}, "augment.cast_gain must be a range"),
        ({"light_strength": (0.2, 1.4)}, "augment.light_strength must not exceed 1"),
        ({"corners_radius": (1.2, 0.8)}, "augment.corners_radius must be a range"),
        ({"shift_mm": (0.0, 0.0, -1.0)}, "augment.shift_mm must not be negative"),
    ],
)
def test_wrong_settings_are_named(keywords, words):
    with pytest.raises(ValueError, match=words):
        AugmentConfig(**keywords)
