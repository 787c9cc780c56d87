"""The gradient of CBAM in closed form, written in place: the caller gives the buffers of a state's size."""

import torch
from torch import Tensor
from torch.nn.grad import conv2d_weight, conv3d_weight

from ncaseg.models.medsegdiffnca.cbam import CbamParams, Gates, convolve


def attend_backward(
    d_out: Tensor, state: Tensor, params: CbamParams, gates: Gates, work: Tensor
) -> tuple[Tensor, CbamParams]:
    """The gradient of :func:`~ncaseg.models.medsegdiffnca.cbam.attend`; equal maxima share theirs, as in ``amax``.

    Args:
        d_out: ``[B, *S, C]``.
        state, params: what ``attend`` was given.
        gates: what :func:`ncaseg.models.medsegdiffnca.cbam.compute_gates` returned; ``gates.scaled`` is overwritten.
        work: ``[B, *S, C]``, overwritten.

    Returns:
        The gradient of the state, which is ``gates.scaled``, and those of the parameters.
    """
    d_y, d_spatial = _through_cells(d_out, params, gates, work)
    free = torch.mul(d_y, state, out=gates.scaled)
    d_pooled, d_dense = _through_channels(free.flatten(1, -2).sum(1), params, gates)
    shape = gates.channels.shape
    d_max, d_mean = (each.reshape(shape) for each in d_pooled)
    peak = gates.pooled[0].reshape(shape)
    equal = torch.eq(state, peak, out=free)
    count = equal.flatten(1, -2).sum(1).reshape(shape)
    cells = state[0, ..., 0].numel()
    d_state = equal.mul_(d_max / count).add_(d_mean / cells).addcmul_(d_y, gates.channels)
    return d_state, CbamParams._make((*d_dense, d_spatial))


def _through_cells(d_out: Tensor, params: CbamParams, gates: Gates, work: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of y, written into ``work``, and of the spatial weight."""
    y, gate = gates.scaled, gates.cells
    d_gate = torch.mul(d_out, y, out=work).sum(-1, keepdim=True)
    d_logit = (d_gate * gate * (1 - gate)).movedim(-1, 1).contiguous()
    weight = params.spatial_weight
    axes = tuple(range(2, weight.ndim))
    # PyTorch's gradient of a convolution's input is many times as slow as the convolution that it is.
    d_maps = convolve(d_logit, weight.transpose(0, 1).flip(axes))
    d_max, d_mean = (each[..., None] for each in d_maps.unbind(1))
    equal = torch.eq(y, gates.maps[:, 0, ..., None], out=work)
    count = equal.sum(-1, keepdim=True)
    d_y = equal.mul_(d_max / count).add_(d_mean / y.shape[-1]).addcmul_(d_out, gate)
    return d_y, _weight_gradient(gates.maps, weight, d_logit)


def _weight_gradient(x: Tensor, weight: Tensor, d_out: Tensor) -> Tensor:
    kernel = weight.shape[2:]
    gradient = conv2d_weight if len(kernel) == 2 else conv3d_weight
    return gradient(x, weight.shape, d_out, padding=tuple(k // 2 for k in kernel))


def _through_channels(d_gate: Tensor, params: CbamParams, gates: Gates) -> tuple[Tensor, tuple[Tensor, ...]]:
    """From ``[B, C]`` to the gradient of ``pooled``, and those of the dense layers' four tensors."""
    gate = gates.channels.reshape(d_gate.shape)
    d_logit = d_gate * gate * (1 - gate)
    d_narrow = (d_logit @ params.expand_weight) * (gates.narrow > 0)
    d_squeeze = d_narrow.flatten(0, 1).T @ gates.pooled.flatten(0, 1)
    d_expand = d_logit.T @ gates.narrow.sum(0)
    d_dense = (d_squeeze, d_narrow.sum((0, 1)), d_expand, len(gates.narrow) * d_logit.sum(0))
    return d_narrow @ params.squeeze_weight, d_dense
