"""The family for few channels and depthwise filters: a step forward, and its norm statistics.

With a norm, perception is computed for the statistics and again for the step, or, with large filters, kept in between.
"""

from __future__ import annotations

import math

from torch import Tensor

from ncakern.backends.triton import kernels_small as kernels
from ncakern.backends.triton.launch_small_bwd import step_bwd
from ncakern.backends.triton.pack_small import Packed, fold_norm, pack
from ncakern.backends.triton.step import Rollout
from ncakern.backends.triton.tiles import KEPT_TAPS, parts

__all__ = ["pack", "step_bwd", "step_fwd"]


def step_fwd(
    rollout: Rollout, packed: Packed, index: int, state: Tensor, out: Tensor, stats: Tensor | None, *, has_stats: bool
) -> None:
    """See `step.py`."""
    seen = state if rollout.perceive_from is None else rollout.perceive_from
    y = None
    if stats is not None and not has_stats:
        if math.prod(rollout.kernel) >= KEPT_TAPS:
            y = packed.w0.new_empty((rollout.filters, *seen.shape))
        _write_stats(rollout, packed, seen, y, stats)
    w0, b0 = packed.folded if packed.folded is not None else fold_norm(rollout, packed, stats)
    tile = packed.tiles.fwd
    sizes = packed.grid(rollout, tile)
    kernels._nca_step_fwd_kernel__small[(rollout.batch * tile.count(rollout.size, left=packed.left),)](
        state, seen, seen if y is None else y, out, packed.filters, w0, b0, packed.w1, packed.draw, index, *sizes,
        HC=tile.chunk, TH=tile.rows, TW=tile.columns, FROZEN=rollout.spec.frozen_channels, SLOPE=rollout.slope,
        PER_SAMPLE=b0.shape[0] > 1, HAS_SEEN=seen is not state, LOADS_Y=y is not None, num_warps=tile.warps,
        **packed.network,
    )  # fmt: skip


def _write_stats(rollout: Rollout, packed: Packed, seen: Tensor, y: Tensor | None, stats: Tensor) -> None:
    """The norm statistics of a step; y is written unless it is None."""
    tile = packed.tiles.sums
    features, padded_channels, padded_hidden = packed.w0.shape
    sizes = packed.grid(rollout, tile)
    programs = parts(sizes[5], shares=rollout.batch, programs=rollout.programs)
    widths = (1, padded_hidden, padded_hidden, padded_hidden, features * padded_channels)
    part_sums = packed.w0.new_empty(rollout.batch * programs, sum(widths))
    kernels._nca_stats_fwd_kernel__small[(rollout.batch * programs, padded_hidden // tile.chunk)](
        seen, part_sums if y is None else y, packed.filters, packed.w0, part_sums, *sizes, HC=tile.chunk, TH=tile.rows,
        TW=tile.columns, PROGRAMS=programs, STORES_Y=y is not None, num_warps=tile.warps, **packed.network,
    )  # fmt: skip

    # Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979.
    grouped = part_sums.double().reshape(rollout.groups, -1, sum(widths))
    count, shift, sum_u, sum_uu, sum_v = grouped.split(widths, dim=2)
    part_mean = shift + sum_u / count
    part_squares = sum_uu - sum_u * sum_u / count
    total = count.sum(1, keepdim=True)
    mean = (count * part_mean).sum(1, keepdim=True) / total
    variance = (part_squares + count * (part_mean - mean) ** 2).sum(1) / total[:, 0]
    center = (sum_v.sum(1) / total[:, 0]).reshape(-1, features, padded_channels)[..., : rollout.channels]
    hidden = rollout.hidden
    stats[:, :hidden] = mean[:, 0, :hidden]
    stats[:, hidden : 2 * hidden] = variance[:, :hidden]
    stats[:, 2 * hidden :] = center.flatten(1)
