"""The fire mask in torch: defines which cells update, bit for bit, for every backend.

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) in int64 arithmetic that never
overflows. Key and counter are named in ``DESIGN.md``, "Fire mask".
"""

from __future__ import annotations

import torch
from torch import Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_MASK32 = 0xFFFFFFFF
_MASK16 = 0xFFFF


def philox4x32(counter: tuple[Tensor, ...], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Philox4x32-10: four counter words and two key words (int64, each in [0, 2**32)) -> four output words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        hi0, lo0 = _mul32(_MULTIPLIERS[0], c0)
        hi1, lo1 = _mul32(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = hi1 ^ c1 ^ k0, lo1, hi0 ^ c3 ^ k1, lo0
        k0, k1 = (k0 + _WEYL[0]) & _MASK32, (k1 + _WEYL[1]) & _MASK32
    return c0, c1, c2, c3


def _mul32(multiplier: int, word: Tensor) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of a 32 x 32 bit product, by halves: no intermediate exceeds 2**49."""
    low = multiplier * (word & _MASK16)
    high = multiplier * (word >> 16) + (low >> 16)
    return high >> 16, (high & _MASK16) << 16 | low & _MASK16


def seed_tensor(seed: int | Tensor | None) -> Tensor:
    """The seed as a 0-d int64 tensor; None draws one from torch's default generator, which ``manual_seed`` governs."""
    if seed is None:
        return torch.randint(-(2**63), 2**63 - 1, (), dtype=torch.int64)
    return seed if isinstance(seed, Tensor) else torch.full((), seed, dtype=torch.int64)


def fire_bits(
    shape: tuple[int, ...],
    *,
    seed: Tensor,
    step: int,
    fire_rate: float,
    first_sample: int,
    origin: tuple[int, ...],
    extent: tuple[int, ...],
    device: torch.device,
) -> Tensor:
    """Which cells fire: bool ``[B, *S]`` for ``shape = (B, *S)``. Checked arguments of :func:`ncakern.fire_mask`."""
    batch, *rows, width = shape

    def word(start: int, count: int) -> Tensor:
        return torch.arange(start, start + count, device=device) & _MASK32

    row = word(origin[0], rows[0])  # [D] or [H]
    if len(rows) == 2:
        row = (row[:, None] * extent[1] + word(origin[1], rows[1])) & _MASK32  # [D, H]
    # One Philox call gives four neighbouring cells of the last axis.
    first_group, last_group = origin[-1] >> 2, (origin[-1] + width - 1) >> 2
    group = word(first_group, last_group - first_group + 1)  # [G]
    sample = word(first_sample & _MASK32, batch).reshape(batch, *[1] * len(shape[1:]))  # [B, 1, (1,) 1]
    zero = torch.zeros_like(sample)

    words = philox4x32(
        (group + zero, row[..., None], sample, zero + (step & _MASK32)),
        (seed & _MASK32, (seed >> 32) & _MASK32),
    )  # four of [B, (D,) H, G]
    offset = origin[-1] - 4 * first_group
    word_of_cell = torch.stack(words, dim=-1).flatten(-2)[..., offset : offset + width]  # [B, *S]
    return word_of_cell < int(fire_rate * 2**32)
