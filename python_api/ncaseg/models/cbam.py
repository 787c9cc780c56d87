"""CBAM: gates per channel, then gates per cell, as a pure function of a channels-last state."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SPATIAL_KERNEL = 7


class CbamParams(NamedTuple):
    """The tensors of :func:`attend`: C channels, r = C / reduction.

    Args:
        squeeze_weight, squeeze_bias: ``[r, C]``, ``[r]``.
        expand_weight, expand_bias: ``[C, r]``, ``[C]``.
        spatial_weight: ``[1, 2, *k]``, one odd kernel size per spatial axis.
    """

    squeeze_weight: Tensor
    squeeze_bias: Tensor
    expand_weight: Tensor
    expand_bias: Tensor
    spatial_weight: Tensor


def attend(state: Tensor, params: CbamParams) -> Tensor:
    """Scale the channels of a state, then its cells::

        y = state * sigmoid(mlp(max over cells) + mlp(mean over cells))           mlp: C -> r -> ReLU -> C
        w = y * sigmoid(conv([max over channels of y, mean over channels of y]))  zero padding

    Args:
        state: ``[B, *S, C]``.

    Returns:
        ``[B, *S, C]``.

    Reference:
        Woo et al., CBAM: Convolutional Block Attention Module, ECCV 2018, equations 2 and 3.
    """
    cells = tuple(range(1, state.ndim - 1))
    pooled = torch.stack([state.amax(cells), state.mean(cells)])  # [2, B, C]
    narrow = F.relu(_dense(pooled, params.squeeze_weight, params.squeeze_bias))
    gates = _sigmoid(_dense(narrow, params.expand_weight, params.expand_bias).sum(0))  # [B, C]
    y = state * gates.reshape(-1, *[1] * len(cells), state.shape[-1])
    maps = torch.stack([y.amax(-1), y.mean(-1)], dim=1)  # [B, 2, *S]
    kernel = params.spatial_weight.shape[2:]
    conv = F.conv2d if len(kernel) == 2 else F.conv3d
    return y * _sigmoid(conv(maps, params.spatial_weight, padding=[k // 2 for k in kernel])).movedim(1, -1)


def _dense(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``F.linear``, one row at a time: a matrix product may round a row differently in another batch."""
    return (x[..., None, :] * weight).sum(-1) + bias


def _sigmoid(x: Tensor) -> Tensor:
    """One sample at a time: the scalar code for the end of a tensor may round unlike the vector code before it."""
    return torch.stack([torch.sigmoid(sample) for sample in x])


class CBAM(nn.Module):
    """The parameters of :func:`attend`, as PyTorch's own layers start.

    Args:
        ndim: 2 or 3 spatial axes.
        channels: C.
        reduction: C / r; r is at least 1.

    Example:
        >>> sum(p.numel() for p in CBAM(2, 64).parameters())
        678
    """

    def __init__(self, ndim: int, channels: int, reduction: int = 16) -> None:
        super().__init__()
        narrow = max(1, channels // reduction)
        shapes = {
            "squeeze_weight": ((narrow, channels), channels),
            "squeeze_bias": ((narrow,), channels),
            "expand_weight": ((channels, narrow), narrow),
            "expand_bias": ((channels,), narrow),
            "spatial_weight": ((1, 2, *[SPATIAL_KERNEL] * ndim), 2 * SPATIAL_KERNEL**ndim),
        }
        for name, (shape, fan_in) in shapes.items():
            bound = 1 / math.sqrt(fan_in)
            setattr(self, name, nn.Parameter(torch.empty(shape).uniform_(-bound, bound)))

    @property
    def params(self) -> CbamParams:
        return CbamParams(*[getattr(self, name) for name in CbamParams._fields])

    def forward(self, state: Tensor) -> Tensor:
        """``[B, *S, C]`` to ``[B, *S, C]``."""
        return attend(state, self.params)
