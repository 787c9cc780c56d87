"""The geometry of resolution levels as plain integers: which sizes they have, and what a level works on in training.

Triples have one entry per axis. Sequences ordered by level run from coarse to fine.
"""

import math
from collections.abc import Sequence

Triple = tuple[int, int, int]


def factors_of(scales: Sequence[Triple]) -> list[Triple]:
    """How many full-resolution cells one cell of each level spans, per axis.

    Example:
        >>> factors_of([(2, 2, 1), (4, 4, 2)])
        [(8, 8, 2), (4, 4, 2), (1, 1, 1)]
    """
    spans: list[Triple] = [(1, 1, 1)]
    for scale in reversed(scales):
        spans.insert(0, times(spans[0], scale))
    return spans


def working_sizes(size: Triple, scales: Sequence[Triple], patches: Sequence[Sequence[int]] = ()) -> list[Triple]:
    """What each level works on in training: the whole of its resolution (rounded up), or a patch cut out of it.

    Args:
        size: cells of the volume at full resolution.
        scales: factors between neighbouring levels, one less than levels.
        patches: a patch per level, empty for the whole level; a patch larger than what is left takes what is left.
            Without entries every level but the first gets a patch of the size of level 0.

    Example:
        >>> working_sizes((64, 64, 51), [(2, 2, 2)])
        [(32, 32, 26), (32, 32, 26)]
        >>> working_sizes((64, 64, 51), [(2, 2, 2)], [(), ()])
        [(32, 32, 26), (64, 64, 51)]
    """
    sizes: list[Triple] = []
    if not patches:
        patches = [(), *(ceil_divide(size, factors_of(scales)[0]) for _ in scales)]
    for factors, patch in zip(factors_of(scales), patches, strict=True):
        have = ceil_divide(size, factors)
        sizes.append(smaller(patch, have) if patch else have)
        size = region(size, sizes[-1], factors)
    return sizes


def region(size: Triple, patch: Triple, factors: Triple) -> Triple:
    """Full-resolution cells under a patch of a level; an axis that the patch fills keeps all of its cells."""
    x, y, z = (min(p * f, s) for s, p, f in zip(size, patch, factors, strict=True))
    return x, y, z


def scales_of(sizes: Sequence[Triple]) -> tuple[Triple, ...]:
    """The factors between levels of the given sizes.

    Raises:
        ValueError: no whole factor takes a level to the next (rounded up); the message names level and axis.

    Example:
        >>> scales_of([(40, 40, 6), (80, 80, 6), (160, 160, 12)])
        ((2, 2, 1), (2, 2, 2))
    """
    scales = []
    for level, (coarse, fine) in enumerate(zip(sizes, sizes[1:], strict=False)):
        x, y, z = (-(-f // c) for c, f in zip(coarse, fine, strict=True))
        for axis, c, f, factor in zip("XYZ", coarse, fine, (x, y, z), strict=True):
            if c != -(-f // factor):
                raise ValueError(
                    f"model.sizes must be a whole factor apart on each axis, rounded up; on axis {axis} level {level} "
                    f"has {c} cells and level {level + 1} has {f}: {factor} times fewer would be {-(-f // factor)}"
                )
        scales.append((x, y, z))
    return tuple(scales)


def steps_to_cross(sizes: Sequence[Sequence[int]], kernel_sizes: Sequence[int]) -> tuple[int, ...]:
    """Steps after which every cell of a level has heard of every other: the longest side over (k - 1) / 2, rounded up.

    Raises:
        ValueError: a kernel of size 1, which carries nothing.

    Example:
        >>> steps_to_cross([(80, 80, 6), (80, 80, 6)], [7, 3])
        (27, 80)

    Reference:
        Kalkhof and Mukhopadhyay, M3D-NCA, MICCAI 2023, section on the number of steps.
    """
    for level, kernel in enumerate(kernel_sizes):
        if kernel < 3:
            raise ValueError(f'model.steps "auto" needs kernels of at least 3; level {level} has {kernel}')
    return tuple(math.ceil(max(size) / (kernel // 2)) for size, kernel in zip(sizes, kernel_sizes, strict=True))


def check_reflection(sizes: Sequence[Triple], kernel_sizes: Sequence[int], ndim: int = 3) -> None:
    """Make sure that reflect padding can be done on every level: it needs more than (k - 1) / 2 cells per axis.

    Raises:
        ValueError: an axis is too short; the message names it and the level.
    """
    for level, (kernel, size) in enumerate(zip(kernel_sizes, sizes, strict=True)):
        for axis, length in list(zip("XYZ", size, strict=True))[:ndim]:
            if length <= kernel // 2:
                raise ValueError(
                    f"image is too small: level {level} has {length} cells on axis {axis}, and kernel {kernel} "
                    f"with reflect padding needs at least {kernel // 2 + 1}; use a smaller kernel or fewer levels"
                )


def pad_size(size: Triple, scales: Sequence[Triple], pad: str) -> Triple:
    """The size that a model works on: a multiple of all factors, unless ``pad`` is "none"."""
    factors = factors_of(scales)[0]
    return size if pad == "none" else times(ceil_divide(size, factors), factors)


def or_native(wanted: Sequence[int], native: Sequence[int]) -> Triple:
    """The cells wanted; 0 keeps the native size of an axis, and no sizes at all that of every axis.

    Example:
        >>> or_native((8, 8, 0), (35, 50, 36)), or_native((), (35, 50, 36))
        ((8, 8, 36), (35, 50, 36))
    """
    x, y, z = (want if want > 0 else have for want, have in zip(wanted or native, native, strict=True))
    return x, y, z


def times(triple: Triple, factors: Triple) -> Triple:
    """The product per axis."""
    x, y, z = (t * f for t, f in zip(triple, factors, strict=True))
    return x, y, z


def ceil_divide(size: Triple, factors: Triple) -> Triple:
    """The quotient per axis, rounded up."""
    x, y, z = (-(-s // f) for s, f in zip(size, factors, strict=True))
    return x, y, z


def floor_divide(triple: Triple, factors: Triple) -> Triple:
    """The quotient per axis, rounded down."""
    x, y, z = (t // f for t, f in zip(triple, factors, strict=True))
    return x, y, z


def minus(a: Triple, b: Triple) -> Triple:
    """The difference per axis."""
    x, y, z = (p - q for p, q in zip(a, b, strict=True))
    return x, y, z


def larger(a: Triple, b: Triple) -> Triple:
    """The maximum per axis."""
    x, y, z = (max(p, q) for p, q in zip(a, b, strict=True))
    return x, y, z


def smaller(a: Sequence[int], b: Triple) -> Triple:
    """The minimum per axis."""
    x, y, z = (min(p, q) for p, q in zip(a, b, strict=True))
    return x, y, z
