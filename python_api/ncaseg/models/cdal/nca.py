"""cDAL's generator as cellular automata, one per resolution level, in 2D or 3D."""

import torch
from torch import Tensor, nn

from ncaseg.levels import Triple, check_counts, check_reflection, factors_of, working_sizes
from ncaseg.models.cdal.base import Generator
from ncaseg.models.cdal.layers import LatentMap
from ncaseg.models.cdal.modulation import Modulation
from ncaseg.models.layout import to_channels_first, to_channels_last
from ncaseg.models.multilevel import enlarge_state, make_levels, pool_image


class NCAGenerator(Generator):
    """Estimate the clean label with n levels of automata, whose hidden layer time and latent modulate.

    One cell's state, of which the first two parts are frozen within a level::

        noisy label | image | logits of the clean label | hidden

    Level 0 starts with zeros but for noisy label and image. Between levels the logits and the hidden channels are
    enlarged (nearest), noisy label and image are those of the new resolution. The estimate is ``tanh`` of the last
    logits. The last dense layers start at zero, so that an untrained generator answers 0 everywhere and the squared
    error of labels of -1 and 1 is exactly 1.

    A coarse level sees the noisy label at the cell in the middle of each block, see :func:`sample_cells`, and the
    ``pool`` of the image.

    Args:
        ndim: spatial axes, 2 or 3.
        label_channels, image_channels: Cx and Cy.
        timesteps: T; tau runs from 0 to T - 1.
        latent: numbers of z; 0: none, then nothing but fire bits and the noisy label is random.
        latent_width, latent_layers: of the dense layers that all levels share, from z to features.
        channels, hidden: C and h of every automaton.
        kernel_sizes, steps: one per level, coarse to fine.
        scales: per-axis factors between neighbouring levels, one triple less than levels; the last entry of each is 1
            in 2D.
        pool: how the image of a coarser level is made, see :func:`ncaseg.models.multilevel.pool_image`.
        perception, num_filters, padding, norm, fire_rate: as in :class:`ncakern.NCA`.

    Raises:
        ValueError: too few channels, a wrong number of axes, or steps and scales that do not fit the levels.

    Example:
        >>> generator = NCAGenerator(ndim=2, timesteps=2, kernel_sizes=(3,), steps=(24,))
        >>> sum(p.numel() for p in generator.parameters())
        35136
    """

    def __init__(
        self,
        *,
        ndim: int,
        label_channels: int = 1,
        image_channels: int = 1,
        timesteps: int,
        latent: int = 16,
        latent_width: int = 64,
        latent_layers: int = 1,
        channels: int = 32,
        hidden: int = 128,
        kernel_sizes: tuple[int, ...],
        steps: tuple[int, ...],
        scales: tuple[Triple, ...] = (),
        pool: str = "average",
        perception: str = "depthwise",
        num_filters: int = 2,
        padding: str = "reflect",
        norm: str = "none",
        fire_rate: float = 0.5,
    ) -> None:
        super().__init__(ndim=ndim, label_channels=label_channels, image_channels=image_channels, latent=latent)
        check_counts(kernel_sizes, steps, scales)
        given = label_channels + image_channels
        if channels < given + label_channels:
            least = given + label_channels
            raise ValueError(f"channels must hold noisy label, image, logits: at least {least}; got {channels}")
        if ndim == 2 and any(scale[2] != 1 for scale in scales):
            raise ValueError(f"scales must have 1 as their last entry in 2D; got {scales}")
        self.timesteps, self.channels, self.given = timesteps, channels, given
        self.kernel_sizes, self.steps, self.scales = tuple(kernel_sizes), tuple(steps), tuple(scales)
        self.pool, self.padding = pool, padding
        self.latent_map = LatentMap(latent, latent_width, latent_layers) if latent else None
        self.modulations = nn.ModuleList(
            Modulation(hidden, timesteps, latent_width if latent else 0) for _ in kernel_sizes
        )
        self.levels = make_levels(
            ndim,
            channels,
            hidden,
            kernel_sizes,
            perception=perception,
            num_filters=num_filters,
            padding=padding,
            norm=norm,
            fire_rate=fire_rate,
            frozen_channels=given,
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
        """See :class:`Generator`; with one ``seed`` no two steps of the levels share fire bits."""
        self._check_inputs(x, tau, image, z)
        if seed is None:
            seed = int(torch.randint(2**62, ()))
        features = None if self.latent_map is None or z is None else self.latent_map(z)
        x, image = _as_volume(x), _as_volume(image)
        self._check_size(x)
        state: Tensor | None = None
        for level, (nca, modulation) in enumerate(zip(self.levels, self.modulations, strict=True)):
            state = self._begin(level, x, image, state)
            cells = state.squeeze(3) if self.ndim == 2 else state  # [B, *S, C]
            cells = nca(
                cells,
                self.steps[level],
                seed=seed,
                first_step=sum(self.steps[:level]),
                first_sample=first_sample,
                modulation=tuple(part.to(cells.dtype) for part in modulation(tau, features)),
                keep_every=keep_every,
            )
            state = cells.unsqueeze(3) if self.ndim == 2 else cells
        return to_channels_first(cells[..., self.given : self.given + self.label_channels])

    def _begin(self, level: int, x: Tensor, image: Tensor, state: Tensor | None) -> Tensor:
        """The state ``[B, X, Y, Z, C]`` that a level starts with; ``state`` is the one of the level before."""
        factors = factors_of(self.scales)[level]
        seen = torch.cat([sample_cells(x, factors), pool_image(image, factors, self.pool)], dim=1)
        given = to_channels_last(seen)
        size_x, size_y, size_z = given.shape[1:4]
        if state is None:
            written = given.new_zeros((*given.shape[:4], self.channels - self.given))
        else:
            written = enlarge_state(state[..., self.given :], self.scales[level - 1], (size_x, size_y, size_z))
        return torch.cat([given, written], dim=-1)

    def _check_size(self, volume: Tensor) -> None:
        if self.padding == "reflect":
            size_x, size_y, size_z = volume.shape[2:]
            sizes = working_sizes((size_x, size_y, size_z), self.scales, [()] * len(self.levels))
            check_reflection(sizes, self.kernel_sizes, self.ndim)


def sample_cells(x: Tensor, factors: Triple) -> Tensor:
    """A noisy label ``[B, C, X, Y, Z]`` on the grid of a coarser level: the cell in the middle of each block.

    A sample of the cells of ``a x_0 + s noise`` is the same with fewer cells: a label at the same a, and noise of the
    same deviation s, independent from cell to cell. The mean over blocks of n cells is not: it divides s by the root
    of n, so that the coarse automaton would see less noise than its time says. What a block's other cells hold, the
    finer levels see. The last block may be cut by the border; then its last cell stands for it if it has no middle.
    """
    for axis, factor in enumerate(factors, start=2):
        if factor > 1:
            size = x.shape[axis]
            cells = torch.arange(factor // 2, size + factor // 2, factor, device=x.device).clamp(max=size - 1)
            x = x.index_select(axis, cells)
    return x


def _as_volume(tensor: Tensor) -> Tensor:
    """``[B, C, *S]`` as ``[B, C, X, Y, Z]``; Z is 1 in 2D."""
    return tensor.unsqueeze(-1) if tensor.ndim == 4 else tensor
