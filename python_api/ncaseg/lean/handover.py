"""The hand-over between resolution levels on numpy arrays, some rows of the first axis at a time.

The arithmetic is that of :mod:`ncaseg.models.multilevel`. Images are channels first ``[C, X, Y, Z]``, states channels
last ``[X, Y, Z, C]``.
"""

from __future__ import annotations

import numpy as np

from ncaseg.data.resample import centres, linear
from ncaseg.levels import Triple, ceil_divide, smaller


def image_rows(image: np.ndarray, size: Triple, factors: Triple, rows: range, *, pad: str, pool: str) -> np.ndarray:
    """Some rows of the image of a level.

    Args:
        image: ``[C, X, Y, Z]`` at full resolution.
        size: what it is padded to at the end of each axis.
        factors: cells of full resolution per cell of the level.
        rows: cells of the level on its first axis.
        pad, pool: as in :class:`ncaseg.models.m3d.M3D`.

    Returns:
        ``[rows, Y', Z', C]``, perhaps a view.
    """
    factors = smaller(factors, size)
    if pool == "trilinear" and factors != (1, 1, 1):
        pooled = _interpolate(image, size, factors, rows, pad)
    else:
        first, last = rows.start * factors[0], min(rows.stop * factors[0], size[0])
        pooled = _padded_rows(image, size, range(first, last), pad)
        if pool == "nearest":
            pooled = pooled[:, :: factors[0], :: factors[1], :: factors[2]]
        else:
            pooled = _reduce(pooled, factors, pool)
    return np.moveaxis(pooled, 0, -1)


def enlarge_rows(coarse: np.ndarray, factors: Triple, size: Triple, rows: range, first: int) -> np.ndarray:
    """Nearest upsampling: rows ``rows`` of the finer state ``[rows, *size[1:], C]``.

    ``coarse`` holds the coarse state's rows from ``first`` on, at least those that ``rows`` lie in.
    """
    state = coarse[[row // factors[0] - first for row in rows]]
    for axis in (1, 2):
        if factors[axis] > 1:
            state = state.repeat(factors[axis], axis=axis)
    return state[:, : size[1], : size[2]]


def _padded_rows(image: np.ndarray, size: Triple, rows: range, pad: str) -> np.ndarray:
    """Rows of the padded image ``[C, rows, *size[1:]]``; a view where nothing is padded."""
    have = image.shape[1:]
    if rows.stop <= have[0] and size[1:] == have[1:]:
        return image[:, rows.start : rows.stop]
    if pad == "replicate":
        for axis, wanted in enumerate((rows, range(size[1]), range(size[2])), start=1):
            image = image.take(wanted, axis=axis, mode="clip")
        return image
    part = image[:, rows.start : min(rows.stop, have[0])]
    missing = zip((len(rows), *size[1:]), part.shape[1:], strict=True)
    return np.pad(part, [(0, 0), *((0, want - got) for want, got in missing)])


def _reduce(image: np.ndarray, factors: Triple, pool: str) -> np.ndarray:
    """Maximum or mean over blocks; the last block of an axis may be smaller."""
    reduce = np.maximum if pool == "max" else np.add
    cells = np.ones((), np.float32)
    for axis, factor in enumerate(factors, start=1):
        if factor > 1:
            starts = np.arange(0, image.shape[axis], factor)
            lengths = np.diff(starts, append=image.shape[axis]).astype(np.float32)
            cells = cells * lengths.reshape([-1 if a == axis else 1 for a in range(4)])
            image = reduce.reduceat(image, starts, axis=axis)
    return image if pool == "max" else image / cells


def _interpolate(image: np.ndarray, size: Triple, factors: Triple, rows: range, pad: str) -> np.ndarray:
    """Linear along each axis at the centre of every block, as torch's ``interpolate`` with align_corners=False."""
    new = ceil_divide(size, factors)
    x, y, z = (
        np.maximum(centres(old, n, cells), 0)
        for old, n, cells in zip(size, new, (rows, range(new[1]), range(new[2])), strict=True)
    )
    first, last = int(x[0]), min(int(x[-1]) + 2, size[0])
    image = _padded_rows(image, size, range(first, last), pad)
    for axis, place in enumerate((x - first, y, z), start=1):
        image = linear(image, axis, place)
    return image
