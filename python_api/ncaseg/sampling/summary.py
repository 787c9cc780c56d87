"""Many samples of one image, and what they say together."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ncaseg.ensemble import nqm


class Sampled(NamedTuple):
    """An ensemble of samples of one case, as probabilities on the network's grid, the background first where it is one.

    ``members`` ``[N, C, *S]``; their ``mean`` and population ``variance`` ``[C, *S]``; ``uncut`` ``[C, *S]``, the mean
    of what the network answered before it was cut to [0, 1], where that differs.
    """

    members: np.ndarray
    mean: np.ndarray
    variance: np.ndarray
    uncut: np.ndarray | None = None


class Summary(NamedTuple):
    """``mean`` and population ``variance`` ``[...]`` over the samples, and their quality score ``nqm``."""

    mean: Tensor
    variance: Tensor
    nqm: float


def summarise(samples: Tensor) -> Summary:
    """What samples ``[N, ...]`` of a mask in 0..1 say together.

    Samples lie on the CPU. For NQM see :func:`ncaseg.ensemble.nqm`: the higher, the less the samples agree.

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
