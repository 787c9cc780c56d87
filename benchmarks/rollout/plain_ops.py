"""The operations of plain.py that need a backward pass of their own: torch's own are slower, or keep more."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 4096  # cells at a time: the hidden layer of a block stays in the caches


class ByBlocks(torch.autograd.Function):
    """`compute(source[index], *weights)` block by block; going back computes each block again instead of keeping it."""

    @staticmethod
    def forward(ctx, compute: Callable[..., Tensor], source: Tensor, index: Tensor, *weights: Tensor) -> Tensor:
        ctx.compute = compute
        ctx.save_for_backward(source, index, *weights)
        return torch.cat([compute(gather(source, block), *weights) for block in index.split(BLOCK)])

    @staticmethod
    def backward(ctx, d_out: Tensor) -> tuple[Tensor | None, ...]:
        source, index, *weights = ctx.saved_tensors
        d_source, d_weights = torch.zeros_like(source), [torch.zeros_like(weight) for weight in weights]
        leaves = [weight.detach().requires_grad_() for weight in weights]
        for block, d_block in zip(index.split(BLOCK), d_out.split(BLOCK), strict=True):
            with torch.enable_grad():
                seen = gather(source, block).requires_grad_()
                d_seen, *parts = torch.autograd.grad(ctx.compute(seen, *leaves), (seen, *leaves), d_block)
            d_source.index_add_(0, block.flatten(), d_seen.view(-1, source.shape[1]))
            for total, part in zip(d_weights, parts, strict=True):
                total += part
        return None, d_source, None, *d_weights


def gather(rows: Tensor, index: Tensor) -> Tensor:
    """`[N, C]`, `[n, taps]` -> `[n, taps * C]`."""
    return rows.index_select(0, index.flatten()).view(len(index), -1)


class Moments(torch.autograd.Function):
    """Mean `[V]` and covariance `[V, V]` of `[N, V]`, with a gradient that is one product."""

    @staticmethod
    def forward(ctx, seen: Tensor) -> tuple[Tensor, Tensor]:
        mean = seen.mean(0)
        ctx.save_for_backward(seen, mean)
        return mean, seen.t() @ seen / len(seen) - torch.outer(mean, mean)

    @staticmethod
    def backward(ctx, d_mean: Tensor, d_covariance: Tensor) -> Tensor:
        seen, mean = ctx.saved_tensors
        linear = (d_covariance + d_covariance.t()) / len(seen)
        return torch.addmm(d_mean / len(seen) - mean @ linear, seen, linear)


class DepthwiseConvolution(torch.autograd.Function):
    """Without padding, with gradients that are several times faster than torch's own."""

    @staticmethod
    def forward(ctx, source: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(source, weight)
        return convolve(source, weight, bias)

    @staticmethod
    def backward(ctx, d_out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        source, weight = ctx.saved_tensors
        kernel = weight.shape[2:]
        margins = [k - 1 for k in reversed(kernel) for _ in range(2)]
        around = F.pad(d_out.movedim(1, -1), [0, 0, *margins]).movedim(-1, 1)
        d_source = convolve(around, weight.flip(*range(2, weight.dim())), None)
        return d_source, weight_gradient(source, d_out, kernel), d_out.sum((0, *range(2, d_out.dim())))


def convolve(source: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    function = F.conv2d if source.dim() == 4 else F.conv3d
    return function(source, weight, bias, groups=source.shape[1])


def weight_gradient(source: Tensor, d_out: Tensor, kernel: torch.Size) -> Tensor:
    """Correlate in 3D: small kernels plane by plane, large ones through the Fourier transform."""
    size = source.shape[2:]
    if max(kernel) > 3:
        product = torch.fft.rfftn(source.contiguous(), s=size) * torch.fft.rfftn(d_out.contiguous(), s=size).conj()
        return torch.fft.irfftn(product, s=size)[(..., *(slice(k) for k in kernel))].movedim(0, 1)
    planes, d_planes = source[0].movedim(1, 0), d_out[0].movedim(1, 0)  # the first axis as the batch
    weight = source.new_empty(source.shape[1], 1, *kernel[1:])
    options = [source.shape[1]], [1, 1], [0, 0], [1, 1], False, [0, 0], source.shape[1], [False, True, False]
    shifted = [planes[i : i + len(d_planes)] for i in range(kernel[0])]
    return torch.stack([torch.ops.aten.convolution_backward(d_planes, x, weight, *options)[1] for x in shifted], 2)
