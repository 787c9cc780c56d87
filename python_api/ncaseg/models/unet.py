"""The baseline: MONAI's BasicUNet behind the interface of the automata. MONAI comes with the extra ``train``."""

import math

from torch import Generator, Tensor

from ncaseg.config import UNetConfig
from ncaseg.levels import Triple
from ncaseg.models.base import Segmenter

# Feature maps at full resolution, in units of its first width, all stages counted: 16.6 and 17.4 were measured
# (48x64x48 and 64x64x96 cells, batch 2, MONAI 1.6.1; x86-64, torch 2.13, 2026-11).
TRAINING_MAPS = 18
LEAST_CELLS = 32  # four halvings leave two cells, the least that its instance norm can do with


class UNet(Segmenter):
    """A U-Net of four poolings with two convolutions per stage, instance norm and leaky ReLU.

    ``cfg.features`` are six widths: five stages from fine to coarse, and the last upsampling.

    Raises:
        ImportError: MONAI is not installed.

    Reference:
        Falk et al., U-Net: deep learning for cell counting, detection, and morphometry, Nature Methods 2019.
    """

    def __init__(self, cfg: UNetConfig) -> None:
        super().__init__()
        try:
            from monai.networks.nets import BasicUNet
        except ImportError as error:
            raise ImportError(
                f"model.kind 'unet' needs MONAI, which is not there ({error}): pip install 'ncakern[train]'"
            ) from error
        self.cfg = cfg
        self.in_channels, self.out_channels = cfg.in_channels, cfg.out_channels
        self.net = BasicUNet(3, cfg.in_channels, cfg.out_channels, features=cfg.features)

    def training_bytes(self, batch: int, size: Triple, keep_every: int, *, has_kernel: bool) -> int:
        return batch * math.prod(size) * 4 * self.cfg.features[0] * TRAINING_MAPS

    def forward(
        self, image: Tensor, *, seed: int | Tensor | None = None, first_sample: int = 0, keep_every: int = 1
    ) -> Tensor:
        """Logits ``[B, C_out, X, Y, Z]``; nothing is random and nothing repeats, so the keywords have no effect.

        Raises:
            ValueError: wrong rank or channels, or an axis too short for four poolings.
        """
        if image.ndim != 5 or image.shape[1] != self.in_channels:
            raise ValueError(f"image must have shape [B, {self.in_channels}, X, Y, Z]; got {tuple(image.shape)}")
        for axis, length in zip("XYZ", image.shape[2:], strict=True):
            if length < LEAST_CELLS:
                raise ValueError(
                    f"image is too small: {length} cells on axis {axis}, and four poolings need {LEAST_CELLS}; "
                    "set data.size"
                )
        return self.net(image)

    def crop_forward(
        self,
        image: Tensor,
        label: Tensor,
        *,
        seed: int | Tensor | None = None,
        generator: Generator | None = None,
        keep_every: int = 1,
        foreground: float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        """Logits and label of the whole volume."""
        return self.forward(image), label
