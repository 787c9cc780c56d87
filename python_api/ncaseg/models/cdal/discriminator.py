"""The discriminator: are these a label at time tau and the same one step noisier? It never sees the image.

Reference:
    Xiao, Kreis, Vahdat, Tackling the generative learning trilemma with denoising diffusion GANs, ICLR 2022, appendix C.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ncaseg.models.cdal.layers import SQRT_HALF, TINY, conv, embed_time, init_uniform, smooth_down, spread

SLOPE = 0.2
# Channels in units of ``width`` after each block, and whether the block halves the size.
LAYOUTS = {
    "small": ((2, False), (4, True), (8, True), (8, True)),
    "large": ((4, True), (8, True), (8, True), (8, True), (8, True), (8, True)),
}
INITS = ("fan", "normal")


class DownBlock(nn.Module):
    """leaky, conv, + time, leaky, [half size], conv; added to a 1x1 skip, over sqrt(2). No norm."""

    def __init__(self, ndim: int, channels: int, out: int, *, time: int, halves: bool) -> None:
        super().__init__()
        self.halves = halves
        self.conv1 = init_uniform(conv(ndim, channels, out), mode="out")
        self.time = init_uniform(nn.Linear(time, out), mode="out")
        self.conv2 = init_uniform(conv(ndim, out, out), scale=TINY, mode="out")
        self.skip = init_uniform(conv(ndim, channels, out, 1, bias=False), mode="out")

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.conv1(F.leaky_relu(x, SLOPE))
        h = F.leaky_relu(h + spread(self.time(time), h), SLOPE)
        if self.halves:
            h, x = smooth_down(h), smooth_down(x)
        return (self.conv2(h) + self.skip(x)) * SQRT_HALF


class Discriminator(nn.Module):
    """One network for all levels, told the time.

    Args:
        ndim: 2 or 3.
        label_channels: of a label.
        layout: "small", four blocks, or "large", six.
        width: the unit of its channels.
        time_width: of the time embedding.
        init: "fan"; "normal" draws the weights of the convolutions anew from N(0, 0.02^2), as the published code for
            pictures does.

    Raises:
        ValueError: an unknown layout or init.
    """

    def __init__(
        self,
        *,
        ndim: int,
        label_channels: int,
        layout: str = "small",
        width: int = 32,
        time_width: int = 128,
        init: str = "fan",
    ) -> None:
        super().__init__()
        if layout not in LAYOUTS:
            raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}; got {layout!r}")
        if init not in INITS:
            raise ValueError(f"init must be one of {', '.join(INITS)}; got {init!r}")
        self.layout, self.time_width = layout, time_width
        self.time = nn.Sequential(
            init_uniform(nn.Linear(time_width, time_width), mode="out"),
            nn.LeakyReLU(SLOPE),
            init_uniform(nn.Linear(time_width, time_width), mode="out"),
            nn.LeakyReLU(SLOPE),
        )
        channels = 2 * width
        self.stem = init_uniform(conv(ndim, 2 * label_channels, channels, 1), mode="out")
        self.blocks = nn.ModuleList()
        for units, halves in LAYOUTS[layout]:
            self.blocks.append(DownBlock(ndim, channels, units * width, time=time_width, halves=halves))
            channels = units * width
        self.last = init_uniform(
            conv(ndim, channels + 1, channels), scale=TINY if layout == "small" else 1.0, mode="out"
        )
        self.end = init_uniform(nn.Linear(channels, 1), mode="out")
        if init == "normal":
            for module in self.modules():
                if isinstance(module, nn.Conv2d | nn.Conv3d):
                    nn.init.normal_(module.weight, std=0.02)

    def forward(self, x_tau: Tensor, tau: Tensor, x_next: Tensor) -> Tensor:
        """Logits ``[B]`` of the pairs ``[B, C, *S]``, high for real ones; tau ``[B]`` int64."""
        h = append_deviation(self.features(x_tau, tau, x_next)[-1])
        h = F.leaky_relu(self.last(h), SLOPE)
        return self.end(h.flatten(2).sum(dim=2))[:, 0]

    def features(self, x_tau: Tensor, tau: Tensor, x_next: Tensor, upto: int | None = None) -> list[Tensor]:
        """What the stem (index 0) and every block (1, 2, ...) give, as it is, up to index ``upto``.

        Raises:
            ValueError: an axis is too short for all halvings of the layout.
        """
        least = 2 ** sum(halves for _, halves in LAYOUTS[self.layout])
        if min(x_tau.shape[2:]) < least:
            raise ValueError(
                f"labels must have at least {least} cells on every axis for a {self.layout} discriminator; got "
                f"{tuple(x_tau.shape[2:])}. Enlarge what is trained on, or set cdal.discriminator"
            )
        time = self.time(embed_time(tau, self.time_width).to(x_tau))
        maps = [self.stem(torch.cat([x_tau, x_next], dim=1))]
        for block in self.blocks[:upto]:
            maps.append(block(maps[-1], time))
        return maps


def append_deviation(h: Tensor) -> Tensor:
    """``h`` ``[B, C, *S]`` and a channel with how much the samples of a group differ, one number per group.

    A group has as many samples as divide the batch, four at most.
    """
    size = next(n for n in (4, 3, 2, 1) if len(h) % n == 0)
    groups = h.unflatten(0, (size, -1))
    std = (groups.var(dim=0, correction=0) + 1e-8).sqrt().flatten(1).mean(dim=1)
    channel = spread(std.repeat(size)[:, None], h).expand(-1, 1, *h.shape[2:])
    return torch.cat([h, channel], dim=1)
