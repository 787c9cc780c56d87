"""Where the discriminator looks: the map that hides parts of the label from the generator's noisy input.

Reference:
    Hejrati, Banerjee, Glide-Hurst, Dong, Conditional diffusion model with spatial attention and latent embedding for
    medical image segmentation, MICCAI 2024, section 2.2.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ncaseg.models.cdal.discriminator import Discriminator
from ncaseg.models.cdal.layers import spread
from ncaseg.streams import generator


@torch.no_grad()
def attention_map(
    discriminator: Discriminator, x_tau: Tensor, tau: Tensor, x_next: Tensor, *, index: int, kind: str, seed: int
) -> Tensor:
    """The mean over channels of a feature map, interpolated linearly to the size of the label: ``[B, 1, *S]``.

    Args:
        discriminator: whose features are taken, see :meth:`Discriminator.features`.
        x_tau, tau, x_next: real pairs ``[B, C, *S]`` and their times ``[B]``.
        index: which features.
        kind: "raw", signed and unscaled as published; "normalized", the magnitude over its largest value in the
            sample; "sigmoid" of it; "shuffled", raw, but of another sample of the batch.
        seed: names the permutation of "shuffled".
    """
    features = discriminator.features(x_tau, tau, x_next, upto=index)[index]
    mode = "bilinear" if x_tau.ndim == 4 else "trilinear"
    attention = F.interpolate(features.mean(dim=1, keepdim=True), x_tau.shape[2:], mode=mode, align_corners=False)
    if kind == "normalized":
        attention = attention.abs()
        return attention / spread(attention.flatten(1).amax(dim=1, keepdim=True).clamp(min=1e-12), attention)
    if kind == "sigmoid":
        return attention.sigmoid()
    if kind == "shuffled":
        return attention[torch.randperm(len(attention), generator=generator(seed)).to(attention.device)]
    return attention
