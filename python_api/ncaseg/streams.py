"""Random streams: everything random is a function of a seed and of what it is for, so there is no generator to save.

Fire bits are drawn by the kernel, from a seed that :func:`stream` makes. Torch is loaded by the functions that give
tensors alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

# What the streams of a training run are for.
WEIGHTS, ORDER, CROP, FIRE, VALIDATE, AUGMENT, SLICE, TIME, NOISE, BOX = range(10)


def stream(seed: int, *key: int) -> int:
    """A 63-bit seed: those of different keys name independent streams, equal keys give equal bits."""
    return int(np.random.SeedSequence((seed, *key)).generate_state(1, np.uint64)[0] >> np.uint64(1))


def numbers(*key: int) -> np.random.Generator:
    """Numpy's generator of the stream that a key names."""
    return np.random.default_rng(key)


def generator(seed: int, *key: int) -> torch.Generator:
    """Torch's generator of a stream: seeded with ``seed`` itself, or with :func:`stream` of the key."""
    import torch

    return torch.Generator().manual_seed(stream(seed, *key) if key else seed)


def fresh_seed() -> int:
    """A seed for the kernel from torch's default generator, where the caller names none."""
    import torch

    return int(torch.randint(2**62, ()))


def normal(shape: Sequence[int], *, seed: int, first_sample: int, step: int) -> torch.Tensor:
    """Standard normal numbers ``shape = [B, ...]``, float32 on the CPU.

    Those of a sample depend on (seed, its number, step) and on its own shape: not on its batch, nor on the device.

    Example:
        >>> both = normal((2, 4), seed=0, first_sample=5, step=3)
        >>> bool((both[1:] == normal((1, 4), seed=0, first_sample=6, step=3)).all())
        True
    """
    import torch

    samples = range(first_sample, first_sample + shape[0])
    return torch.stack([torch.randn(tuple(shape[1:]), generator=generator(seed, n, step)) for n in samples])
