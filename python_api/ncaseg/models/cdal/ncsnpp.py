"""NCSN++ with a latent: a U-Net whose norms are modulated by z, with an encoder of its own for the image.

Reference:
    Song et al., Score-based generative modeling through stochastic differential equations, ICLR 2021, appendix H;
    Xiao, Kreis, Vahdat, Tackling the generative learning trilemma with denoising diffusion GANs, ICLR 2022.
"""

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ncaseg.models.cdal.base import Generator
from ncaseg.models.cdal.layers import (
    SQRT_HALF,
    TINY,
    AdaptiveNorm,
    LatentMap,
    conv,
    embed_time,
    group_norm,
    init_uniform,
    smooth,
    smooth_down,
    smooth_up,
    spread,
)
from ncaseg.models.cdal.padding import in_multiples

RESAMPLE = {"down": smooth_down, "up": smooth_up}


class ResBlock(nn.Module):
    """norm, SiLU, [resample], conv, + time, norm, SiLU, conv; added to the skip, over sqrt(2).

    The norms are modulated by the latent; the time is added. The last convolution begins at almost zero.
    """

    def __init__(
        self, ndim: int, channels: int, out: int, *, time: int, style: int, resample: str | None = None
    ) -> None:
        super().__init__()
        self.resample = resample
        self.norm1 = AdaptiveNorm(channels, style)
        self.conv1 = init_uniform(conv(ndim, channels, out))
        self.time = init_uniform(nn.Linear(time, out))
        self.norm2 = AdaptiveNorm(out, style)
        self.conv2 = init_uniform(conv(ndim, out, out), scale=TINY)
        is_plain = channels == out and resample is None
        self.skip = None if is_plain else init_uniform(conv(ndim, channels, out, 1))

    def forward(self, x: Tensor, time: Tensor, w: Tensor | None) -> Tensor:
        h = F.silu(self.norm1(x, w))
        if self.resample is not None:
            h, x = (RESAMPLE[self.resample](t) for t in (h, x))
        h = self.conv1(h)
        h = h + spread(self.time(F.silu(time)), h)
        h = self.conv2(F.silu(self.norm2(h, w)))
        if self.skip is not None:
            x = self.skip(x)
        return (x + h) * SQRT_HALF


MakeBlock = Callable[..., ResBlock]  # of channels, out and resample; the rest is the same in the whole net


class SelfAttention(nn.Module):
    """Every cell looks at every other with one head; added to the input, over sqrt(2)."""

    def __init__(self, ndim: int, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.queries, self.keys, self.values = (
            init_uniform(conv(ndim, channels, channels, 1), scale=0.1) for _ in range(3)
        )
        self.out = init_uniform(conv(ndim, channels, channels, 1), scale=TINY)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2).transpose(1, 2)[:, None] for layer in (self.queries, self.keys, self.values))
        h = F.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2).reshape(x.shape)
        return (x + self.out(h)) * SQRT_HALF


class ImageEncoder(nn.Module):
    """The image ``[B, C_in, *S]`` as ``[B, width, *S]``: residual blocks at full size, without time and latent."""

    def __init__(self, ndim: int, channels: int, width: int, blocks: int) -> None:
        super().__init__()
        self.first = conv(ndim, channels, width)
        self.blocks = nn.ModuleList(self._block(ndim, width) for _ in range(blocks))

    def forward(self, image: Tensor) -> Tensor:
        h = self.first(image)
        for block in self.blocks:
            h = h + block(h)
        return h

    @staticmethod
    def _block(ndim: int, width: int) -> nn.Module:
        last = conv(ndim, width, width)
        for parameter in last.parameters():
            nn.init.zeros_(parameter)
        first = [group_norm(width, limit=32, eps=1e-5), nn.SiLU(), conv(ndim, width, width)]
        return nn.Sequential(*first, group_norm(width, limit=32, eps=1e-5), nn.SiLU(), last)


