"""What every generator of cDAL can do, whatever it is made of."""

from typing import Any

import torch
from torch import Tensor, nn

from ncaseg.levels import Triple


class Generator(nn.Module):
    """A noisy label, the time, an image and a latent in, an estimate of the clean label out.

    Attributes:
        ndim: spatial axes, 2 or 3.
        label_channels: channels of the label.
        image_channels: channels of the image.
        latent: numbers of z; 0: there is none.
        steps: of automata, per level; empty where nothing repeats.
    """

    steps: tuple[int, ...] = ()

    def __init__(self, *, ndim: int, label_channels: int, image_channels: int, latent: int) -> None:
        super().__init__()
        self.ndim, self.latent = ndim, latent
        self.label_channels, self.image_channels = label_channels, image_channels

    def check_size(self, size: Triple) -> None:
        """Raise a ValueError unless volumes of ``size`` are large enough for every level of automata."""

    def training_bytes(self, batch: int, size: Triple, keep_every: int, *, has_kernel: bool) -> int:
        """As :meth:`ncaseg.models.base.Segmenter.training_bytes`, without weights."""
        samples = batch * (1 if self.ndim == 3 else size[2])
        x = torch.empty(1, self.label_channels, *size[: self.ndim], device="meta")
        image = torch.empty(1, self.image_channels, *x.shape[2:], device="meta")
        z = torch.empty(1, self.latent, device="meta") if self.latent else None
        return samples * kept_bytes(self, x, torch.zeros(1, device="meta"), image, z)

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


def kept_bytes(network: nn.Module, *inputs: Tensor | None) -> int:
    """Bytes of the tensors, other than weights, that autograd keeps of a forward pass.

    Nothing is computed: inputs lie on the device "meta", and weights of their shapes take the place of the network's.
    """
    kept = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += 0 if isinstance(tensor, nn.Parameter) else tensor.nbytes
        return tensor

    shapes: dict[str, Tensor] = {
        name: nn.Parameter(torch.empty_like(weight, device="meta")) for name, weight in network.named_parameters()
    }
    shapes |= {name: torch.empty_like(tensor, device="meta") for name, tensor in network.named_buffers()}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        torch.func.functional_call(network, shapes, inputs)
    return kept
