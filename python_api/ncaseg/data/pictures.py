"""Pictures alone, without a recipe: as image objects of one slice."""

from pathlib import Path

import nibabel as nib
import numpy as np

from ncaseg.config.settings import DataConfig
from ncaseg.data import labels as rule
from ncaseg.data.formats.picture import Picture


def open_picture(path: str | Path) -> nib.Nifti1Image:
    """A picture as an image object ``[rows, columns, 1, colours]`` float32, 1 for white, the identity as its affine.

    Raises:
        ValueError: the file is not a picture.
    """
    scan, values = Picture().read(Path(path))
    return nib.Nifti1Image(values.astype(np.float32) / np.float32(scan.white or 1), np.eye(4))


def open_mask(path: str | Path, labels: tuple[int, ...], label_map: str = "") -> nib.Nifti1Image:
    """A mask as an image object ``[rows, columns, 1]`` uint8 of label values, see :mod:`ncaseg.data.labels`.

    Raises:
        ValueError: the file is not a picture, or what its values stand for cannot be told.
    """
    _, coded = Picture().read_label(Path(path))
    found, _ = rule.decode(Path(path), coded, DataConfig(labels=labels, label_map=label_map))
    return nib.Nifti1Image(found.astype(np.uint8), np.eye(4))
