"""How much a program does, as pure functions of the problem."""

from __future__ import annotations

import math
from typing import NamedTuple

# A dot of Triton has at least so many rows, columns and terms.
_MIN_DOT = 16
# Beyond, accumulators of a program do not fit into its registers, or its weights, 8 bytes each, into shared memory.
_MAX_FEATURES, _MAX_WEIGHTS = 96, 12288
# From so many taps on, perception of a forward step with a norm is kept in memory rather than computed twice.
KEPT_TAPS = 100
_MAX_PLANE = 2**31 - 1  # offsets within a plane have 32 bits


class Tile(NamedTuple):
    """rows x columns cells of a plane, a march through so many planes, hidden units per chunk, warps."""

    rows: int
    columns: int
    planes: int
    chunk: int
    warps: int

    def count(self, size: tuple[int, int, int], *, left: int = 0) -> int:
        """Tiles of a sample, if the first column lies `left` cells outside."""
        return (
            -(-size[0] // self.planes) * -(-size[1] // self.rows) * -(-(size[2] + left) // self.columns)
        )  # fmt: skip


def round_up(number: int) -> int:
    """The next power of two that a dot takes."""
    return max(_MIN_DOT, 1 << (number - 1).bit_length())


def is_small(perception: str, size: tuple[int, ...], *, channels: int, filters: int, hidden: int) -> bool:
    """Whether the family for few channels takes a problem; a plane is all axes but the first."""
    plane = channels * math.prod(size[1:])
    features = (1 + filters) * round_up(channels)
    weights = (features + round_up(channels)) * round_up(hidden)
    fits = features <= _MAX_FEATURES and weights <= _MAX_WEIGHTS and plane <= _MAX_PLANE
    return perception == "depthwise" and fits


def choose_tile(
    size: tuple[int, int, int],
    kernel: tuple[int, int, int],
    *,
    left: int,
    batch: int,
    cells: int,
    chunk: int,
    programs: int,
) -> Tile:
    """A tile of about `cells` cells: 16 columns wide, so that rows of 16 channels are whole cache lines, if it can be.

    Marching saves reads if the filter is deep, but a long march leaves few programs: it is cut while fewer
    than `programs` would run, but not below twice the planes that are read in vain.
    """
    depth, height, width = size
    columns = min(cells, max(4, 1 << (left + width - 1).bit_length()), 16 if height > 1 else cells)
    rows = max(1, min(cells // columns, 1 << (height - 1).bit_length()), _MIN_DOT // columns)
    in_plane = batch * -(-height // rows) * -(-width // columns)
    planes = min(depth, max(2 * (kernel[0] - 1), 1, depth * in_plane // programs))
    return Tile(rows, columns, planes, chunk, 4 if rows * columns <= 64 else 8)


class Tiles(NamedTuple):
    """One for each kind of launch with hidden units: a step, sums of hidden units, of weights, gradients of cells."""

    fwd: Tile
    sums: Tile
    weights: Tile
    cells: Tile

    def joins_backward(self, padded_hidden: int) -> bool:
        """Whether one launch gets the gradients of weights and of cells, if perception is there."""
        return self.weights == self.cells and self.cells.chunk == padded_hidden


def choose_tiles(
    size: tuple[int, int, int],
    kernel: tuple[int, int, int],
    *,
    features: int,
    padded_hidden: int,
    left: int,
    batch: int,
    programs: int,
    precision: str,
    has_16_bits: bool,
    has_norm: bool,
) -> Tiles:
    """Tiles that spill no registers on sm_90. `features`: (1 + F) * CP, channels of a perception vector.

    Three TF32 products for one need so many registers that only 32 hidden units fit, and of weights 32 cells; so do
    the many planes that a deep filter keeps, and types to convert. With a norm the gradients of cells need no planes.
    """
    is_split, is_deep = precision == "tf32x3", kernel[0] > 3
    most = 64 if features <= 32 else 32

    def tile(cells: int, chunk: int) -> Tile:
        shape = {"left": left, "batch": batch, "programs": programs}
        return choose_tile(size, kernel, cells=min(cells, most), chunk=min(chunk, padded_hidden), **shape)

    wide = 32 if is_split or features > 32 else 64
    sums = tile(64, wide)
    if is_deep:
        sums = tile(32, 64) if is_split else tile(64, 64)._replace(warps=8)
    return Tiles(
        fwd=tile(32 if is_deep else 64, 32),
        sums=sums,
        weights=tile(32 if is_split or has_16_bits else 64, 16 if is_split and features > 32 else wide),
        cells=tile(32 if is_split else 64, 32) if is_deep and not has_norm else tile(64, wide),
    )


def parts(tiles: int, *, shares: int, programs: int) -> int:
    """Programs that share some tiles where each keeps sums and `shares` others do alike: at least one."""
    return max(1, min(tiles, programs // max(1, shares)))
