"""The list of a step's firing cells, built on the device: who has it visits about half of the cells, and no others.

Cells are numbered within their sample. The order of a list is that of the cells, so sums over it have a fixed order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ncakern.backends.triton.draw import cells_fire, load_draw
from ncakern.backends.triton.step import Rollout

_BLOCK = 1024
_OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}


@triton.jit(do_not_specialize=["STEP", "CELLS", "H", "W"])
def _nca_work_list_fwd_kernel(
    p_ends,
    p_list,
    p_draw,
    STEP,
    CELLS,
    H,
    W,
    FILL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Without FILL: ends[b, i] = number of firing cells in block i of sample b.

    With FILL, ends being the running sums of that: list[b, ends[b, i - 1] : ends[b, i]] = the firing cells of block i.
    """
    num_blocks = tl.cdiv(CELLS, BLOCK)
    b, i = tl.program_id(0) // num_blocks, tl.program_id(0) % num_blocks
    cell = i * BLOCK + tl.arange(0, BLOCK)
    does = cells_fire(load_draw(p_draw, STEP, b), cell, H, W) & (cell < CELLS)
    count = tl.sum(does.to(tl.int32), 0)

    if FILL:
        start = tl.load(p_ends + tl.program_id(0)) - count
        place = start + tl.cumsum(does.to(tl.int32), 0) - 1
        tl.store(p_list + b.to(tl.int64) * CELLS + place, cell, mask=does)
    else:
        tl.store(p_ends + tl.program_id(0), count)


def work_list(rollout: Rollout, index: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Firing cells of step ``index``: their numbers, int32 ``[B, cells]``, of which the first ``count[b]`` are set."""
    num_blocks = -(-rollout.cells // _BLOCK)
    blocks = torch.empty((rollout.batch, num_blocks), dtype=torch.int32, device=device)
    listed = torch.empty((rollout.batch, rollout.cells), dtype=torch.int32, device=device)
    stream = (rollout.draw, index, rollout.cells, *rollout.size[1:])
    grid = (rollout.batch * num_blocks,)
    _nca_work_list_fwd_kernel[grid](blocks, listed, *stream, FILL=False, BLOCK=_BLOCK, **_OPTIONS)
    ends = blocks.cumsum(1, dtype=torch.int32)
    _nca_work_list_fwd_kernel[grid](ends, listed, *stream, FILL=True, BLOCK=_BLOCK, **_OPTIONS)
    return listed, ends[:, -1].contiguous()
