"""MedSegDiffNCA: the denoiser of a mask as cellular automata, one per resolution level, with or without attention."""

import torch
from torch import Tensor, nn

from ncakern import NCA
from ncaseg.config import MedSegDiffConfig
from ncaseg.levels import Triple, check_reflection, factors_of, working_sizes
from ncaseg.models.base import Segmenter
from ncaseg.models.layout import to_channels_first, to_channels_last
from ncaseg.models.medsegdiffnca.attended_rollout import attended_rollout
from ncaseg.models.medsegdiffnca.cbam import CBAM
from ncaseg.models.multilevel import (
    REBUILT_STATES,
    WORKING_STATES,
    automata_bytes,
    enlarge_state,
    make_levels,
    pool_image,
)
from ncaseg.streams import fresh_seed

# States alive in the one step with attention that is being differentiated: 15 were measured (4 x 256x256 cells, 16
# channels; x86-64, torch 2.13, 2026-11).
ATTENTION_STATES = 15


class MedSegDiffNCA(Segmenter):
    """One state for everything; no channel is frozen or put back within a level::

        0 answer | 1 ... C_in image | C_in + 1 noisy mask | hidden | C - 2 position, if asked for | C - 1 time

    The coarsest level starts with zeros but for image, noisy mask, time and position. Between levels the whole state is
    enlarged (nearest); then these four are written again at the new resolution, while the answer and the hidden
    channels survive. The last state's channel 0 is the answer (the noise, say), and its image channels, which the
    automaton has painted over, are a second opinion about the mask.

    With ``cfg.attention`` every step looks at the state through CBAM before perceiving it, with weights per level.
    ``cfg.position`` writes the mean of the coordinates, each from 0 to 1, into channel C - 2. ``cfg.pool`` makes image
    and noisy mask of a coarser level; "trilinear" is interpolation without smoothing.

    Example:
        >>> from ncaseg.config import load_recipe
        >>> model = MedSegDiffNCA(load_recipe("medsegdiff-multicbam").model)
        >>> sum(p.numel() for p in model.parameters())
        412236

    Reference:
        Mittal, Kalkhof, Mukhopadhyay, Bhavsar, MedSegDiffNCA: Diffusion Models With Neural Cellular Automata for Skin
        Lesion Segmentation, arXiv:2501.02447, 2025.
    """

    def __init__(self, cfg: MedSegDiffConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.in_channels, self.channels, self.ndim = cfg.in_channels, cfg.channels, cfg.ndim
        self.kernel_sizes, self.steps, self.scales = cfg.kernel_sizes, cfg.steps, cfg.scales
        self.residual, self.position, self.pool = cfg.attention_residual, cfg.position, cfg.pool
        self.padding = cfg.padding
        self.levels = make_levels(cfg, activation=cfg.activation)
        count = len(cfg.kernel_sizes) if cfg.attention else 0
        self.attention = nn.ModuleList(CBAM(cfg.ndim, cfg.channels, cfg.attention_reduction) for _ in range(count))

    @property
    def cell_bytes(self) -> int:  # type: ignore[override]
        """A few states; the hidden values are stored by the reference only."""
        return 4 * (4 * self.channels + 2 * self.cfg.hidden)

    def check_size(self, size: Triple, *, training: bool = False) -> None:
        if self.padding == "reflect":
            sizes = working_sizes(size, self.scales, [()] * len(self.levels))
            check_reflection(sizes, self.kernel_sizes, self.ndim)

    def training_bytes(self, batch: int, size: Triple, keep_every: int, *, has_kernel: bool) -> int:
        working = WORKING_STATES + REBUILT_STATES + ATTENTION_STATES * self.cfg.attention
        return automata_bytes(self.cfg, batch, size, keep_every, working=working, has_kernel=has_kernel)

    def denoise(
        self,
        image: Tensor,
        noisy: Tensor,
        time: Tensor,
        *,
        seed: int | Tensor | None = None,
        first_step: int = 0,
        first_sample: int = 0,
        keep_every: int = 1,
    ) -> tuple[Tensor, Tensor]:
        """One pass through all levels.

        Args:
            image: ``[B, C_in, X, Y, Z]`` float32.
            noisy: ``[B, 1, X, Y, Z]``, the noisy mask.
            time: ``[B]``, what is written into the time channel.
            seed, first_sample: name the fire bits; no two steps of the levels share any.
            first_step: number of the first step in that stream; :attr:`num_steps` are used.
            keep_every: keep only every so many states for the backward pass.

        Returns:
            The answer ``[B, 1, X, Y, Z]`` and the painted image ``[B, C_in, X, Y, Z]``.

        Raises:
            ValueError: shapes that do not fit, or an axis too short for a level's kernel.
        """
        self._check(image, noisy, time)
        if seed is None:
            seed = fresh_seed()
        full = torch.cat([image, noisy], dim=1)
        state = None
        for level in range(len(self.levels)):
            state = self._begin(level, full, time, state)
            begin = first_step + sum(self.steps[:level])
            state = self._run(level, state, seed, begin, first_sample, keep_every)
        assert state is not None  # there is at least one level
        last = to_channels_first(state)
        return last[:, :1], last[:, 1 : 1 + self.in_channels]

    @property
    def num_steps(self) -> int:
        """Steps of the automata in one pass."""
        return sum(self.steps)

    def forward(
        self, image: Tensor, *, seed: int | Tensor | None = None, first_sample: int = 0, keep_every: int = 1
    ) -> Tensor:
        """The control without diffusion: logits ``[B, 1, X, Y, Z]`` in one pass, with no noisy mask and no time.

        They are the mean of the painted image channels.
        """
        noisy, time = torch.zeros_like(image[:, :1]), image.new_zeros(len(image))
        _, painted = self.denoise(image, noisy, time, seed=seed, first_sample=first_sample, keep_every=keep_every)
        return painted.mean(dim=1, keepdim=True)

    def crop_forward(
        self,
        image: Tensor,
        label: Tensor,
        *,
        seed: int | Tensor | None = None,
        generator: torch.Generator | None = None,
        keep_every: int = 1,
        foreground: float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        """Logits and label of whole images: there are no patches."""
        return self.forward(image, seed=seed, keep_every=keep_every), label

    def _begin(self, level: int, full: Tensor, time: Tensor, state: Tensor | None) -> Tensor:
        """The state that a level starts with, ``[B, x, y, z, C]``; ``state`` is the one of the level before."""
        seen = to_channels_last(pool_image(full, factors_of(self.scales)[level], self.pool))
        batch, x, y, z = seen.shape[:4]
        if state is None:
            state = seen.new_zeros((batch, x, y, z, self.channels))
        else:
            state = enlarge_state(state, self.scales[level - 1], (x, y, z))
        clock = time.to(seen.dtype).reshape(-1, 1, 1, 1, 1).expand(batch, x, y, z, 1)
        tail = [self._place(seen), clock] if self.position else [clock]
        hidden = state[..., self.in_channels + 2 : self.channels - len(tail)]
        return torch.cat([state[..., :1], seen, hidden, *tail], dim=-1)

    def _place(self, seen: Tensor) -> Tensor:
        axes = [torch.linspace(0, 1, n, dtype=seen.dtype, device=seen.device) for n in seen.shape[1 : 1 + self.ndim]]
        place = torch.stack(torch.meshgrid(*axes, indexing="ij")).mean(0)
        return (place if self.ndim == 3 else place[..., None])[None, ..., None].expand(*seen.shape[:4], 1)

    def _run(
        self, level: int, state: Tensor, seed: int | Tensor, first_step: int, first_sample: int, keep_every: int
    ) -> Tensor:
        batch, depth = state.shape[0], state.shape[3]
        if self.ndim == 2:
            state, first_sample = state.movedim(3, 1).flatten(0, 1), first_sample * depth  # [B * Z, X, Y, C]
        nca, steps = self.levels[level], self.steps[level]
        assert isinstance(nca, NCA)
        if self.attention:
            cbam = self.attention[level]
            assert isinstance(cbam, CBAM)
            state = attended_rollout(
                state,
                nca,
                cbam,
                steps,
                seed=seed,
                first_step=first_step,
                first_sample=first_sample,
                residual=self.residual,
                keep_every=keep_every,
            )
        else:
            stream = {"seed": seed, "first_step": first_step, "first_sample": first_sample, "keep_every": keep_every}
            state = nca(state, steps, **stream)
        return state if self.ndim == 3 else state.unflatten(0, (batch, depth)).movedim(1, 3)

    def _check(self, image: Tensor, noisy: Tensor, time: Tensor) -> None:
        if image.ndim != 5 or image.shape[1] != self.in_channels:
            raise ValueError(f"image must have shape [B, {self.in_channels}, X, Y, Z]; got {tuple(image.shape)}")
        one = (image.shape[0], 1, *image.shape[2:])
        for name, tensor, shape in (("noisy", noisy, one), ("time", time, one[:1])):
            if tuple(tensor.shape) != shape:
                raise ValueError(f"{name} must have shape {shape}; got {tuple(tensor.shape)}")
        x, y, z = image.shape[2:]
        self.check_size((x, y, z))
