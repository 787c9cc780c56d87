"""How a level is cut into tiles: the cheapest way that fits into a memory budget."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from ncakern import RolloutSpec
from ncakern.arrays import ArrayParams
from ncaseg.budget import show_bytes
from ncaseg.lean.disk import Box
from ncaseg.levels import Triple

# A pass reads and writes every state once, and so does the kernel for itself: measured 147 ns per cell with 16 channels
# against 67 ns for a step (k = 3, hidden 64; Intel Xeon with AVX-512, one thread, files in the page cache, 2026-11-21).
PASS_IN_STEPS = 2.0


@dataclass(frozen=True)
class TilePlan:
    """How a level is cut: tiles per axis, steps at a time, and the work in multiples of that of the whole."""

    size: Triple
    cuts: Triple
    steps_at_once: int
    overhead: float

    @property
    def is_whole(self) -> bool:
        return self.cuts == (1, 1, 1)

    @property
    def tile(self) -> Triple:
        x, y, z = (-(-n // c) for n, c in zip(self.size, self.cuts, strict=True))
        return x, y, z

    def boxes(self) -> list[Box]:
        """The tiles, which share no cell and leave none out."""
        axes = [
            [slice(n * i // cuts, n * (i + 1) // cuts) for i in range(cuts)]
            for n, cuts in zip(self.size, self.cuts, strict=True)
        ]
        return [(x, y, z) for x, y, z in itertools.product(*axes)]

    def __str__(self) -> str:
        if self.is_whole:
            return f"{_shape(self.size)} in one piece"
        steps = f"{self.steps_at_once} step{'s' * (self.steps_at_once > 1)} at a time"
        count = self.cuts[0] * self.cuts[1] * self.cuts[2]
        return f"{_shape(self.size)} in {count} tiles of {_shape(self.tile)}, {steps}, {self.overhead:.2f}x the work"


def plan_tiles(size: Triple, params: ArrayParams, spec: RolloutSpec, steps: int, budget_bytes: int) -> TilePlan:
    """The cut that costs least within a budget: the whole level if it fits.

    The cost of s steps at a time is, per pass, ``s * prod((n_i + 2 s r_i) / n_i) + 2`` over tiles of n_i cells with
    reach r_i = (k_i - 1) / 2; see ``PASS_IN_STEPS``. With a norm s is 1.

    Raises:
        ValueError: the budget does not hold the smallest tile, or the padding is circular, which needs whole axes.
    """
    whole = TilePlan(size, (1, 1, 1), max(1, steps), 1.0)
    if tile_bytes(size, params, spec) <= budget_bytes:
        return whole
    if spec.padding == "circular":
        raise ValueError(
            f"memory must hold whole levels with padding='circular', {show_bytes(tile_bytes(size, params, spec))} for "
            f"{_shape(size)} cells; got {show_bytes(budget_bytes)} for it. Give more memory"
        )
    reach = reach_of(params)
    best, best_cost, least = None, float("inf"), float("inf")
    most_steps = 1 if spec.norm != "none" else max(1, steps)
    for s in sorted({-(-most_steps // passes) for passes in range(1, most_steps + 1)}):
        for cuts in itertools.product(*(_cut_choices(n) for n in size)):
            box = _largest_box(size, cuts, reach, s)
            need = tile_bytes(box, params, spec, in_tiles=True)
            least = min(least, need)
            if need > budget_bytes:
                continue
            overhead = math.prod((n + 2 * s * r * (c - 1)) / n for n, r, c in zip(size, reach, cuts, strict=True))
            cost = -(-steps // s) * (s * overhead + PASS_IN_STEPS)
            if cost < best_cost:
                best, best_cost = TilePlan(size, (cuts[0], cuts[1], cuts[2]), s, overhead), cost
    if best is None:
        raise ValueError(
            f"memory must hold at least one tile with its halo: {show_bytes(least)} more than what is in use already; "
            f"{show_bytes(max(0, budget_bytes))} are left. Give more memory"
        )
    return best


def tile_bytes(box: Triple, params: ArrayParams, spec: RolloutSpec, *, in_tiles: bool = False) -> int:
    """Memory for a rollout on a box: the array, and the kernel's padded states (``csrc/forward/rollout.inl``)."""
    filters, channels = params.perceive_bias.shape
    cells = box[0] * box[1] * box[2]
    padded = box[0] * box[1] * (box[2] + 2 * reach_of(params)[2])
    has_norm = spec.norm != "none"
    # In place: the state, and the kernel's two states, or its state and perception. In tiles with a norm the updates
    # hold two and the statistics one, and the kernel keeps the memory of both.
    inner = 2 if not has_norm else 3 if in_tiles else 1 + filters
    return 4 * channels * (cells + inner * padded)


def reach_of(params: ArrayParams) -> Triple:
    """Cells that a step looks away from its own, per axis."""
    x, y, z = (k // 2 for k in params.perceive_weight.shape[-3:])
    return x, y, z


def _largest_box(size: Triple, cuts: tuple[int, ...], reach: Triple, steps: int) -> Triple:
    x, y, z = (min(n, -(-n // c) + 2 * steps * r * (c > 1)) for n, c, r in zip(size, cuts, reach, strict=True))
    return x, y, z


def _cut_choices(n: int) -> list[int]:
    """Numbers of tiles to try on an axis: few, but none far from the best."""
    return [c for c in (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64, 96, 128) if c <= n]


def _shape(size: Triple) -> str:
    return "x".join(map(str, size))
