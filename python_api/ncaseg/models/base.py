"""What every segmenter can do, whatever it is made of."""

from torch import Generator, Tensor, nn

from ncaseg.levels import Triple


class Segmenter(nn.Module):
    """Volumes in, logits out.

    Attributes:
        steps: steps of the automata per level; empty where nothing repeats.
        cell_bytes: what a member of an ensemble takes per cell in prediction.
    """

    steps: tuple[int, ...] = ()
    cell_bytes: int = 768

    def check_size(self, size: Triple, *, training: bool = False) -> None:
        """Raise a ValueError unless volumes of ``size`` are large enough for every level, in training or whole."""

    def training_bytes(self, batch: int, size: Triple, keep_every: int, *, has_kernel: bool) -> int:
        """Bytes at the peak of one forward and backward pass on ``batch`` volumes of ``size`` cells.

        ``has_kernel``: states alone are kept, not what plain PyTorch keeps.
        """
        raise NotImplementedError

    def forward(
        self, image: Tensor, *, seed: int | Tensor | None = None, first_sample: int = 0, keep_every: int = 1
    ) -> Tensor:
        """Logits ``[B, C_out, X, Y, Z]`` of whole volumes ``[B, C_in, X, Y, Z]``.

        ``seed`` and ``first_sample`` name what is random in the model, ``keep_every`` trades memory for time in
        training; a model in which nothing is random, or nothing repeats, takes no notice of them.
        """
        raise NotImplementedError

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
        """Training pass: logits and label of what is trained on, the whole volume or random patches of it.

        ``generator`` draws the patches; with probability ``foreground`` around a voxel of the foreground.
        """
        raise NotImplementedError
