"""Windows that slide over a volume, for models that are meant to see one size, and the mean of what they give.

The windows know nothing of one another; :mod:`ncaseg.lean.tiles` is for results that equal those of the whole.
"""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor

Window = tuple[slice, ...]


def windows(size: Sequence[int], window: Sequence[int], overlap: float) -> list[Window]:
    """Where the windows lie, the last axis running fastest; all of them have one size.

    Args:
        size: cells of the volume.
        window: cells of a window; 0 takes the whole axis, and so does a window that is longer than it.
        overlap: share of a window that the next one covers again. The last window of an axis ends where the axis ends.

    Example:
        >>> [(x.start, x.stop) for x, in windows([50], [32], 0.75)]
        [(0, 32), (8, 40), (16, 48), (18, 50)]
    """
    cells = [min(w, n) if w > 0 else n for w, n in zip(window, size, strict=True)]
    starts = [_starts(n, w, max(1, round(w * (1 - overlap)))) for n, w in zip(size, cells, strict=True)]
    return [tuple(slice(s, s + w) for s, w in zip(corner, cells, strict=True)) for corner in product(*starts)]


def mean_of_windows(parts: Iterator[tuple[Window, Tensor]], size: Sequence[int]) -> Tensor:
    """The mean of ``[N, C, *window]`` over all windows that cover a cell, as ``[N, C, *size]``.

    Every cell must be covered.
    """
    total: Tensor | None = None
    count = torch.zeros(tuple(size))
    for window, values in parts:
        if total is None:
            total = values.new_zeros(*values.shape[:2], *size)
        cells: tuple[Any, ...] = (..., *window)
        total[cells] += values
        count[window] += 1
    assert total is not None
    return total / count.to(total)


def _starts(length: int, window: int, step: int) -> list[int]:
    starts = list(range(0, length - window, step))
    return [*starts, length - window]
