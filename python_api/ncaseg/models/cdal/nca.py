"""cDAL's generator as cellular automata, one per resolution level, in 2D or 3D."""

import torch
from torch import Tensor, nn

from ncaseg.config import CdalConfig, CdalModelConfig
from ncaseg.levels import Triple, check_reflection, factors_of, working_sizes
from ncaseg.models.cdal.base import Generator
from ncaseg.models.cdal.layers import LatentMap
from ncaseg.models.cdal.modulation import Modulation
from ncaseg.models.layout import to_channels_first, to_channels_last
from ncaseg.models.multilevel import (
    REBUILT_STATES,
    WORKING_STATES,
    automata_bytes,
    enlarge_state,
    make_levels,
    pool_image,
)
from ncaseg.streams import fresh_seed


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

    ``cfg`` describes the automata, ``cdal`` the times T and the latent; without a latent nothing but fire bits and the
    noisy label is random.

    Raises:
        ValueError: too few channels.

    Example:
        >>> from ncaseg.config import load_recipe
        >>> recipe = load_recipe("cdal-nca-hippocampus")
        >>> sum(p.numel() for p in NCAGenerator(recipe.model, recipe.cdal).parameters())
        69184
    """

    def __init__(self, cfg: CdalModelConfig, cdal: CdalConfig) -> None:
        label_channels = cfg.label_channels
        super().__init__(
            ndim=cfg.ndim, label_channels=label_channels, image_channels=cfg.in_channels, latent=cdal.latent
        )
        given = label_channels + cfg.in_channels
        if cfg.channels < given + label_channels:
            least = given + label_channels
            raise ValueError(f"channels must hold noisy label, image, logits: at least {least}; got {cfg.channels}")
        self.cfg = cfg
        self.timesteps, self.channels, self.given = cdal.timesteps, cfg.channels, given
        self.kernel_sizes, self.steps, self.scales = cfg.kernel_sizes, cfg.steps, cfg.scales
        self.pool, self.padding = cfg.pool, cfg.padding
        self.latent_map = LatentMap(cdal.latent, cdal.latent_width, cdal.latent_layers) if cdal.latent else None
        style = cdal.latent_width if cdal.latent else 0
        self.modulations = nn.ModuleList(Modulation(cfg.hidden, cdal.timesteps, style) for _ in cfg.kernel_sizes)
        self.levels = make_levels(cfg, frozen_channels=given)

    def check_size(self, size: Triple) -> None:
        if self.padding == "reflect":
            sizes = working_sizes(size, self.scales, [()] * len(self.levels))
            check_reflection(sizes, self.kernel_sizes, self.ndim)

    def training_bytes(self, batch: int, size: Triple, keep_every: int, *, has_kernel: bool) -> int:
        working = WORKING_STATES + REBUILT_STATES
        return automata_bytes(self.cfg, batch, size, keep_every, working=working, has_kernel=has_kernel)

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
            seed = fresh_seed()
        features = None if self.latent_map is None or z is None else self.latent_map(z)
        x, image = _as_volume(x), _as_volume(image)
        size_x, size_y, size_z = x.shape[2:]
        self.check_size((size_x, size_y, size_z))
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
