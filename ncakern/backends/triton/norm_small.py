"""Few channels with a norm: what comes between two passes over the cells, one small launch for each purpose.

In torch it would be some 25 launches a step, which on a small grid take longer than the step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ncakern._spec import NORM_EPS
from ncakern.backends.triton import kernels_norm as kernels
from ncakern.backends.triton.pack_small import Packed
from ncakern.backends.triton.step import Rollout

_BLOCK, _ROWS = 16, 64
_OPTIONS = {"BLOCK": _BLOCK, "num_warps": 4, "enable_fp_fusion": True}


def combine(rollout: Rollout, packed: Packed, parts: Tensor, stats: Tensor) -> None:
    """Write ``stats [groups, 2 h + V]`` from ``parts [B * programs, ...]`` of `_nca_stats_fwd_kernel__small`."""
    blocks = -(-max(rollout.hidden, rollout.features) // _BLOCK)
    kernels._nca_norm_fwd_kernel__combine[(rollout.groups, blocks)](
        parts, stats, parts.shape[0] // rollout.groups, ROWS=_ROWS, **_sizes(rollout, packed), **_OPTIONS
    )


def fold_fwd(rollout: Rollout, packed: Packed, stats: Tensor) -> tuple[Tensor, Tensor]:
    """w0 and b0 such that v @ w0 + b0 is the normalised, scaled and modulated hidden layer, ``[1 or B, ...]``."""
    by_sample = rollout.groups > 1 or rollout.scale is not None
    folded = packed.w0.new_empty((rollout.batch if by_sample else 1, *packed.w0.shape))
    b0 = folded.new_empty(folded.shape[0], folded.shape[-1])
    kernels._nca_norm_fwd_kernel__fold[(folded.shape[0], b0.shape[1] // _BLOCK)](
        stats, *_affine(rollout), packed.w0, folded, b0, **_constants(rollout, packed)
    )
    return folded, b0


def fold_bwd(rollout: Rollout, packed: Packed, stats: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """w0 ``[groups, ...]``, vectors and center of `_nca_cells_bwd_kernel__small`; c1 and c2 of vectors are zero."""
    features, padded_channels, padded_hidden = packed.w0.shape
    folded = packed.w0.new_empty((rollout.groups, *packed.w0.shape))
    vectors = folded.new_empty(rollout.batch, 5, padded_hidden)
    center = folded.new_empty(rollout.batch, features, padded_channels)
    kernels._nca_norm_bwd_kernel__fold[(rollout.batch, padded_hidden // _BLOCK)](
        stats, *_affine(rollout), packed.w0, folded, vectors, center, **_constants(rollout, packed)
    )
    return folded, vectors, center


def write_means(rollout: Rollout, packed: Packed, parts: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Put c1 and c2 into vectors; returns the sums of g and of g t over each sample, ``[B, h]``, float64.

    ``parts [B, programs, ...]`` come from a launch with SUMS.
    """
    sums = parts.new_empty((rollout.batch, 2, rollout.hidden), dtype=torch.float64)
    samples = rollout.batch // rollout.groups
    kernels._nca_norm_bwd_kernel__means[(rollout.groups, packed.w0.shape[-1] // _BLOCK)](
        parts, vectors, sums, samples, parts.shape[1], rollout.cells * samples, CP=packed.w0.shape[1],
        F=rollout.filters, HIDDEN=rollout.hidden, HP=packed.w0.shape[-1], ROWS=_ROWS, **_OPTIONS,
    )  # fmt: skip
    g, gt = sums.unbind(1)
    return g, gt


def _affine(rollout: Rollout) -> tuple[Tensor | None, ...]:
    return rollout.norm_weight, rollout.norm_bias, rollout.scale, rollout.shift


def _sizes(rollout: Rollout, packed: Packed) -> dict[str, int]:
    _, padded_channels, padded_hidden = packed.w0.shape
    sizes = {"C": rollout.channels, "CP": padded_channels, "F": rollout.filters}
    return sizes | {"HIDDEN": rollout.hidden, "HP": padded_hidden}


def _constants(rollout: Rollout, packed: Packed) -> dict[str, Any]:
    is_modulated, by_sample = rollout.scale is not None, rollout.groups > 1
    named = {"MODULATED": is_modulated, "BY_SAMPLE": by_sample, "EPS": NORM_EPS}
    return _sizes(rollout, packed) | named | _OPTIONS
