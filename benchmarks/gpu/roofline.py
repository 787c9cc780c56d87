"""The least time that a rollout can take on a card: its work over ceilings that are measured on that very card."""

import math
import os
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.gpu.cases import TINY
from benchmarks.harness.cases import Case

FORWARD_PASSES_OF_TRAINING = 4  # forward, the same again while going back, and two products for each of them


@dataclass(frozen=True)
class Ceilings:
    """What a card reaches: bytes/s of a copy (read and written counted), and FLOP/s of matrix products."""

    copy: float
    fp32: float
    tf32: float
    bf16: float


@dataclass(frozen=True)
class Work:
    """The fewest bytes through memory, and the FLOP, of one cell and step."""

    bytes: float
    matrix_flop: float
    vector_flop: float


def work(case: Case, mode: str, *, state_bytes: int) -> Work:
    """Count: a state is read once (with a norm twice) and written once; cells that do not fire need no dense layer.

    Going back reads the state and its gradient and writes a gradient. Depthwise filters run on the vector units.
    """
    features, taps = (1 + case.num_filters) * case.channels, case.kernel_size ** len(case.size)
    is_dense, has_norm = case.perception == "dense", case.norm != "none"
    firing = 1.0 if has_norm else case.fire_rate  # the statistics are those of all cells
    perceive = 2 * taps * case.num_filters * case.channels * (case.channels if is_dense else 1) * firing
    hidden, out = 2 * features * case.hidden * firing, 2 * case.hidden * case.channels * case.fire_rate
    plane = case.channels * state_bytes
    moved = plane * (3 if has_norm else 2)
    if mode == "training":
        moved += plane * (5 if has_norm else 3)
    passes = FORWARD_PASSES_OF_TRAINING if mode == "training" else 1
    matrix, vector = hidden + out + (perceive if is_dense else 0), 0 if is_dense else perceive
    return Work(moved, passes * matrix, passes * vector)


def floor_ms(case: Case, mode: str, arithmetic: str, ceilings: Ceilings, *, is_split: bool) -> float:
    """The larger of the times for the bytes, the matrix products and the rest; a split product is three TF32 ones."""
    need = work(case, mode, state_bytes=2 if arithmetic == "bf16" else 4)
    rate = ceilings.tf32 / 3 if is_split else getattr(ceilings, arithmetic)
    seconds = max(need.bytes / ceilings.copy, need.matrix_flop / rate, need.vector_flop / ceilings.fp32)
    return 1e3 * seconds * case.cell_steps


def measure_ceilings() -> Ceilings:
    """Measure them: a copy of 2 GiB, and square products on random numbers; small ones where grids are tiny."""
    numbers, size = (2**16, 64) if os.environ.get(TINY) else (2**29, 8192)
    source = torch.rand(numbers, device="cuda")
    target = torch.empty_like(source)
    copy = 2 * source.numel() * source.itemsize / _seconds(lambda: target.copy_(source))
    before = torch.backends.cuda.matmul.allow_tf32
    a, b = (torch.rand(size, size, device="cuda") for _ in range(2))
    a16, b16 = a.bfloat16(), b.bfloat16()
    torch.backends.cuda.matmul.allow_tf32 = False
    fp32 = _seconds(lambda: a @ b)
    torch.backends.cuda.matmul.allow_tf32 = True
    tf32 = _seconds(lambda: a @ b)
    torch.backends.cuda.matmul.allow_tf32 = before
    flop = 2 * math.pow(size, 3)
    return Ceilings(copy, flop / fp32, flop / tf32, flop / _seconds(lambda: a16 @ b16))


def _seconds(call: Callable[[], object]) -> float:
    """The median of ten calls by device events, after three that warm up."""
    times = []
    for _ in range(13):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(1e-3 * start.elapsed_time(end))
    return statistics.median(times[3:])
