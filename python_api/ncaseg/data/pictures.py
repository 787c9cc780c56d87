"""Pictures (PNG, JPEG, ...) as volumes of one slice, so that all that is done with volumes is done with them.

The first axis counts rows, the second columns, the third has one cell; colours are modalities, from 0 to 1.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import nibabel as nib
import numpy as np

from ncaseg import files

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
HALF = 127  # a mask of two grey values: lesion above it (ISIC stores 0 and 255)


def is_picture(path: str | Path) -> bool:
    """Whether the name ends like a picture's."""
    return Path(path).name.lower().endswith(SUFFIXES)


def open_picture(path: Path) -> nib.Nifti1Image:
    """A picture as an image object ``[rows, columns, 1, colours]`` float32 with the identity as its affine.

    Raises:
        ValueError: the file is not a picture.
    """
    with _open(path) as picture:
        mode = picture.mode if picture.mode in ("L", "RGB") else ("L" if picture.mode == "1" else "RGB")
        pixels = np.asarray(picture.convert(mode), np.float32) / 255
    return nib.Nifti1Image(pixels.reshape(*pixels.shape[:2], 1, -1), np.eye(4))


def open_mask(path: Path, labels: tuple[int, ...]) -> nib.Nifti1Image:
    """A mask as an image object ``[rows, columns, 1]`` uint8 of label values.

    Values that are all 0 or in ``labels`` are taken as they are; otherwise grey values above 127 are foreground.

    Raises:
        ValueError: the file is not a picture, or has grey values where there are several labels.
    """
    with _open(path) as picture:
        values = np.asarray(picture if picture.mode == "P" else picture.convert("L"))
    if not np.isin(values, (0, *labels)).all():
        if labels != (1,):
            found = np.unique(values)[:8].tolist()
            raise ValueError(f"{path} must hold 0 and data.labels {labels}; it holds {found} and so on")
        values = values > HALF
    return nib.Nifti1Image(values.astype(np.uint8)[..., None], np.eye(4))


def save_mask(path: str | Path, labels: np.ndarray) -> None:
    """Write labels ``[rows, columns, 1]`` as an 8-bit PNG: 0 and 255 if 1 is the only label, else the values.

    Raises:
        ValueError: another suffix, since JPEG would change the values; or more than one slice.
    """
    if Path(path).suffix.lower() != ".png":
        raise ValueError(f"out must end in .png for a picture; got {path}")
    if labels.ndim != 3 or labels.shape[2] != 1:
        raise ValueError(f"labels must have shape [rows, columns, 1]; got {labels.shape}")
    grey = labels[..., 0].astype(np.uint8)
    grey = grey * 255 if grey.max(initial=0) <= 1 else grey
    from PIL import Image

    with files.replacing(path) as temporary:
        Image.fromarray(grey).save(temporary)


def _open(path: Path) -> Image:
    from PIL import Image, UnidentifiedImageError  # here, since volumes are read without it

    try:
        picture = Image.open(path)
        picture.load()
    except (UnidentifiedImageError, SyntaxError, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"{path} must be a readable picture; it is not: {error}") from error
    return picture
