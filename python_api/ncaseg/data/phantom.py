"""Synthetic labelled volumes in the layout of the Medical Segmentation Decathlon, for the demo and the tests."""

import json
from collections.abc import Iterable
from pathlib import Path

import nibabel as nib
import numpy as np

from ncaseg import files

SPACING_MM = (1.0, 0.9, 1.2)
OBLIQUE_DEGREES = 7.0
PREFIX = "phantom_"  # of every id: wherever a case is named, it is seen to be synthetic


def write_phantoms(folder: str | Path, count: int, seed: int = 0, size: tuple[int, int, int] = (24, 28, 24)) -> Path:
    """Write ``count`` cases (``imagesTr``, ``labelsTr``, ``dataset.json``) and return the folder.

    The bytes of the voxels depend on ``seed``, the case's number and ``size`` alone. The geometry is oblique with
    unequal spacing, so that a lost affine shows.

    Raises:
        ValueError: ``count`` below 1, or a side below 12 cells (the two bodies would not fit).
    """
    if count < 1:
        raise ValueError(f"count must be at least 1; got {count}")
    if min(size) < 12:
        raise ValueError(f"size must be at least 12 cells on every axis; got {size}")
    folder = Path(folder)
    affine = _affine(size)
    entries = []
    for number in range(count):
        name = f"{PREFIX}{number:03d}.nii.gz"
        image, label = make_phantom(seed, number, size)
        for kind, array in (("imagesTr", image), ("labelsTr", label)):
            with files.replacing(folder / kind / name) as temporary:
                nib.save(nib.Nifti1Image(array, affine), temporary)
        entries.append({"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"})
    index = {
        "name": "Phantom",
        "description": "Synthetic ellipsoid pairs with bias field, partial volume and noise",
        "tensorImageSize": "3D",
        "modality": {"0": "synthetic"},
        "labels": {"0": "background", "1": "anterior", "2": "posterior"},
        "numTraining": count,
        "numTest": 0,
        "training": entries,
        "test": [],
    }
    files.write_text(folder / "dataset.json", json.dumps(index, indent=1) + "\n")
    return folder


def has_phantoms(ids: Iterable[str]) -> bool:
    """Whether any of these cases is synthetic, told by its name.

    Example:
        >>> has_phantoms(["hippocampus_001", "phantom_003"])
        True
    """
    return any(name.startswith(PREFIX) for name in ids)


def make_phantom(seed: int, number: int, size: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """One image (float32 ``[*S]``, arbitrary scale) and its label (uint8 ``[*S]``: 0, 1 anterior, 2 posterior).

    Two touching ellipsoids lie along the second axis, brighter than a smooth random background; the image is their
    soft membership (partial volume) times a bias field, plus noise.
    """
    rng = np.random.default_rng((seed, number))
    cells = np.stack(np.meshgrid(*(np.arange(n, dtype=np.float64) for n in size), indexing="ij"))  # [3, *S]
    extent = np.array(size, dtype=np.float64)
    centre = (extent - 1) / 2 + rng.uniform(-0.06, 0.06, 3) * extent
    along = np.array([0.0, 0.17, 0.0]) * extent
    slant = np.array([0.08, 0.0, 0.05]) * extent * rng.uniform(-1, 1, 3)
    distances = []
    for sign, fraction in ((1, (0.20, 0.21, 0.20)), (-1, (0.16, 0.24, 0.16))):
        radii = np.array(fraction) * extent * rng.uniform(0.85, 1.15, 3)
        offset = cells - (centre + sign * (along + slant))[:, None, None, None]
        distances.append(np.sqrt(((offset / radii[:, None, None, None]) ** 2).sum(0)))
    anterior, posterior = distances
    nearest = np.minimum(anterior, posterior)
    label = np.where(nearest < 1, np.where(anterior <= posterior, 1, 2), 0).astype(np.uint8)

    body = 1 / (1 + np.exp((nearest - 1) * min(size) * 0.5))  # the edge is about one cell wide
    tissue = 0.35 + 0.10 * _smooth_noise(rng, size, 3.0)
    signal = tissue + (0.75 - tissue) * body
    bias = 1 + 0.15 * _smooth_noise(rng, size, 12.0)
    noisy = signal * bias + rng.normal(0, 0.04, size)
    return (noisy * rng.uniform(200, 2000)).astype(np.float32), label


def _smooth_noise(rng: np.random.Generator, size: tuple[int, int, int], width: float) -> np.ndarray:
    """Gaussian noise blurred to a correlation length of ``width`` cells, zero mean, unit standard deviation."""
    squared = sum(f**2 for f in np.meshgrid(*(np.fft.fftfreq(n) for n in size), indexing="ij"))
    blurred = np.fft.ifftn(np.fft.fftn(rng.normal(size=size)) * np.exp(-2 * (np.pi * width) ** 2 * squared)).real
    blurred -= blurred.mean()
    return blurred / blurred.std()


def _affine(size: tuple[int, int, int]) -> np.ndarray:
    angle = np.deg2rad(OBLIQUE_DEGREES)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag((-SPACING_MM[0], *SPACING_MM[1:]))  # first axis points left, as in many scans
    affine[:3, 3] = -affine[:3, :3] @ (np.array(size) - 1) / 2
    return affine
