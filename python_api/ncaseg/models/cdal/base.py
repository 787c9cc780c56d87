"""What every generator of cDAL can do, whatever it is made of."""

from typing import Any

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

    def __init__(self, *, ndim: int, label_channels: int, image_channels: int, latent: int) -> None:
        super().__init__()
        self.ndim, self.latent = ndim, latent
        self.label_channels, self.image_channels = label_channels, image_channels

    def forward(self, *inputs: Any, **options: Any) -> Tensor:
        """The estimate of x_0, ``[B, label_channels, *S]`` in [-1, 1]: the tanh of :meth:`logits`, same arguments."""
        return torch.tanh(self.logits(*inputs, **options))

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
            x: ``[B, label_channels, *S]``, the label at time ``tau + 1``.
            tau: ``[B]`` int64 in 0..T-1, the step from time ``tau + 1`` down to time ``tau``.
            image: ``[B, image_channels, *S]``.
            z: ``[B, latent]`` float32, or None.
            seed, first_sample, keep_every: name the fire bits of automata and trade memory for time in training; of
                no effect elsewhere.

        Raises:
            ValueError: shapes that do not fit, or too few cells on an axis.
        """
        raise NotImplementedError

    def _check_inputs(self, x: Tensor, tau: Tensor, image: Tensor, z: Tensor | None) -> None:
        if x.ndim != 2 + self.ndim or x.shape[1] != self.label_channels:
            axes = ", ".join("XYZ"[: self.ndim])
            raise ValueError(f"x must have shape [B, {self.label_channels}, {axes}]; got {tuple(x.shape)}")
        batch = x.shape[0]
        expected = {"tau": (batch,), "image": (batch, self.image_channels, *x.shape[2:])}
        for name, tensor in (("tau", tau), ("image", image)):
            if tuple(tensor.shape) != expected[name]:
                raise ValueError(f"{name} must have shape {expected[name]}; got {tuple(tensor.shape)}")
        if self.latent and (z is None or tuple(z.shape) != (batch, self.latent)):
            got = "None" if z is None else tuple(z.shape)
            raise ValueError(f"z must have shape {(batch, self.latent)}; got {got}")
        if not self.latent and z is not None:
            raise ValueError(f"z must be None for a generator without a latent; got shape {tuple(z.shape)}")
