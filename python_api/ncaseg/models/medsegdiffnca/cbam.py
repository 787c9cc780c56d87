"""CBAM: gates per channel, then gates per cell, as a pure function of a channels-last state."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SPATIAL_KERNEL = 7
CELLS_SIDE_BY_SIDE = 16


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


class Gates(NamedTuple):
    """What :func:`attend` multiplies a state by, and what that was computed from.

    Args:
        pooled: ``[2, B, C]``, maximum and mean over the cells.
        narrow: ``[2, B, r]``, after the ReLU.
        channels: ``[B, 1, ..., 1, C]``, gates of the channels.
        scaled: ``[B, *S, C]``, y: the state times ``channels``.
        maps: ``[B, 2, *S]``, maximum and mean of y over the channels.
        cells: ``[B, *S, 1]``, gates of the cells.
    """

    pooled: Tensor
    narrow: Tensor
    channels: Tensor
    scaled: Tensor
    maps: Tensor
    cells: Tensor


def attend(state: Tensor, params: CbamParams, out: Tensor | None = None) -> Tensor:
    """Scale the channels of a state, then its cells::

        y = state * sigmoid(mlp(max over cells) + mlp(mean over cells))           mlp: C -> r -> ReLU -> C
        w = y * sigmoid(conv([max over channels of y, mean over channels of y]))  zero padding

    Args:
        state: ``[B, *S, C]``.
        out: where to write the result, ``[B, *S, C]``; without gradients only.

    Returns:
        ``[B, *S, C]``.

    Reference:
        Woo et al., CBAM: Convolutional Block Attention Module, ECCV 2018, equations 2 and 3.
    """
    gates = compute_gates(state, params, out)
    return torch.mul(gates.scaled, gates.cells, out=out)


def compute_gates(state: Tensor, params: CbamParams, out: Tensor | None = None) -> Gates:
    """All of :func:`attend` but its last product; ``out`` is where ``scaled`` goes."""
    pooled = torch.stack([_max_over_cells(state), state.flatten(1, -2).mean(1)])
    narrow = F.relu(_dense(pooled, params.squeeze_weight, params.squeeze_bias))
    gates = _sigmoid(_dense(narrow, params.expand_weight, params.expand_bias).sum(0))
    channels = gates.reshape(-1, *[1] * (state.ndim - 2), state.shape[-1])
    y = torch.mul(state, channels, out=out)
    maps = torch.stack([y.amax(-1), y.mean(-1)], dim=1)
    cells = _sigmoid(convolve(maps, params.spatial_weight)).movedim(1, -1)
    return Gates(pooled, narrow, channels, y, maps, cells)


def convolve(x: Tensor, weight: Tensor) -> Tensor:
    """Cross-correlation in two or three dimensions with zero padding, ``[B, c_in, *S]`` to ``[B, c_out, *S]``."""
    kernel = weight.shape[2:]
    conv = F.conv2d if len(kernel) == 2 else F.conv3d
    return conv(x, weight, padding=[k // 2 for k in kernel])


def _max_over_cells(state: Tensor) -> Tensor:
    """``[B, *S, C]`` to ``[B, C]``; where no gradient is asked for, neighbouring cells are compared side by side.

    A row of few channels would not fill a vector register. A maximum of maxima shares its gradient among equal values
    unlike ``amax``, which gives each the same.
    """
    rows = state.flatten(1, -2)
    if torch.is_grad_enabled() and state.requires_grad:
        return rows.amax(1)
    group = math.gcd(rows.shape[1], CELLS_SIDE_BY_SIDE)
    return rows.reshape(len(rows), -1, group * rows.shape[2]).amax(1).unflatten(1, (group, -1)).amax(1)


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
