"""Many samples of one image: reproducible noise for each of them, and what they say together."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ncaseg.quality import nqm


class Summary(NamedTuple):
    """``mean`` and population ``variance`` ``[...]`` over the samples, and their quality score ``nqm``."""

    mean: Tensor
    variance: Tensor
    nqm: float


def summarise(samples: Tensor) -> Summary:
    """What samples ``[N, ...]`` of a mask in 0..1 say together.

    Samples lie on the CPU. For NQM see :func:`ncaseg.quality.nqm`: the higher, the less the samples agree.

    Raises:
        ValueError: there is no sample.

    Example:
        >>> summarise(torch.tensor([[1.0, 0.0], [0.0, 0.0]])).nqm
        1.0

    Reference:
        Kalkhof and Mukhopadhyay, M3D-NCA, MICCAI 2023, section 2.3.
    """
    if samples.shape[0] < 1:
        raise ValueError("samples must hold at least one; got none")
    variance, mean = torch.var_mean(samples, dim=0, correction=0)
    return Summary(mean, variance, nqm(mean.numpy(), variance.numpy()))


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
