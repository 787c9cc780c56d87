"""What generators and discriminators of 2 and 3 axes are made of: initial values, embeddings, norms, resampling."""

import math
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Conv = nn.Conv2d | nn.Conv3d
Layer = TypeVar("Layer", bound=nn.Linear | nn.Conv2d | nn.Conv3d)
TINY = 1e-10  # scale of layers that begin at almost nothing
SQRT_HALF = math.sqrt(0.5)


def conv(ndim: int, channels: int, out: int, kernel: int = 3, *, stride: int = 1, bias: bool = True) -> Conv:
    """A convolution of 2 or 3 axes; with stride 1 it keeps the size, else it does not pad."""
    kind = nn.Conv2d if ndim == 2 else nn.Conv3d
    return kind(channels, out, kernel, stride=stride, padding=kernel // 2 if stride == 1 else 0, bias=bias)


@torch.no_grad()
def init_uniform(layer: Layer, *, scale: float = 1.0, mode: str = "average") -> Layer:
    """Draw the weight of a linear or convolution from U(-a, a) of variance ``scale / fan``; the bias is zero.

    ``mode`` is the fan: "average" of both, or "out".
    """
    weight = layer.weight
    receptive = weight[0, 0].numel()
    fan_in, fan_out = weight.shape[1] * receptive, weight.shape[0] * receptive
    bound = math.sqrt(3 * scale / (fan_out if mode == "out" else (fan_in + fan_out) / 2))
    weight.uniform_(-bound, bound)
    if layer.bias is not None:
        layer.bias.zero_()
    return layer


def group_norm(channels: int, *, affine: bool = True, limit: int | None = None, eps: float = 1e-6) -> nn.GroupNorm:
    """A group norm of ``min(channels // 4, 32)`` groups, or at most ``limit``; of fewer where that does not divide."""
    most = max(1, min(channels // 4, 32) if limit is None else limit)
    groups = next(g for g in range(min(most, channels), 0, -1) if channels % g == 0)
    return nn.GroupNorm(groups, channels, eps=eps, affine=affine)


def embed_time(tau: Tensor, width: int) -> Tensor:
    """Sines, then cosines of tau ``[B]`` at ``width / 2`` frequencies from 1 to 1/10000: float32 ``[B, width]``."""
    half = width // 2
    rate = math.log(10_000) / max(1, half - 1)
    angles = tau.float()[:, None] * torch.exp(-rate * torch.arange(half, device=tau.device))[None]
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class LatentMap(nn.Sequential):
    """z ``[B, latent]``, scaled to a mean square of 1, through ``layers`` dense layers with SiLU: ``[B, width]``."""

    def __init__(self, latent: int, width: int, layers: int) -> None:
        if layers < 1:
            raise ValueError(f"latent_layers must be at least 1; got {layers}")
        stack: list[nn.Module] = []
        for i in range(layers):
            stack += [init_uniform(nn.Linear(width if i else latent, width), mode="out"), nn.SiLU()]
        super().__init__(*stack)

    def forward(self, z: Tensor) -> Tensor:
        return super().forward(z * (z.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt())


class AdaptiveNorm(nn.Module):
    """A group norm whose gain and shift are dense functions of the mapped latent; plain where ``width`` is 0.

    Reference:
        Dhariwal, Nichol, Diffusion models beat GANs on image synthesis, NeurIPS 2021, section 3.1.
    """

    def __init__(self, channels: int, width: int, *, limit: int | None = None) -> None:
        super().__init__()
        self.norm = group_norm(channels, affine=width == 0, limit=limit)
        self.style: nn.Linear | None = None
        if width > 0:
            self.style = init_uniform(nn.Linear(width, 2 * channels), mode="out")
            with torch.no_grad():
                self.style.bias[:channels] = 1.0

    def forward(self, h: Tensor, w: Tensor | None) -> Tensor:
        """``h`` ``[B, C, *S]``, ``w`` ``[B, width]``."""
        h = self.norm(h)
        if self.style is None:
            return h
        gain, shift = spread(self.style(w), h).chunk(2, dim=1)
        return gain * h + shift


def spread(values: Tensor, like: Tensor) -> Tensor:
    """``[B, C]`` as ``[B, C, 1, ...]`` for the axes of ``like``."""
    return values.reshape(*values.shape, *[1] * (like.ndim - 2))


def smooth_down(x: Tensor) -> Tensor:
    """Half the size: the separable filter 1, 3, 3, 1 and every second cell, zeros beyond the border."""
    kernel = _kernel(x)
    return _conv(x)(x, kernel, stride=2, padding=1, groups=x.shape[1])


def smooth_up(x: Tensor) -> Tensor:
    """Twice the size: zeros in between, then the same filter with its gain restored."""
    kernel = _kernel(x) * 2 ** (x.ndim - 2)
    transposed = F.conv_transpose2d if x.ndim == 4 else F.conv_transpose3d
    return transposed(x, kernel, stride=2, padding=1, groups=x.shape[1])


def smooth(x: Tensor) -> Tensor:
    """The filter at full size with two zeros beyond every border: one cell more along every axis."""
    return _conv(x)(x, _kernel(x), padding=2, groups=x.shape[1])


def _kernel(x: Tensor) -> Tensor:
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=x.dtype, device=x.device) / 8
    kernel = taps
    for _ in range(x.ndim - 3):
        kernel = kernel[..., None] * taps
    return kernel.expand(x.shape[1], 1, *kernel.shape)


def _conv(x: Tensor):
    return F.conv2d if x.ndim == 4 else F.conv3d
