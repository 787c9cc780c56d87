"""The family for few channels and depthwise filters: a step forward, and its norm statistics.

With a norm, perception is computed for the statistics and again for the step, or, with large filters, kept in between.
"""

from __future__ import annotations

import math

from torch import Tensor

from ncakern.backends.triton import kernels_small as kernels
from ncakern.backends.triton.launch_small_bwd import step_bwd
from ncakern.backends.triton.norm_small import combine, fold_fwd
from ncakern.backends.triton.pack_small import Packed, pack
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
    folded = packed.folded if stats is None else fold_fwd(rollout, packed, stats)
    assert folded is not None
    w0, b0 = folded
    tile = packed.tiles.fwd
    sizes = packed.grid(rollout, tile)
    kernels._nca_step_fwd_kernel__small[(rollout.batch * tile.count(rollout.size, left=rollout.left),)](
        state, seen, seen if y is None else y, out, packed.filters, w0, b0, packed.w1, rollout.draw, index, *sizes,
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
    part_sums = packed.w0.new_empty(rollout.batch * programs, 1 + 3 * padded_hidden + features * padded_channels)
    kernels._nca_stats_fwd_kernel__small[(programs, padded_hidden // tile.chunk, rollout.batch)](
        seen, part_sums if y is None else y, packed.filters, packed.w0, part_sums, *sizes, HC=tile.chunk, TH=tile.rows,
        TW=tile.columns, STORES_Y=y is not None, num_warps=tile.warps, **packed.network,
    )  # fmt: skip
    combine(rollout, packed, part_sums, stats)
