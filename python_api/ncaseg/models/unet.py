"""The baseline: MONAI's BasicUNet behind the interface of the automata. MONAI comes with the extra ``train``."""

from torch import Generator, Tensor

from ncaseg.models.base import Segmenter

LEAST_CELLS = 32  # four halvings leave two cells, the least that its instance norm can do with


class UNet(Segmenter):
    """A U-Net of four poolings with two convolutions per stage, instance norm and leaky ReLU.

    Args:
        in_channels, out_channels: image and logit channels.
        features: six widths: five stages from fine to coarse, and the last upsampling.

    Raises:
        ImportError: MONAI is not installed.

    Reference:
        Falk et al., U-Net: deep learning for cell counting, detection, and morphometry, Nature Methods 2019.
    """

    def __init__(self, *, in_channels: int, out_channels: int, features: tuple[int, ...]) -> None:
        super().__init__()
        try:
            from monai.networks.nets import BasicUNet
        except ImportError as error:
            raise ImportError(
                f"model.kind 'unet' needs MONAI, which is not there ({error}): pip install 'ncakern[train]'"
            ) from error
        self.in_channels, self.out_channels = in_channels, out_channels
        self.net = BasicUNet(3, in_channels, out_channels, features=features)

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
