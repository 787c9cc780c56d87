"""Random streams: everything random is a function of a seed and of what it is for, so there is no generator to save."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

# Purposes of the random streams.
WEIGHTS, ORDER, CROP, FIRE, VALIDATE, AUGMENT, SLICE, TIME, NOISE, BOX = range(10)


def stream(seed: int, *key: int) -> int:
    """A 63-bit seed: those of different keys name independent streams, equal keys give equal bits."""
    return int(np.random.SeedSequence((seed, *key)).generate_state(1, np.uint64)[0] >> np.uint64(1))


def normal(shape: Sequence[int], *, seed: int, first_sample: int, step: int) -> Tensor:
    """Standard normal numbers ``shape = [B, ...]``, float32 on the CPU.

    Those of a sample depend on (seed, its number, step) and on its own shape: not on its batch, nor on the device.

    Example:
        >>> both = normal((2, 4), seed=0, first_sample=5, step=3)
        >>> torch.equal(both[1:], normal((1, 4), seed=0, first_sample=6, step=3))
        True
    """
    rows = []
    for sample in range(first_sample, first_sample + shape[0]):
        word = np.random.SeedSequence((seed, sample, step)).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(word >> np.uint64(1)))
        rows.append(torch.randn(tuple(shape[1:]), generator=generator))
    return torch.stack(rows)
