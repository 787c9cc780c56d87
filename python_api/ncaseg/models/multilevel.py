"""Resolution levels: their automata, and the hand-over between them, which pools the image and enlarges the state.

Images are channels first ``[B, C, X, Y, Z]``, states channels last ``[B, X, Y, Z, C]``. Factors, sizes and offsets are
triples, one entry per axis.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ncakern import NCA
from ncaseg.config import AutomataConfig
from ncaseg.levels import Triple, ceil_divide, pad_size, smaller, working_sizes

FLOAT_BYTES = 4
# States alive beside the kept ones at the peak of the backward pass: input, output, gradients, scratch. 7.6 and 7.0
# were measured (64x64x52 cells, 20 steps, keep_every 1 and 4; x86-64, torch 2.13, 2026-11).
WORKING_STATES = 8
# More of them where states are put together anew between the levels: 3.4 were measured (4 x 256x256 cells, 16 channels,
# the same machine).
REBUILT_STATES = 4


def make_levels(cfg: AutomataConfig, **more: Any) -> nn.ModuleList:
    """One automaton per kernel size, coarse to fine; ``more`` are options of :class:`ncakern.NCA`."""
    names = ("perception", "num_filters", "padding", "norm", "fire_rate")
    options = {name: getattr(cfg, name) for name in names} | more
    sizes = (cfg.ndim, cfg.channels, cfg.hidden)
    return nn.ModuleList(NCA(*sizes, kernel_size=kernel, **options) for kernel in cfg.kernel_sizes)


def automata_bytes(
    cfg: AutomataConfig, batch: int, size: Triple, keep_every: int, *, working: int, has_kernel: bool
) -> int:
    """Bytes at the peak of one forward and backward pass: kept states, those at work, image and label.

    Args:
        batch, size: volumes and their cells, before padding.
        working: states of the largest level that are alive beside the kept ones.
        has_kernel: the kernel keeps states only, C values per cell and step; the reference what plain PyTorch keeps.
    """
    levels = working_sizes(pad_size(size, cfg.scales, cfg.pad), cfg.scales, cfg.training_patches)
    cells = [batch * math.prod(level) for level in levels]
    state = [FLOAT_BYTES * cfg.channels * n for n in cells]
    if not has_kernel:
        kept = sum(reference_bytes(cfg) * steps * n for steps, n in zip(cfg.steps, cells, strict=True))
        return kept + working * max(state)
    kept = sum(math.ceil(steps / keep_every) * s for steps, s in zip(cfg.steps, state, strict=True))
    pairs = zip(cfg.steps, state, strict=True)
    again = max(min(keep_every, steps) * s for steps, s in pairs) if keep_every > 1 else 0
    images = 2 * batch * math.prod(size) * FLOAT_BYTES * (cfg.in_channels + cfg.out_channels)
    return kept + again + working * max(state) + images


def reference_bytes(cfg: AutomataConfig) -> int:
    """Bytes per cell and step that plain PyTorch keeps for the backward pass.

    Identity, filters and their concatenation; the hidden values once, and three times with a norm.
    """
    wide = cfg.hidden if cfg.norm == "none" else 3 * cfg.hidden
    return FLOAT_BYTES * ((2 + 2 * cfg.num_filters) * cfg.channels + wide)


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
