"""The same generator around MONAI's diffusion U-Net, in 2D and 3D. MONAI comes with the extra ``train``."""

from typing import Any

import torch
from torch import Tensor, nn

from ncaseg.models.cdal.base import Generator
from ncaseg.models.cdal.layers import AdaptiveNorm, LatentMap, spread
from ncaseg.models.cdal.padding import in_multiples


class Modulated(nn.Module):
    """A residual block of MONAI whose two norms follow the latent, which comes behind the time in its embedding."""

    def __init__(self, block: Any, style: int, groups: int) -> None:
        super().__init__()
        self.block, self.style = block, style
        block.norm1 = AdaptiveNorm(block.channels, style, limit=groups)
        block.norm2 = AdaptiveNorm(block.out_channels, style, limit=groups)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        block, time, w = self.block, *emb.tensor_split([emb.shape[1] - self.style], dim=1)
        h = block.nonlinearity(block.norm1(x, w))
        resample = block.upsample if block.upsample is not None else block.downsample
        if resample is not None:
            x, h = resample(x), resample(h)
        h = block.conv1(h)
        h = h + spread(block.time_emb_proj(block.nonlinearity(time)), h)
        return block.skip_connection(x) + block.conv2(block.nonlinearity(block.norm2(h, w)))


class Behind(nn.Module):
    """``[time, 0]`` of a time embedding, or ``[0, w]`` of a mapped latent: their sum carries both through MONAI."""

    def __init__(self, time: int, style: int, *, is_latent: bool) -> None:
        super().__init__()
        self.padding = (time, 0) if is_latent else (0, style)

    def forward(self, values: Tensor) -> Tensor:
        return nn.functional.pad(values, self.padding)


class LibraryGenerator(Generator):
    """MONAI's ``DiffusionModelUNet`` with norms modulated by z, and the image as further input channels.

    Beside :class:`NCSNpp` it halves by averaging and doubles by repetition, has no encoder, no copy of the noisy label
    on the way down, and PyTorch's initial values.

    Args:
        ndim, label_channels, image_channels: as there.
        width, multipliers, blocks, attention_levels, latent, latent_width, latent_layers: as there; a latent is needed.

    Raises:
        ImportError: MONAI is not installed.
        ValueError: there is no latent.
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
        latent: int = 50,
        latent_width: int = 128,
        latent_layers: int = 4,
    ) -> None:
        super().__init__(ndim=ndim, label_channels=label_channels, image_channels=image_channels, latent=latent)
        try:
            from monai.networks.nets.diffusion_model_unet import DiffusionModelUNet, DiffusionUNetResnetBlock
        except ImportError as error:
            raise ImportError(
                f"cdal.generator 'library' needs MONAI, which is not there ({error}): pip install 'ncakern[train]'"
            ) from error
        if latent < 1:
            raise ValueError(f"latent must be at least 1 for the library's generator; got {latent}")
        self.multiple = 2 ** (len(multipliers) - 1)
        groups = min(8, width)
        self.net = DiffusionModelUNet(
            ndim,
            label_channels + image_channels,
            label_channels,
            num_res_blocks=blocks,
            channels=[width * m for m in multipliers],
            attention_levels=[level in attention_levels for level in range(len(multipliers))],
            norm_num_groups=groups,
            resblock_updown=True,
            num_head_channels=[width * m for m in multipliers],
        )
        for module in list(self.net.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, DiffusionUNetResnetBlock):
                    setattr(module, name, Modulated(child, latent_width, groups))
        time = 4 * width
        self.net.time_embed.append(Behind(time, latent_width, is_latent=False))
        self.net.num_class_embeds = 1  # any number: makes the net add what follows
        self.net.class_embedding = nn.Sequential(
            LatentMap(latent, latent_width, latent_layers), Behind(time, latent_width, is_latent=True)
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

        def run(x: Tensor, image: Tensor) -> Tensor:
            return self.net(torch.cat([x, image], dim=1), tau, class_labels=z)

        return in_multiples(run, (x, image), self.multiple)