class Down(nn.Module):
    """One level on the way down: residual blocks, each with attention if asked for, and a step down but at the last.

    A small copy of the noisy label comes along and is added after every step down.
    """

    def __init__(
        self, make: MakeBlock, ndim: int, channels: int, out: int, *, blocks: int, attends: bool, carried: int | None
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(make(channels if i == 0 else out, out) for i in range(blocks))
        self.attention = nn.ModuleList(SelfAttention(ndim, out) for _ in range(blocks if attends else 0))
        self.step = self.carry = None
        if carried is not None:
            self.step = make(out, out, resample="down")
            self.carry = init_uniform(conv(ndim, carried, out, stride=2))

    def forward(
        self, h: Tensor, small: Tensor, skips: list[Tensor], time: Tensor, w: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Append to ``skips``; return the features and the small copy of the next level."""
        for i, block in enumerate(self.blocks):
            h = block(h, time, w)
            if self.attention:
                h = self.attention[i](h)
            skips.append(h)
        if self.step is not None and self.carry is not None:
            h = self.step(h, time, w)
            h = small = (self.carry(smooth(small)) + h) * SQRT_HALF
            skips.append(h)
        return h, small


class Up(nn.Module):
    """One level on the way up: a residual block per skip, attention once if asked for, and a step up but at the top."""

    def __init__(
        self, make: MakeBlock, ndim: int, channels: int, out: int, skips: list[int], *, attends: bool, is_top: bool
    ) -> None:
        super().__init__()
        sizes = [channels] + [out] * (len(skips) - 1)
        self.blocks = nn.ModuleList(make(size + skip, out) for size, skip in zip(sizes, skips, strict=True))
        self.attention = SelfAttention(ndim, out) if attends else None
        self.step = None if is_top else make(out, out, resample="up")

    def forward(self, h: Tensor, skips: list[Tensor], time: Tensor, w: Tensor | None) -> Tensor:
        """Take its skips off the end of ``skips``."""
        for block in self.blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), time, w)
        if self.attention is not None:
            h = self.attention(h)
        return h if self.step is None else self.step(h, time, w)


class NCSNpp(Generator):
    """The U-Net generator.

    Args:
        ndim: 2 or 3.
        label_channels, image_channels: of the noisy label and of the image.
        width: channels of level 0.
        multipliers: channels of each level, in units of ``width``; every level has half the size of the one before.
        blocks: residual blocks per level on the way down; one more on the way up.
        attention_levels: levels with self-attention, counted from 0 at full size. The bottleneck has it always.
        encoder_blocks: residual blocks of the image encoder.
        latent: numbers of z; 0 removes it, and the norms are plain ones.
        latent_width, latent_layers: of the net that maps z.

    Any size from the padding's needs on will do, see :func:`ncaseg.models.cdal.padding.in_multiples`.
    """

    def __init__(
        self,
        *,
        ndim: int,
        label_channels: int,
        image_channels: int,
        width: int = 32,
        multipliers: tuple[int, ...] = (1, 2, 2, 2),
        blocks: int = 2,
        attention_levels: tuple[int, ...] = (1,),
        encoder_blocks: int = 6,
        latent: int = 50,
        latent_width: int = 128,
        latent_layers: int = 4,
    ) -> None:
        super().__init__(ndim=ndim, label_channels=label_channels, image_channels=image_channels, latent=latent)
        self.width = width
        self.multiple = 2 ** (len(multipliers) - 1)
        make = functools.partial(ResBlock, ndim, time=4 * width, style=latent_width if latent > 0 else 0)
        self.latent_map = LatentMap(latent, latent_width, latent_layers) if latent > 0 else None
        self.time = nn.Sequential(
            init_uniform(nn.Linear(width, 4 * width)), nn.SiLU(), init_uniform(nn.Linear(4 * width, 4 * width))
        )
        self.encoder = ImageEncoder(ndim, image_channels, width, encoder_blocks)
        self.first = init_uniform(conv(ndim, label_channels, width))

        widths = [width * m for m in multipliers]
        last, skips, carried = len(widths) - 1, [width], label_channels
        self.down, channels = nn.ModuleList(), width
        for level, out in enumerate(widths):
            self.down.append(
                Down(
                    make,
                    ndim,
                    channels,
                    out,
                    blocks=blocks,
                    attends=level in attention_levels,
                    carried=carried if level < last else None,
                )
            )
            skips += [out] * (blocks + (level < last))
            channels = carried = out
        self.middle = nn.ModuleList([make(channels, channels), SelfAttention(ndim, channels), make(channels, channels)])
        self.up = nn.ModuleList()
        for level, out in reversed(list(enumerate(widths))):
            own = [skips.pop() for _ in range(blocks + 1)]
            attends = level in attention_levels
            self.up.append(Up(make, ndim, channels, out, own, attends=attends, is_top=level == 0))
            channels = out
        self.head = nn.Sequential(
            group_norm(width), nn.SiLU(), init_uniform(conv(ndim, width, label_channels), scale=TINY)
        )

    def logits(
        self,
        x: Tensor,
        tau: Tensor,
        image: Tensor,
        z: Tensor | None,
        *,
        seed: int | Tensor | None = None,
        first_sample: int = 0,
        keep_every: int = 1,
    ) -> Tensor:
        """See :class:`Generator`; ``seed``, ``first_sample`` and ``keep_every`` have no effect."""
        self._check_inputs(x, tau, image, z)
        w = None if self.latent_map is None else self.latent_map(z)
        time = self.time(embed_time(tau, self.width).to(x))
        return in_multiples(lambda x, image: self._run(x, image, time, w), (x, image), self.multiple)

    def _run(self, x: Tensor, image: Tensor, time: Tensor, w: Tensor | None) -> Tensor:
        h, small = self.first(x) + self.encoder(image), x
        skips = [h]
        for level in self.down:
            h, small = level(h, small, skips, time, w)
        block, attention, again = self.middle
        h = again(attention(block(h, time, w)), time, w)
        for level in self.up:
            h = level(h, skips, time, w)
        output: Tensor = self.head(h)
        return output
