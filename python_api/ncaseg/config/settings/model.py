"""What the network is: one class per kind of model, with the entries that it reads."""

import dataclasses
from typing import ClassVar

from ncaseg.config.settings.checks import require, require_one_of

Triple = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """What every network has: channels of the image in, channels of the logits out.

    ``out_channels`` 1 is the merged foreground; otherwise there is one channel per entry of ``data.labels``.

    Attributes:
        is_diffusion: whether the mask is sampled instead of computed in one pass.
        is_random: whether two runs on one image differ.
    """

    kind: str = ""
    in_channels: int = 1
    out_channels: int = 1

    ndim: ClassVar[int] = 3
    is_diffusion: ClassVar[bool] = False
    is_random: ClassVar[bool] = True

    @property
    def has_background(self) -> bool:
        """Whether the background is a channel of its own, the first one, in what the model gives."""
        return False

    def __post_init__(self) -> None:
        require_one_of("model.kind", self.kind, tuple(KINDS))
        require(isinstance(self, KINDS[self.kind]), "model.kind", f"fit {type(self).__name__}", self.kind)
        require(self.in_channels >= 1, "model.in_channels", "be at least 1", self.in_channels)
        require(self.out_channels >= 1, "model.out_channels", "be at least 1", self.out_channels)


@dataclasses.dataclass(frozen=True)
class AutomataConfig(ModelConfig):
    """Automata on one or more resolution levels. Tuples ordered by level run from coarse to fine.

    ``scales[i]`` are the per-axis factors between level i and level i + 1. ``pad`` fills sizes that the product of the
    factors does not divide ("replicate", "zeros"), or leaves them alone ("none": sizes of levels are rounded up and
    the last cell of a coarse level spans fewer fine ones). ``pool`` makes the image of a coarse level.
    ``ndim`` 2 makes every slice of the third axis an automaton of its own (Med-NCA). ``perception`` "depthwise" has one
    filter per channel, "dense" lets every channel see every channel; there are ``num_filters`` of them.
    """

    channels: int = 16
    hidden: int = 64
    kernel_sizes: tuple[int, ...] = (3,)
    steps: tuple[int, ...] = (24,)
    scales: tuple[Triple, ...] = ()
    norm: str = "batch"
    padding: str = "reflect"
    fire_rate: float = 0.5
    pad: str = "replicate"
    pool: str = "max"
    ndim: int = 3  # type: ignore[misc]  # a field here, a constant of the others
    perception: str = "depthwise"
    num_filters: int = 1

    @property
    def training_patches(self) -> tuple[tuple[int, ...], ...]:
        """What :func:`ncaseg.levels.working_sizes` is to take as patches in training: every level is whole."""
        return ((),) * len(self.kernel_sizes)

    def __post_init__(self) -> None:
        super().__post_init__()
        levels = len(self.kernel_sizes)
        needed = self.in_channels + self.out_channels
        least = f"be at least in_channels + out_channels = {needed}"
        require(self.channels >= needed, "model.channels", least, self.channels)
        require(self.hidden >= 1, "model.hidden", "be at least 1", self.hidden)
        require(levels >= 1, "model.kernel_sizes", "name one kernel per level", self.kernel_sizes)
        require(all(k >= 1 and k % 2 for k in self.kernel_sizes), "model.kernel_sizes", "be odd", self.kernel_sizes)
        require(len(self.steps) == levels, "model.steps", f"have one entry per level ({levels})", self.steps)
        require(all(s >= 0 for s in self.steps), "model.steps", "not be negative", self.steps)
        between = f"have one entry less than levels ({levels - 1})"
        require(len(self.scales) == levels - 1, "model.scales", between, self.scales)
        factors = [factor for scale in self.scales for factor in scale]
        require(all(f >= 1 for f in factors), "model.scales", "be at least 1", self.scales)
        require(0.0 <= self.fire_rate <= 1.0, "model.fire_rate", "lie in [0, 1]", self.fire_rate)
        require(self.ndim in (2, 3), "model.ndim", "be 2 or 3", self.ndim)
        flat = self.ndim == 3 or all(scale[2] == 1 for scale in self.scales)
        require(flat, "model.scales", "keep the third axis (factor 1) with model.ndim 2", self.scales)
        alone = self.ndim == 3 or self.norm != "batch"
        require(alone, "model.norm", 'be "none" or "instance" with model.ndim 2, where slices do not mix', self.norm)
        require(self.num_filters >= 1, "model.num_filters", "be at least 1", self.num_filters)
        require_one_of("model.perception", self.perception, ("depthwise", "dense"))
        require_one_of("model.pad", self.pad, ("replicate", "zeros", "none"))
        require_one_of("model.pool", self.pool, ("max", "average", "nearest", "trilinear"))
        require_one_of("model.norm", self.norm, ("none", "batch", "instance"))
        require_one_of("model.padding", self.padding, ("reflect", "zeros", "replicate", "circular"))


