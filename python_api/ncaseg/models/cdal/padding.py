"""Grids of any size through a network that halves them several times."""

from collections.abc import Callable, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor


def in_multiples(run: Callable[..., Tensor], inputs: Sequence[Tensor], multiple: int) -> Tensor:
    """``run(*inputs)`` on tensors ``[B, C, *S]``, mirrored at the end of axes up to a multiple; the result is cut back.

    Mirroring keeps noise what it is. Sizes that are multiples already go in as they are.

    Raises:
        ValueError: an axis is too short to be mirrored that far.
    """
    size = inputs[0].shape[2:]
    missing = [-n % multiple for n in size]
    if not any(missing):
        return run(*inputs)
    if any(m >= n for m, n in zip(missing, size, strict=True)):
        raise ValueError(
            f"image is too small: its {tuple(size)} cells must be mirrored up to multiples of {multiple}; set data.size"
        )
    ends = [end for m in reversed(missing) for end in (0, m)]
    padded = run(*(F.pad(tensor, ends, mode="reflect") for tensor in inputs))
    kept: tuple[Any, ...] = (..., *(slice(n) for n in size))
    return padded[kept]
