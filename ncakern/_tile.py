"""What a spec can compute on a grid, and on a part of one: rules on sizes alone, for tensors and arrays alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ncakern._spec import RolloutSpec, check_int


def check_padding(size: tuple[int, ...], kernel: tuple[int, ...], padding: str) -> None:
    """Refuse an axis too small for its padding, which would have to reflect or wrap around more than once."""
    for axis, (cells, k) in enumerate(zip(size, kernel, strict=True)):
        reach = (k - 1) // 2
        need = {"reflect": reach + 1, "circular": reach}.get(padding, 1)
        if cells < need:
            raise ValueError(
                f"state must have at least {need} cells on spatial axis {axis} for kernel size {k} with "
                f"padding='{padding}'; got {cells} (size {size})"
            )


def resolve_tile(
    size: tuple[int, ...],
    origin: Sequence[int] | None,
    extent: Sequence[int] | None,
    spec: RolloutSpec | None = None,
    *,
    as_int: Callable[[str, Any], int] = check_int,
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The tile's ``(origin, extent)``, by default the whole image; refuse what the spec cannot compute on a tile."""
    if (origin is None) != (extent is None):
        given, missing = ("origin", "extent") if extent is None else ("extent", "origin")
        raise ValueError(f"{missing} must be given together with {given}: a tile needs both; got None")
    if origin is None or extent is None:
        return (0,) * len(size), size
    for name, value in (("origin", origin), ("extent", extent)):
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise TypeError(f"{name} must be a sequence of ints; got {type(value).__name__}")
        if len(value) != len(size):
            raise ValueError(f"{name} must have one entry per spatial axis ({len(size)}); got {tuple(value)}")
    origin = tuple(as_int("origin", cells) for cells in origin)
    extent = tuple(as_int("extent", cells) for cells in extent)
    _check_tile(size, origin, extent, spec)
    return origin, extent


def _check_tile(
    size: tuple[int, ...], origin: tuple[int, ...], extent: tuple[int, ...], spec: RolloutSpec | None = None
) -> None:
    """Refuse a tile outside its image, and what the spec cannot compute on a part of one."""
    if any(o + s > e for o, s, e in zip(origin, size, extent, strict=True)):
        raise ValueError(f"origin must place the tile inside extent={extent}; got {origin} for a tile of size {size}")
    is_part = extent != size
    if is_part and spec is not None and spec.norm != "none":
        raise ValueError(
            f"extent must equal the state's size {size} with norm='{spec.norm}', whose statistics need every cell; "
            f"got {extent}"
        )
    if is_part and spec is not None and spec.padding == "circular":
        raise ValueError(
            f"extent must equal the state's size {size} with padding='circular', which needs whole axes; got {extent}"
        )