@dataclasses.dataclass(frozen=True)
class M3DConfig(AutomataConfig):
    """M3D-NCA and Med-NCA, see :class:`ncaseg.models.m3d.M3D`.

    ``patches`` has one entry per level, what it works on in training: three sizes, or ``[]`` for the whole level;
    without entries every level gets a patch of the size of level 0, as in M3D-NCA.
    """

    kind: str = "m3d"
    patches: tuple[tuple[int, ...], ...] = ()

    @property
    def training_patches(self) -> tuple[tuple[int, ...], ...]:
        return self.patches

    def __post_init__(self) -> None:
        super().__post_init__()
        levels = len(self.kernel_sizes)
        require(len(self.patches) in (0, levels), "model.patches", f"have one entry per level ({levels})", self.patches)
        require(all(len(p) in (0, 3) for p in self.patches), "model.patches", "be [] or three sizes each", self.patches)
        require(all(s >= 1 for p in self.patches for s in p), "model.patches", "be at least 1", self.patches)


@dataclasses.dataclass(frozen=True)
class UNetConfig(ModelConfig):
    """The baseline: ``features`` are six widths, see :class:`ncaseg.models.unet.UNet`."""

    kind: str = "unet"
    features: tuple[int, ...] = (24, 24, 48, 96, 192, 24)

    is_random: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require(len(self.features) == 6 and min(self.features) >= 1, "model.features", "be six widths", self.features)


@dataclasses.dataclass(frozen=True)
class MedSegDiffConfig(AutomataConfig):
    """MedSegDiffNCA, see :class:`ncaseg.models.medsegdiffnca.model.MedSegDiffNCA`.

    Kind "medsegdiff" denoises a mask, as the section ``diffusion`` says; "medsegdiff_oneshot" is the same network
    without diffusion, trained as a segmenter. ``attention`` looks at the state through CBAM, whose dense layers have
    ``channels / attention_reduction`` values, and adds what it sees to it (``attention_residual``). ``position`` writes
    the place of a cell into a channel.
    """

    kind: str = "medsegdiff"
    activation: str = "relu"
    attention: bool = False
    attention_reduction: int = 16
    attention_residual: bool = True
    position: bool = False

    @property
    def is_diffusion(self) -> bool:  # type: ignore[override]
        return self.kind == "medsegdiff"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_one_of("model.activation", self.activation, ("relu", "leaky_relu"))
        require(self.attention_reduction >= 1, "model.attention_reduction", "be at least 1", self.attention_reduction)
        least = self.in_channels + 3 + self.position
        require(self.channels >= least, "model.channels", f"be at least {least} with this kind", self.channels)
        require(self.out_channels == 1, "model.out_channels", "be 1 with this kind", self.out_channels)
        require(self.norm != "batch", "model.norm", 'be "none" or "instance": samples must not mix', self.norm)
        require(self.pad == "none", "model.pad", 'be "none" with this kind: sizes of levels are rounded up', self.pad)


@dataclasses.dataclass(frozen=True)
class CdalModelConfig(AutomataConfig):
    """cDAL's generator, which the section ``cdal`` chooses; all but the channels and ``ndim`` is for automata alone."""

    kind: str = "cdal"

    is_diffusion: ClassVar[bool] = True

    @property
    def has_background(self) -> bool:
        return self.out_channels > 1

    @property
    def label_channels(self) -> int:
        """Channels of a coded label: one, or one per class and one for the background."""
        return self.out_channels + self.has_background


KINDS: dict[str, type[ModelConfig]] = {
    "m3d": M3DConfig,
    "unet": UNetConfig,
    "medsegdiff": MedSegDiffConfig,
    "medsegdiff_oneshot": MedSegDiffConfig,
    "cdal": CdalModelConfig,
}
