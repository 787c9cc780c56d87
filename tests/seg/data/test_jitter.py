"""Colours of pictures: each change by hand, grey pictures, and what is no picture."""

import pytest
import torch
from PIL import Image

from ncaseg.data.jitter import jitter, turn_hue

NONE = (0.0, 0.0, 0.0, 0.0)


def drawn(strengths, seed=0, image=None):
    image = torch.rand(3, 6, 7, 1, generator=torch.Generator().manual_seed(9)) if image is None else image
    return image, jitter(image, strengths, torch.Generator().manual_seed(seed))


def test_without_strength_only_rounding_is_left():
    image, out = drawn(NONE)
    torch.testing.assert_close(out, image, rtol=0, atol=0.51 / 255)


def test_brightness_multiplies():
    image = torch.full((3, 4, 5, 1), 0.4)
    factors = {round((drawn((0.4, 0.0, 0.0, 0.0), seed, image)[1] / image).mean().item(), 3) for seed in range(40)}
    assert len(factors) > 20 and min(factors) > 0.59 and max(factors) < 1.41
    assert min(factors) < 0.75 and max(factors) > 1.25


def test_contrast_keeps_the_mean_and_saturation_keeps_the_grey():
    ramp = torch.linspace(0.3, 0.7, 20).view(1, 20, 1, 1).repeat(3, 1, 4, 1)
    _, out = drawn((0.0, 0.4, 0.0, 0.0), 3, ramp)
    assert out.mean().item() == pytest.approx(0.5, abs=0.01) and abs(out.std() / ramp.std() - 1) > 0.05
    _, out = drawn((0.0, 0.0, 0.4, 0.0), 3, ramp)
    torch.testing.assert_close(out, ramp, rtol=0, atol=0.02)


def test_hue_turns_the_circle():
    red = Image.new("RGB", (2, 2), (200, 0, 0))
    assert turn_hue(red, 0.0).getpixel((0, 0)) == (200, 0, 0)
    thirds = [turn_hue(red, share).getpixel((0, 0)) for share in (1 / 3, -1 / 3)]
    assert thirds[0][1] == 200 and max(thirds[0][0], thirds[0][2]) < 6
    assert thirds[1][2] == 200 and max(thirds[1][0], thirds[1][1]) < 6


def test_a_seed_names_amounts_and_order():
    strengths = (0.4, 0.4, 0.4, 0.1)
    outs = [drawn(strengths, seed)[1] for seed in (1, 1, 2)]
    assert torch.equal(outs[0], outs[1]) and not torch.equal(outs[0], outs[2])
    assert outs[0].shape == (3, 6, 7, 1) and outs[0].min() >= 0 and outs[0].max() <= 1
    assert outs[0].dtype == torch.float32


def test_grey_pictures_have_brightness_and_contrast():
    grey = torch.rand(1, 6, 7, 1)
    _, out = drawn((0.4, 0.4, 0.4, 0.1), 1, grey)
    assert out.shape == grey.shape and not torch.allclose(out, grey, atol=0.02)
    _, out = drawn((0.0, 0.0, 0.4, 0.1), 1, grey)
    torch.testing.assert_close(out, grey, rtol=0, atol=0.51 / 255)


def test_volumes_are_refused():
    with pytest.raises(ValueError, match=r"augment.jitter is for pictures: .* got \(2, 4, 4, 1\)"):
        drawn(NONE, 0, torch.zeros(2, 4, 4, 1))
    with pytest.raises(ValueError, match="augment.jitter is for pictures"):
        drawn(NONE, 0, torch.zeros(1, 4, 4, 3))
