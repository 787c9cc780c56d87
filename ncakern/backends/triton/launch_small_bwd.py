"""The family for few channels and depthwise filters: a step backward, and the gradients that follow from its sums.

The first kernel computes perception and keeps it for the next one. With a norm that is the one for sums, and the
gradient of perception can take its place; without one it is the one for cells.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ncakern._spec import NORM_EPS
from ncakern.backends.triton import kernels_depthwise_bwd, kernels_small_bwd
from ncakern.backends.triton.common import num_entries
from ncakern.backends.triton.norm_small import fold_bwd, write_means
from ncakern.backends.triton.pack_small import Packed
from ncakern.backends.triton.step import Rollout, Sums
from ncakern.backends.triton.tiles import Tile, parts


def step_bwd(
    rollout: Rollout, packed: Packed, index: int, state: Tensor, stats: Tensor | None, d_out: Tensor, sums: Sums
) -> Tensor:
    """See `step.py`."""
    seen = state if rollout.perceive_from is None else rollout.perceive_from
    cells = _Cells(rollout, packed, index, seen, stats, d_out)
    cells.run(sums)
    _add_filter_gradients(rollout, packed, seen, cells.d_y, sums)
    _add_through_filters(rollout, packed, cells.d_y, cells.d_seen)
    if sums.perceive_from is None:
        return cells.d_seen
    sums.perceive_from += cells.d_seen.reshape(sums.perceive_from.shape)
    return d_out


class _Cells:
    """The launches of `kernels_small_bwd.py` for one step."""

    def __init__(
        self, rollout: Rollout, packed: Packed, index: int, seen: Tensor, stats: Tensor | None, d_out: Tensor
    ) -> None:
        self.rollout, self.packed, self.index, self.seen, self.d_out = rollout, packed, index, seen, d_out
        self.d_seen = torch.empty_like(d_out)
        self.d_y = d_out.new_empty((rollout.filters, *d_out.shape))
        self.y = torch.empty_like(self.d_y) if stats is None else self.d_y
        self.rstd: Tensor | None = None
        if stats is None:
            self.w0 = packed.w0[None]
            self.vectors, self.center = packed.without_norm
        else:
            self.rstd = torch.rsqrt(stats[:, rollout.hidden : 2 * rollout.hidden] + NORM_EPS)  # [groups, h]
            self.w0, self.vectors, self.center = fold_bwd(rollout, packed, stats)

    def run(self, sums: Sums) -> None:
        """Write d_seen and d_y, and add to sums all but the gradients of the filters."""
        tiles, padded_hidden = self.packed.tiles, self.packed.w0.shape[-1]
        if self.rstd is None:
            self._run_cells(tiles.cells)
            parts = self._run_weights(tiles.weights)
            g, gt = parts[..., : 2 * padded_hidden].sum(1, dtype=torch.float64).chunk(2, 1)
            g, gt = g[:, : self.rollout.hidden], gt[:, : self.rollout.hidden]
        else:
            g, gt = write_means(self.rollout, self.packed, self._run_sums(tiles.sums), self.vectors)
            has_cells = tiles.joins_backward(padded_hidden)
            parts = self._run_weights(tiles.weights, has_cells=has_cells)
            if not has_cells:
                self._run_cells(tiles.cells)
        self._add(sums, g, gt, self._sum_weights(parts))

    def _run_sums(self, tile: Tile) -> Tensor:
        """The sums of g and g t of each program, ``[B, programs, ...]``; y is written."""
        parts, sizes = self._new_parts(tile)
        kernels_small_bwd._nca_sums_bwd_kernel__small[self._grid(parts, tile)](
            self.seen, self.y, self.d_out, self.packed.filters, self.w0, self.packed.w1, self.vectors, self.center,
            parts, self.rollout.draw, self.index, *sizes, **self._constants(tile), **self.packed.network,
        )  # fmt: skip
        return parts

    def _run_cells(self, tile: Tile) -> None:
        """Write d_seen and d_y; without a norm, y too."""
        rollout = self.rollout
        num_tiles = tile.count(rollout.size, left=rollout.left)
        kernels_small_bwd._nca_cells_bwd_kernel__small[(rollout.batch * num_tiles,)](
            self.seen, self.y, self.d_out, self.d_seen, self.d_y, self.packed.filters, self.w0, self.packed.w1,
            self.vectors, self.center, rollout.draw, self.index, *self.packed.grid(rollout, tile),
            HAS_SEEN=rollout.perceive_from is not None, HAS_NORM=self.rstd is not None, **self._constants(tile),
            **self.packed.network,
        )  # fmt: skip

    def _run_weights(self, tile: Tile, *, has_cells: bool = False) -> Tensor:
        """The sums for the gradients of weights, ``[B, programs, ...]``; with has_cells d_seen and d_y are written."""
        parts, sizes = self._new_parts(tile)
        constants = self.packed.network | self._constants(tile)
        for name in ("KD", "KH", "KW", "PADDING"):  # y is there
            del constants[name]
        kernels_small_bwd._nca_weights_bwd_kernel__small[self._grid(parts, tile)](
            self.seen, self.y, self.d_out, self.d_seen, self.d_y, self.w0, self.packed.w1, self.vectors, self.center,
            parts, self.rollout.draw, self.index, *sizes, HAS_SEEN=self.rollout.perceive_from is not None,
            HAS_NORM=self.rstd is not None, CELLS=has_cells, **constants,
        )  # fmt: skip
        return parts

    def _new_parts(self, tile: Tile) -> tuple[Tensor, tuple[int, ...]]:
        """Room for what each program sums, ``[B, programs, 2 HP + (2 + F) HP CP]``, and the sizes of the grid."""
        features, padded_channels, padded_hidden = self.packed.w0.shape
        sizes = self.packed.grid(self.rollout, tile)
        programs = parts(sizes[5], shares=self.rollout.batch, programs=self.rollout.programs)
        width = 2 * padded_hidden + (1 + features) * padded_hidden * padded_channels
        return self.packed.w0.new_empty(self.rollout.batch, programs, width), sizes

    def _grid(self, parts: Tensor, tile: Tile) -> tuple[int, int, int]:
        return parts.shape[1], self.packed.w0.shape[-1] // tile.chunk, parts.shape[0]

    def _constants(self, tile: Tile) -> dict[str, Any]:
        named: dict[str, Any] = {"HC": tile.chunk, "TH": tile.rows, "TW": tile.columns, "num_warps": tile.warps}
        named |= {"FROZEN": self.rollout.spec.frozen_channels, "SLOPE": self.rollout.slope}
        return named | {"PER_SAMPLE": self.w0.shape[0] > 1}

    def _sum_weights(self, parts: Tensor) -> Tensor:
        """The gradients of w0 and w1 of each sample, [B, 2 + F, h, C], float64."""
        features, padded_channels, padded_hidden = self.packed.w0.shape
        summed = parts[..., 2 * padded_hidden :].sum(1, dtype=torch.float64)
        summed = summed.reshape(-1, 1 + features, padded_hidden, padded_channels)
        return summed[:, :, : self.rollout.hidden, : self.rollout.channels]

    def _add(self, sums: Sums, g: Tensor, gt: Tensor, d_weights: Tensor) -> None:
        """The gradients that follow from the sums of a launch."""
        rollout = self.rollout
        scale, _ = self.packed.modulation
        sums.out_weight += d_weights[:, -1].sum(0).t()
        d_w0 = d_weights[:, :-1]  # [B, 1 + F, h, C]
        if self.rstd is None:
            sums.hidden_bias += (scale * g).sum(0)
            sums.hidden_weight += d_w0.sum(0).movedim(0, 1).flatten(1)
            d_scale = gt
        else:
            assert rollout.norm_weight is not None and rollout.norm_bias is not None
            assert sums.norm_weight is not None and sums.norm_bias is not None
            # Both biases move the mean alone, which the norm removes: their gradients are zero.
            sums.hidden_weight += (d_w0 * self.rstd[:, None, :, None]).sum(0).movedim(0, 1).flatten(1)
            sums.norm_weight += (scale * gt).sum(0)
            sums.norm_bias += (scale * g).sum(0)
            d_scale = rollout.norm_weight * gt + rollout.norm_bias * g
        if sums.scale is not None and sums.shift is not None:
            sums.scale += d_scale
            sums.shift += g


def _add_through_filters(rollout: Rollout, packed: Packed, d_y: Tensor, d_seen: Tensor) -> None:
    """Add to d_seen the gradient that comes back through the filters."""
    tile = packed.tiles.cells
    num_tiles = tile.count(rollout.size)
    entries = [num_entries(k, rollout.spec.padding) for k in rollout.kernel]
    kernels_depthwise_bwd._nca_perceive_bwd_kernel__depthwise[(rollout.batch * num_tiles,)](
        d_y, d_seen, packed.filters, *rollout.size, tile.planes, num_tiles, rollout.batch * rollout.cells, TH=tile.rows,
        TW=tile.columns, ENTRIES_D=entries[0], ENTRIES_H=entries[1], ENTRIES_W=entries[2], num_warps=tile.warps,
        **packed.perception,
    )  # fmt: skip


def _add_filter_gradients(rollout: Rollout, packed: Packed, seen: Tensor, d_y: Tensor, sums: Sums) -> None:
    tile = packed.tiles.cells
    num_tiles = tile.count(rollout.size)
    all_tiles = rollout.batch * num_tiles
    _, _, kernel_h, kernel_w, _ = packed.filters.shape
    shares = rollout.filters * kernel_h * kernel_w
    programs = parts(all_tiles, shares=shares, programs=rollout.programs)
    part_sums = packed.filters.new_empty(programs, *packed.filters.shape)
    kernels_depthwise_bwd._nca_filters_bwd_kernel__depthwise[(programs, shares)](
        seen, d_y, part_sums, *rollout.size, tile.planes, num_tiles, all_tiles, rollout.batch * rollout.cells,
        TH=tile.rows, TW=tile.columns, num_warps=tile.warps, **packed.perception,
    )  # fmt: skip
    sums.perceive_weight += part_sums.sum(0, dtype=torch.float64)[..., : rollout.channels].movedim(-1, 1)
