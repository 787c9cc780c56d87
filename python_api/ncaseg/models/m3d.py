"""M3D-NCA: one cellular automaton per resolution level, from coarse to fine; image in, logits out."""

import torch
from torch import Tensor

from ncaseg.config import M3DConfig
from ncaseg.levels import Triple, check_reflection, factors_of, pad_size, working_sizes
from ncaseg.models.base import Segmenter
from ncaseg.models.crops import NestedCrops
from ncaseg.models.layout import to_channels_first, to_channels_last
from ncaseg.models.multilevel import (
    WORKING_STATES,
    automata_bytes,
    enlarge_state,
    make_levels,
    pad_to_multiple,
    pool_image,
)


class M3D(Segmenter):
    """Segment volumes with n levels of neural cellular automata.

    Level 0 starts on the pooled image, all other channels 0. After each level the whole state is enlarged
    (nearest), the image channels are replaced by the image of that resolution, and the next automaton goes on.
    The logits are the channels behind the image channels of the last state.

    The image channels stay frozen within a level. Sizes that the factors do not divide are filled up as ``cfg.pad``
    says, and the logits are cut back; "none" fills nothing: level sizes are rounded up, and the last cell of a level
    spans less of the volume. In :meth:`crop_forward` a level works on its patch.

    Example:
        >>> from ncaseg.config import M3DConfig
        >>> model = M3D(M3DConfig(kernel_sizes=(7, 3), steps=(10, 10), scales=((2, 2, 2),)))
        >>> sum(p.numel() for p in model.parameters())
        12480

    Reference:
        Kalkhof and Mukhopadhyay, M3D-NCA: Robust 3D Segmentation with Built-in Quality Control, MICCAI 2023.
    """

    def __init__(self, cfg: M3DConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.in_channels, self.out_channels, self.channels = cfg.in_channels, cfg.out_channels, cfg.channels
        self.kernel_sizes, self.steps, self.scales = cfg.kernel_sizes, cfg.steps, cfg.scales
        self.padding, self.pad, self.pool, self.ndim = cfg.padding, cfg.pad, cfg.pool, cfg.ndim
        self.levels = make_levels(cfg, frozen_channels=cfg.in_channels)

    @property
    def cell_bytes(self) -> int:  # type: ignore[override]
        """A few states; the hidden values are stored by the reference only."""
        return 4 * (4 * self.channels + 2 * self.cfg.hidden)

    def check_size(self, size: Triple, *, training: bool = False) -> None:
        patches = self.cfg.patches if training else [()] * len(self.levels)
        self._check_levels(working_sizes(pad_size(size, self.scales, self.pad), self.scales, patches))

    def training_bytes(self, batch: int, size: Triple, keep_every: int, *, has_kernel: bool) -> int:
        return automata_bytes(self.cfg, batch, size, keep_every, working=WORKING_STATES, has_kernel=has_kernel)

    def factors(self, level: int) -> Triple:
        """How many full-resolution cells one cell of ``level`` spans, per axis."""
        return factors_of(self.scales)[level]

    def forward(
        self, image: Tensor, *, seed: int | Tensor | None = None, first_sample: int = 0, keep_every: int = 1
    ) -> Tensor:
        """Logits of whole volumes.

        Args:
            image: ``[B, C_in, X, Y, Z]`` float32.
            seed: names the stream of fire bits; no two steps of the levels share bits. None draws from torch's default
                generator.
            first_sample: number of the first sample in the stream: member i of an ensemble is ``first_sample=i``.
            keep_every: keep only every so many states for the backward pass and recompute the others.

        Returns:
            ``[B, C_out, X, Y, Z]``.

        Raises:
            ValueError: wrong rank or channels, or an axis too short for a level's kernel.
        """
        size = self._check_image(image)
        full = pad_to_multiple(image, self.factors(0), self.pad)
        x, y, z = full.shape[2:]
        self._check_levels(working_sizes((x, y, z), self.scales, [()] * len(self.levels)))
        state = None
        for level in range(len(self.levels)):
            state = self._begin(level, full, state)
            state = self._run(level, state, seed=seed, first_sample=first_sample, keep_every=keep_every)
        assert state is not None  # there is at least one level
        logits = self._logits(state)
        for axis, length in enumerate(size, start=2):
            logits = logits.narrow(axis, 0, length)
        return logits

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
        """Training pass: every level works on a patch cut at random inside the one before, or on all that is left.

        Args:
            image: ``[B, C_in, X, Y, Z]`` float32.
            label: ``[B, C_out, X, Y, Z]``.
            generator: draws the offsets, per sample and axis; torch's default generator when None.
            seed, keep_every: as in :meth:`forward`.
            foreground: probability that the patches of a sample all hold one voxel of its foreground, drawn at random.

        Returns:
            Logits and label of the last patch, both ``[B, C_out, *patch]``.
        """
        size = self._check_image(image)
        expected = (image.shape[0], self.out_channels, *size)
        if tuple(label.shape) != expected:
            raise ValueError(f"label must have shape {expected}; got {tuple(label.shape)}")
        if generator is None:
            generator = torch.default_generator
        padded = (pad_to_multiple(volume, self.factors(0), self.pad) for volume in (image, label))
        crops = NestedCrops(*padded, generator=generator, foreground=foreground)
        patches = working_sizes(crops.size, self.scales, self.cfg.patches)
        self._check_levels(patches)
        state = None
        for level, patch in enumerate(patches):
            offsets = crops.cut(patch, self.factors(level))
            state = self._begin(level, crops.image, state, offsets)
            state = self._run(level, state, seed=seed, keep_every=keep_every)
        assert state is not None  # there is at least one level
        return self._logits(state), crops.label

    def _run(
        self, level: int, state: Tensor, *, seed: int | Tensor | None, keep_every: int, first_sample: int = 0
    ) -> Tensor:
        # Steps are numbered through all levels, so that no two of them share fire bits.
        stream = {"seed": seed, "first_step": sum(self.steps[:level]), "keep_every": keep_every}
        if self.ndim == 3:
            return self.levels[level](state, self.steps[level], first_sample=first_sample, **stream)
        batch, depth = state.shape[0], state.shape[3]
        slices = state.movedim(3, 1).flatten(0, 1)  # [B * Z, X, Y, C]
        slices = self.levels[level](slices, self.steps[level], first_sample=first_sample * depth, **stream)
        return slices.unflatten(0, (batch, depth)).movedim(1, 3)

    def _begin(self, level: int, full: Tensor, state: Tensor | None, offsets: list[Triple] | None = None) -> Tensor:
        """The state a level starts with: the image of its resolution, and zeros or what the level before has left.

        Args:
            full: image at full resolution of the volume, or of the patches.
            state: of the level before; None for level 0.
            offsets: where the patches lie in the enlarged state, per sample; None takes all of it.
        """
        image = to_channels_last(pool_image(full, self.factors(level), self.pool))
        if state is None:
            return self._seed_state(image)
        x, y, z = image.shape[1:4]
        hidden = state[..., self.in_channels :]
        return torch.cat([image, enlarge_state(hidden, self.scales[level - 1], (x, y, z), offsets)], dim=-1)

    def _seed_state(self, image: Tensor) -> Tensor:
        """Image channels first, everything else 0."""
        return torch.cat([image, image.new_zeros((*image.shape[:4], self.channels - self.in_channels))], dim=-1)

    def _logits(self, state: Tensor) -> Tensor:
        return to_channels_first(state[..., self.in_channels : self.in_channels + self.out_channels])

    def _check_image(self, image: Tensor) -> Triple:
        if image.ndim != 5 or image.shape[1] != self.in_channels:
            raise ValueError(f"image must have shape [B, {self.in_channels}, X, Y, Z]; got {tuple(image.shape)}")
        x, y, z = image.shape[2:]
        return x, y, z

    def _check_levels(self, sizes: list[Triple]) -> None:
        if self.padding == "reflect":
            check_reflection(sizes, self.kernel_sizes, self.ndim)
