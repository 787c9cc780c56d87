"""The words that name a rollout's random stream, in a tensor on the device, and which cells fire by them.

Kernels read them there, so a launch captured in a graph fires other cells once other words are written to the tensor.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ncakern._spec import RolloutSpec
from ncakern.backends.triton.common import fires, fires_in_quads

# seed, first step, first sample, threshold, first row, rows of a plane, first cell of a row; all global
NUM_WORDS = 7
_WORDS = ("SEED", "STEP", "SAMPLE", "THRESHOLD", "ROW", "ROWS", "X")


@triton.jit(do_not_specialize=_WORDS)
def _nca_draw_kernel(p_draw, SEED, STEP, SAMPLE, THRESHOLD, ROW, ROWS, X):
    """draw = the words. As arguments of a launch they reach the device without a copy that the host waits for."""
    zero = tl.full((), 0, tl.int64)  # the interpreter holds 2**31 in 32 bits: only a sum makes 64 of them
    tl.store(p_draw, SEED + zero)
    tl.store(p_draw + 1, STEP + zero)
    tl.store(p_draw + 2, SAMPLE + zero)
    tl.store(p_draw + 3, THRESHOLD + zero)
    tl.store(p_draw + 4, ROW + zero)
    tl.store(p_draw + 5, ROWS + zero)
    tl.store(p_draw + 6, X + zero)


def write_draw(
    draw: Tensor,
    *,
    spec: RolloutSpec,
    seed: int | Tensor,
    first_step: int,
    first_sample: int,
    origin: tuple[int, int, int],
    extent: tuple[int, int, int],
) -> None:
    """Fill ``draw``, int64 ``[NUM_WORDS]``. A cell fires if its Philox word is below the threshold.

    A seed that is a tensor is read on the device: the host does not wait for it, and a capture sees later values.
    """
    threshold = int(spec.fire_rate * 2**32)  # does not fit in 32 bits at rate 1
    number = 0 if isinstance(seed, Tensor) else seed
    words = (number, first_step, first_sample, threshold, origin[0] * extent[1] + origin[1], extent[1], origin[2])
    _nca_draw_kernel[(1,)](draw, *words, num_warps=1, enable_fp_fusion=True)
    if isinstance(seed, Tensor):
        draw[0].copy_(seed)


@triton.jit
def load_draw(p_draw, STEP, b):
    """The words for step STEP of the rollout and sample b of the batch."""
    step = tl.load(p_draw + 1) + STEP
    sample = tl.load(p_draw + 2) + b
    rest = (tl.load(p_draw + 3), tl.load(p_draw + 4), tl.load(p_draw + 5), tl.load(p_draw + 6))
    return (tl.load(p_draw), step, sample) + rest


@triton.jit
def cells_fire(draw, cell, H, W):
    """Which cells of the sample fire: one bool for each number in cell."""
    row = draw[4] + draw[5] * (cell // W // H) + cell // W % H
    return fires(draw[0], draw[1], draw[2], draw[3], row, cell % W + draw[6])


@triton.jit
def tile_fires(draw, d, h0, quad0, TH: tl.constexpr, TW: tl.constexpr):
    """Which cells of a tile of plane d fire: [TH * TW]. quad0: whole groups of four cells left of the tile."""
    quad = tl.arange(0, TH * TW // 4)
    row = draw[4] + draw[5] * d + (h0 + quad // (TW // 4))
    group = (draw[6] >> 2) + (quad0 + quad % (TW // 4))
    return fires_in_quads(draw[0], draw[1], draw[2], draw[3], row, group, TH * TW)
