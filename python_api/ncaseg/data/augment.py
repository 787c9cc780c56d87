"""Random changes of a training case: mirror, affine map, colours and light, noise, blur, contrast, gamma, resolution.

What is drawn comes from one generator, so that a sample's augmentation is a function of its seed. Images and targets
are ``[C, X, Y, Z]`` on the CPU; what moves cells moves both, what changes intensities leaves the target alone.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ncaseg.config import AugmentConfig
from ncaseg.data.jitter import jitter
from ncaseg.data.light import cast, dark_corners, hairs, uneven_light


def augment(
    image: Tensor, target: Tensor, cfg: AugmentConfig, generator: Generator, spacing_mm: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Draw and apply the changes that ``cfg`` asks for, in the order of its fields.

    Args:
        image: ``[C_in, X, Y, Z]`` float32.
        target: ``[C_out, X, Y, Z]`` float32, masks.
        cfg: probabilities and ranges; a probability of 0 draws nothing.
        generator: source of all random numbers.
        spacing_mm: size of a cell per axis: rotations and shifts happen in millimetres.

    Returns:
        Image and target of the same shapes.
    """
    axes = [axis for axis, chance in enumerate(cfg.flip, start=1) if _happens(chance, generator)]
    image, target = image.flip(axes), target.flip(axes)
    if _happens(cfg.affine, generator):
        angles = [math.radians(_uniform(-limit, limit, generator)) for limit in cfg.rotation_degrees]
        matrix = rotation(angles) * _uniform(*cfg.scale, generator)
        shift_mm = [_uniform(-limit, limit, generator) for limit in cfg.shift_mm]
        image = warp(image, matrix, shift_mm, spacing_mm, "bilinear", cfg.fill)
        target = warp(target, matrix, shift_mm, spacing_mm, "nearest", cfg.fill)
    if _happens(cfg.jitter, generator):
        image = jitter(image, cfg.jitter_strengths, generator)
    if _happens(cfg.cast, generator):
        image = cast(image, cfg.cast_gain, generator)
    if _happens(cfg.light, generator):
        image = uneven_light(image, cfg.light_strength, generator)
    if _happens(cfg.hair, generator):
        image = hairs(image, cfg.hair_count, generator)
    if _happens(cfg.corners, generator):
        image = dark_corners(image, cfg.corners_radius, generator)
    if _happens(cfg.noise, generator):
        image = image + _uniform(*cfg.noise_std, generator) * torch.randn(image.shape, generator=generator)
    if _happens(cfg.blur, generator):
        sigmas = [_uniform(*cfg.blur_sigma, generator) for _ in image]
        chosen = [_happens(cfg.blur_channel, generator) for _ in image]
        image = torch.stack([blur(x, s) if c else x for x, s, c in zip(image, sigmas, chosen, strict=True)])
    if _happens(cfg.brightness, generator):
        image = image * _uniform(*cfg.brightness_factor, generator)
    if _happens(cfg.contrast, generator):
        image = change_contrast(image, _uniform(*cfg.contrast_factor, generator))
    if _happens(cfg.gamma, generator):
        image = change_gamma(image, _uniform(*cfg.gamma_exponent, generator))
    if _happens(cfg.low_resolution, generator):
        image = lower_resolution(image, _uniform(*cfg.low_resolution_zoom, generator))
    return image, target


def rotation(angles: Sequence[float]) -> Tensor:
    """The 3x3 rotation about the axes X, then Y, then Z, by angles in radians."""
    matrix = torch.eye(3)
    for axis, angle in enumerate(angles):
        one, two = (i for i in range(3) if i != axis)
        turn = torch.eye(3)
        turn[one, one] = turn[two, two] = math.cos(angle)
        turn[one, two], turn[two, one] = -math.sin(angle), math.sin(angle)
        matrix = turn @ matrix
    return matrix


def warp(
    volume: Tensor,
    matrix: Tensor,
    shift_mm: Sequence[float],
    spacing_mm: Sequence[float],
    mode: str,
    fill: str = "border",
) -> Tensor:
    """Move what lies at the point p to ``matrix p + shift_mm``; p is in millimetres from the centre.

    Args:
        volume: ``[C, X, Y, Z]``.
        matrix: ``[3, 3]``, invertible.
        mode: "bilinear" (trilinear here) or "nearest".
        fill: cells that come from outside repeat the "border", or are "zeros".
    """
    back = torch.linalg.inv(matrix)
    half_mm = torch.tensor([n * mm / 2 for n, mm in zip(volume.shape[1:], spacing_mm, strict=True)])
    # grid_sample asks where each cell comes from, in units of half a side, the last axis first.
    linear = back * half_mm[None, :] / half_mm[:, None]
    offset = -(back @ torch.tensor(list(shift_mm))) / half_mm
    theta = torch.cat([linear.flip(0, 1), offset.flip(0)[:, None]], dim=1)
    grid = F.affine_grid(theta[None], [1, *volume.shape], align_corners=False)
    return F.grid_sample(volume[None], grid, mode=mode, padding_mode=fill, align_corners=False)[0]


def blur(channel: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of ``[X, Y, Z]``, sigma in cells, cut at three sigma; the border is repeated."""
    radius = math.ceil(3 * sigma)
    weights = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    weights = weights / weights.sum()
    volume = channel[None, None]
    for axis in range(3):
        kernel = weights.view([1, 1, *(-1 if i == axis else 1 for i in range(3))])
        amounts = [radius if i == axis else 0 for i in (2, 2, 1, 1, 0, 0)]
        volume = F.conv3d(F.pad(volume, amounts, mode="replicate"), kernel)
    return volume[0, 0]


def change_contrast(image: Tensor, factor: float) -> Tensor:
    """Stretch each channel about its mean, within its own range."""
    space = (1, 2, 3)
    mean, low, high = image.mean(space, True), image.amin(space, True), image.amax(space, True)
    return ((image - mean) * factor + mean).clamp(low, high)


def change_gamma(image: Tensor, exponent: float) -> Tensor:
    """Raise each channel, mapped from its own range to [0, 1], to a power and map it back."""
    space = (1, 2, 3)
    low, high = image.amin(space, True), image.amax(space, True)
    extent = (high - low).clamp_min(1e-7)
    return ((image - low) / extent) ** exponent * extent + low


def lower_resolution(image: Tensor, zoom: float) -> Tensor:
    """Sample every axis at ``zoom`` of its cells (nearest) and interpolate back linearly."""
    size = list(image.shape[1:])
    small = F.interpolate(image[None], [max(1, round(n * zoom)) for n in size], mode="nearest")
    return F.interpolate(small, size, mode="trilinear", align_corners=False)[0]


def _happens(chance: float, generator: Generator) -> bool:
    return chance > 0 and torch.rand((), generator=generator).item() < chance


def _uniform(low: float, high: float, generator: Generator) -> float:
    return low + (high - low) * torch.rand((), generator=generator).item()
