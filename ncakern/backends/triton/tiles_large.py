"""Tile sizes of the kernels for any sizes, as pure functions of the problem."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ncakern.backends.triton.tiles import round_up

_MAX_CHANNELS, _MAX_OUTPUTS = 512, 1024  # 16 cells, the fewest that a dot takes, then fill a program's registers
_MAX_CELLS = 2**31 - 2**16  # cells have 32-bit numbers within a sample, and a tile looks beyond the last one
_REGISTERS = 16384  # float32 numbers of the largest block of a program: 64 registers of each thread of 8 warps
_PROGRAMS = 264  # two for each of the 132 multiprocessors of an H200
_CELLS_PER_SUM = 8192  # longest float32 sum of a weight gradient, in cells; sums of those are float64
_MAX_SPLITS = 256

# (cells, hidden units, loop stages) by kernel and precision: the largest without spills for 64 channels, 2 dense
# filters and 512 hidden units without a norm, compiled for sm_90 with Triton 3.9 and 8 warps. Three TF32 products take
# twice the registers: twice the cells spill 36 instructions in "cells", and 1617 on sm_80 in "gather". With a norm,
# the tiles of "weights" would spill 50 to 192. None of them has been timed.
_TILES = {
    "fwd": {"bf16": (128, 64, 2), "tf32": (128, 32, 2), "tf32x3": (64, 16, 2)},
    "weights": {"tf32": (32, 32, 1), "tf32x3": (16, 64, 1)},
    "norm_weights": {"tf32": (16, 64, 1)},  # likewise with a norm, in any precision
    "all_weights": {"tf32": (16, 32, 1)},
    "cells": {"tf32": (64, 16, 2), "tf32x3": (16, 32, 2)},
    "gather": {"tf32": (64, 16, 2), "tf32x3": (16, 16, 2)},
}


@dataclass(frozen=True, kw_only=True)
class LargeTile:
    """Constants and launch options of each kernel: BLOCK cells, HC hidden units, CT x FCT channels x outputs."""

    fwd: dict[str, Any]
    weights: dict[str, Any]
    all_weights: dict[str, Any]  # with a norm, of w0, which feels all cells and needs more registers
    cells: dict[str, Any]
    filters: dict[str, Any]
    gather: dict[str, Any]


def why_not(*, channels: int, filters: int, cells: int) -> str | None:
    """Why the kernels for any sizes cannot take these; None if they can."""
    if channels > _MAX_CHANNELS:
        return f"needs at most {_MAX_CHANNELS} channels; got {channels}"
    if filters * channels > _MAX_OUTPUTS:
        return f"needs filters * channels to be at most {_MAX_OUTPUTS}; got {filters} * {channels}"
    if cells > _MAX_CELLS:
        return f"needs at most {_MAX_CELLS} cells in a sample; got {cells}"
    return None


def choose_large_tile(channels: int, outputs: int, hidden: int, *, precision: str, has_norm: bool) -> LargeTile:
    """Tiles for C channels and F * C outputs: those of `_TILES`, or less where a block gets too wide.

    precision: "bf16" (the forward pass only), or of float32 numbers: "tf32", "tf32x3" or "ieee".
    """
    width, total = max(round_up(channels), round_up(outputs)), 2 * round_up(channels) + round_up(outputs)
    kind = "tf32x3" if precision == "ieee" else precision

    def tile(kernel: str) -> dict[str, Any]:
        cells, units, stages = _TILES[kernel].get(kind, _TILES[kernel]["tf32"])
        return {
            "BLOCK": max(16, min(cells, _REGISTERS // width)),
            "HC": max(16, min(units, round_up(hidden), _REGISTERS // total)),
            "STAGES": stages,
            **options,
        }

    options = {"num_warps": 8, "enable_fp_fusion": True}
    taken = min(round_up(channels), 64)
    gather = tile("gather")
    del gather["HC"]  # it meets no hidden units
    return LargeTile(
        fwd=tile("fwd") | {"CT": taken if kind == "bf16" else min(taken, 32)},
        weights=tile("norm_weights" if has_norm else "weights"),
        all_weights=tile("all_weights"),
        cells=tile("cells"),
        filters={"BLOCK": 64, "CT": taken, "FCT": min(round_up(outputs), 128), "STAGES": 2} | options,
        gather=gather,
    )


def num_splits(programs: int, cells: int, block: int) -> int:
    """Into how many programs to split a sum over a sample that ``programs`` programs would do otherwise.

    Enough to fill a device, and so many that no float32 sum gets long.
    """
    splits = max(-(-_PROGRAMS // programs), -(-cells // _CELLS_PER_SUM))
    return min(splits, -(-cells // block), _MAX_SPLITS)
