"""What every generator of cDAL can do, whatever it is made of."""

import torch
from torch import Tensor, nn


class Generator(nn.Module):
    """A noisy label, the time, an image and a latent in, an estimate of the clean label out.

    Attributes:
        ndim: spatial axes, 2 or 3.
        label_channels: channels of the label.
        image_channels: channels of the image.
        latent: numbers of z; 0: there is none.
    """

    ndim: int
    label_channels: int
    image_channels: int
    latent: int

    def forward(
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
        """The estimate of x_0, ``[B, label_channels, *S]`` in [-1, 1]: the tanh of :meth:`logits`."""
        logits = self.logits(x, tau, image, z, seed=seed, first_sample=first_sample, keep_every=keep_every)
        return torch.tanh(logits)

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
        """What the estimate is the tanh of, ``[B, label_channels, *S]``, S having ``ndim`` axes.

        Args:
            x: ``[B, label_channels, *S]``, the label at noise level ``tau + 1``.
            tau: ``[B]`` int64 in 0..T-1, the step from level ``tau + 1`` down to level ``tau``.
            image: ``[B, image_channels, *S]``.
            z: ``[B, latent]`` float32, or None.
            seed, first_sample, keep_every: name the fire bits of automata and trade memory for time in training; of
                no effect elsewhere.
        """
        raise NotImplementedError
