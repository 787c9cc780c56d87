"""Resolution levels: their automata, and the hand-over between them, which pools the image and enlarges the state.

Images are channels first ``[B, C, X, Y, Z]``, states channels last ``[B, X, Y, Z, C]``. Factors, sizes and offsets are
triples, one entry per axis.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ncakern import NCA
from ncaseg.levels import Triple, ceil_divide, smaller


def make_levels(ndim: int, channels: int, hidden: int, kernel_sizes: Sequence[int], **options: Any) -> nn.ModuleList:
    """One automaton per kernel size, coarse to fine; arguments and options as in :class:`ncakern.NCA`."""
    return nn.ModuleList(NCA(ndim, channels, hidden, kernel_size=kernel, **options) for kernel in kernel_sizes)


def pool_image(image: Tensor, factors: Triple, mode: str = "max") -> Tensor:
    """The image of a coarser level: one cell for every block of ``factors`` cells, or what is left of a block.

    Modes: "max" (factors of 2 repeated give the same) and "average" over the block, "nearest" (its first cell), and
    "trilinear" (interpolation at its centre, without smoothing).
    """
    if factors == (1, 1, 1):
        return image
    size_x, size_y, size_z = image.shape[2:]
    x, y, z = factors = smaller(factors, (size_x, size_y, size_z))
    if mode == "max":
        return F.max_pool3d(image, factors, ceil_mode=True)
    if mode == "average":
        return F.avg_pool3d(image, factors, ceil_mode=True, count_include_pad=False)
    if mode == "nearest":
        return image[:, :, ::x, ::y, ::z]
    size = ceil_divide((size_x, size_y, size_z), factors)
    return F.interpolate(image, size, mode="trilinear", align_corners=False)


def enlarge_state(state: Tensor, factors: Triple, size: Triple, offsets: Sequence[Triple] | None = None) -> Tensor:
    """Nearest upsampling of states ``[B, X, Y, Z, C]``, or of patches of them.

    Cell x of the result is cell ``(x + offset) // factor``, with an offset per sample, 0 where none are given. Nothing
    outside the patches is computed.
    """
    if offsets is None:
        return _enlarge(state, factors, size, (0, 0, 0), first_axis=1)
    pairs = zip(state, offsets, strict=True)
    return torch.stack([_enlarge(sample, factors, size, offset, first_axis=0) for sample, offset in pairs])


def _enlarge(state: Tensor, factors: Triple, size: Triple, offset: Triple, *, first_axis: int) -> Tensor:
    for axis, (factor, length, start) in enumerate(zip(factors, size, offset, strict=True), start=first_axis):
        first, last = start // factor, (start + length - 1) // factor
        state = state.narrow(axis, first, last - first + 1)
        if factor > 1:
            state = state.repeat_interleave(factor, dim=axis)
        state = state.narrow(axis, start - first * factor, length)
    return state


def pad_to_multiple(volume: Tensor, factors: Triple, mode: str) -> Tensor:
    """Pad ``[B, C, X, Y, Z]`` at the end of each axis to a multiple of ``factors``: "replicate", "zeros" or "none"."""
    missing = [-have % factor for have, factor in zip(volume.shape[2:], factors, strict=True)]
    if mode == "none" or not any(missing):
        return volume
    amounts = [amount for m in reversed(missing) for amount in (0, m)]
    return F.pad(volume, amounts, mode="replicate") if mode == "replicate" else F.pad(volume, amounts)
