"""Synthetic pictures of skin with one lesion each, as colour PNG with masks, for tests and trials without data."""

from pathlib import Path

import numpy as np
from PIL import Image

from ncaseg import files

SKIN = np.array([0.85, 0.66, 0.58])
LESION = np.array([0.45, 0.28, 0.22])
HAIR = np.array([0.15, 0.10, 0.08])


def write_lesions(folder: str | Path, count: int, seed: int = 0, size: tuple[int, int] = (64, 64)) -> Path:
    """Write ``count`` pictures (``imagesTr``) and masks (``masksTr``, 0 and 255) and return the folder.

    Raises:
        ValueError: ``count`` below 1, or a side below 16 pixels.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1; got {count}")
    if min(size) < 16:
        raise ValueError(f"size must be at least 16 pixels on both axes; got {size}")
    folder = Path(folder)
    for number in range(count):
        picture, mask = make_lesion(seed, number, size)
        for kind, pixels in (("imagesTr", picture), ("masksTr", mask * np.uint8(255))):
            with files.replacing(folder / kind / f"lesion_{number:04d}.png") as temporary:
                Image.fromarray(pixels).save(temporary)
    return folder


def make_lesion(seed: int, number: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """One picture ``[H, W, 3]`` uint8 and its mask ``[H, W]`` uint8 of 0 and 1.

    A turned ellipse with a soft edge on textured skin, under a colour cast, hairs and noise.
    """
    rng = np.random.default_rng((seed, number))
    rows, columns = np.meshgrid(*(np.linspace(-1, 1, n) for n in size), indexing="ij")
    centre, radii = rng.uniform(-0.35, 0.35, 2), rng.uniform(0.25, 0.6, 2)
    angle = rng.uniform(0, np.pi)
    down, right = rows - centre[0], columns - centre[1]
    along, across = np.cos(angle) * down + np.sin(angle) * right, np.cos(angle) * right - np.sin(angle) * down
    distance = np.hypot(along / radii[0], across / radii[1])
    mask = (distance < 1).astype(np.uint8)

    inside = 1 / (1 + np.exp((distance - 1) * 12))
    colours = SKIN + inside[..., None] * (LESION * rng.uniform(0.8, 1.3) - SKIN)
    colours = colours * (1 + 0.08 * _texture(rng, size)[..., None]) * rng.uniform(0.85, 1.1, 3)
    for _ in range(rng.integers(0, 6)):
        hair = _hair(rng, rows, columns)[..., None]
        colours = colours * (1 - hair) + HAIR * hair
    noisy = colours + rng.normal(0, 0.02, colours.shape)
    return (noisy.clip(0, 1) * 255).round().astype(np.uint8), mask


def _texture(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Smooth noise ``[H, W]`` of mean 0 and deviation 1."""
    down, right = np.meshgrid(np.fft.fftfreq(size[0]), np.fft.fftfreq(size[1]), indexing="ij")
    smooth = np.exp(-2 * (np.pi * 3.0) ** 2 * (down**2 + right**2))
    field = np.fft.ifft2(np.fft.fft2(rng.normal(size=size)) * smooth).real
    return (field - field.mean()) / field.std()


def _hair(rng: np.random.Generator, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """How much of each pixel ``[H, W]`` a bent, thin line covers."""
    angle, offset, bend = rng.uniform(0, np.pi), rng.uniform(-0.8, 0.8), rng.uniform(-0.4, 0.4)
    along = np.cos(angle) * rows + np.sin(angle) * columns
    away = np.cos(angle) * columns - np.sin(angle) * rows - offset - bend * along**2
    width = 1.5 / max(rows.shape)
    return np.exp(-0.5 * (away / width) ** 2)
