"""The settings of a run as frozen dataclasses that check themselves; :mod:`ncaseg.config` reads and writes them."""

import dataclasses


def _require(holds: bool, name: str, must: str, got: object) -> None:
    if not holds:
        raise ValueError(f"{name} must {must}; got {got!r}")


def _require_one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    _require(value in allowed, name, f"be one of {', '.join(allowed)}", value)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The segmenter: ``kind`` "m3d", the automata, or "unet", the baseline, which reads only ``in_channels``,
    ``out_channels`` and ``features`` (six widths). Tuples ordered by level run from coarse to fine.

    ``out_channels`` 1 is the merged foreground; otherwise one sigmoid channel per entry of ``data.labels``.
    ``scales[i]`` are the per-axis factors between level i and level i + 1. ``pad`` fills sizes that the product of the
    factors does not divide ("replicate", "zeros"), or leaves them alone ("none": sizes of levels are rounded up and
    the last cell of a coarse level spans fewer fine ones). ``pool`` makes the image of a coarse level.
    ``patches`` has one entry per level, what it works on in training: three sizes, or ``[]`` for the whole level;
    without entries every level gets a patch of the size of level 0, as in M3D-NCA.
    ``ndim`` 2 is Med-NCA: every slice of the third axis is an automaton of its own. ``perception`` "depthwise" has one
    filter per channel, "dense" lets every channel see every channel; there are ``num_filters`` of them.
    """

    kind: str = "m3d"
    in_channels: int = 1
    out_channels: int = 1
    channels: int = 16
    hidden: int = 64
    kernel_sizes: tuple[int, ...] = (3,)
    steps: tuple[int, ...] = (24,)
    scales: tuple[tuple[int, int, int], ...] = ()
    norm: str = "batch"
    padding: str = "reflect"
    fire_rate: float = 0.5
    pad: str = "replicate"
    pool: str = "max"
    patches: tuple[tuple[int, ...], ...] = ()
    ndim: int = 3
    perception: str = "depthwise"
    num_filters: int = 1
    features: tuple[int, ...] = (24, 24, 48, 96, 192, 24)

    def __post_init__(self) -> None:
        levels = len(self.kernel_sizes)
        _require(self.in_channels >= 1, "model.in_channels", "be at least 1", self.in_channels)
        _require(self.out_channels >= 1, "model.out_channels", "be at least 1", self.out_channels)
        needed = self.in_channels + self.out_channels
        least = f"be at least in_channels + out_channels = {needed}"
        _require(self.channels >= needed, "model.channels", least, self.channels)
        _require(self.hidden >= 1, "model.hidden", "be at least 1", self.hidden)
        _require(levels >= 1, "model.kernel_sizes", "name one kernel per level", self.kernel_sizes)
        _require(all(k >= 1 and k % 2 for k in self.kernel_sizes), "model.kernel_sizes", "be odd", self.kernel_sizes)
        _require(len(self.steps) == levels, "model.steps", f"have one entry per level ({levels})", self.steps)
        _require(all(s >= 0 for s in self.steps), "model.steps", "not be negative", self.steps)
        between = f"have one entry less than levels ({levels - 1})"
        _require(len(self.scales) == levels - 1, "model.scales", between, self.scales)
        factors = [factor for scale in self.scales for factor in scale]
        _require(all(f >= 1 for f in factors), "model.scales", "be at least 1", self.scales)
        _require(0.0 <= self.fire_rate <= 1.0, "model.fire_rate", "lie in [0, 1]", self.fire_rate)
        _require(
            len(self.patches) in (0, levels), "model.patches", f"have one entry per level ({levels})", self.patches
        )
        _require(
            all(len(p) in (0, 3) for p in self.patches), "model.patches", "be [] or three sizes each", self.patches
        )
        _require(all(s >= 1 for p in self.patches for s in p), "model.patches", "be at least 1", self.patches)
        _require_one_of("model.kind", self.kind, ("m3d", "unet"))
        _require(len(self.features) == 6 and min(self.features) >= 1, "model.features", "be six widths", self.features)
        _require(self.ndim in (2, 3), "model.ndim", "be 2 or 3", self.ndim)
        flat = self.ndim == 3 or all(scale[2] == 1 for scale in self.scales)
        _require(flat, "model.scales", "keep the third axis (factor 1) with model.ndim 2", self.scales)
        alone = self.ndim == 3 or self.norm != "batch"
        _require(alone, "model.norm", 'be "none" or "instance" with model.ndim 2, where slices do not mix', self.norm)
        _require(self.num_filters >= 1, "model.num_filters", "be at least 1", self.num_filters)
        _require_one_of("model.perception", self.perception, ("depthwise", "dense"))
        _require_one_of("model.pad", self.pad, ("replicate", "zeros", "none"))
        _require_one_of("model.pool", self.pool, ("max", "average", "nearest", "trilinear"))
        _require_one_of("model.norm", self.norm, ("none", "batch", "instance"))
        _require_one_of("model.padding", self.padding, ("reflect", "zeros", "replicate", "circular"))


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """How a case becomes tensors, and how the cases are split.

    ``labels`` are the foreground values that may occur; ``size`` is the grid of the network (empty: native size; 0
    keeps the native size of an axis), reached by zeros at the end of each axis (``fit`` "pad") or by interpolation
    ("resize"); ``clip_again`` repeats clip and min-max after that, as M3D-NCA does.
    """

    labels: tuple[int, ...] = (1,)
    modalities: tuple[int, ...] = (0,)
    clip_percentiles: tuple[float, float] = (0.5, 99.5)
    size: tuple[int, ...] = ()
    fit: str = "pad"
    clip_again: bool = False
    validation_fraction: float = 0.15
    split_seed: int = 0
    cache: bool = True

    def __post_init__(self) -> None:
        low, high = self.clip_percentiles
        positive = all(0 < v < 256 for v in self.labels)
        _require(len(self.labels) >= 1 and positive, "data.labels", "be values from 1 to 255", self.labels)
        _require(len(set(self.labels)) == len(self.labels), "data.labels", "name each value once", self.labels)
        _require(all(m >= 0 for m in self.modalities), "data.modalities", "not be negative", self.modalities)
        _require(0 <= low < high <= 100, "data.clip_percentiles", "be 0 <= low < high <= 100", self.clip_percentiles)
        _require(len(self.size) in (0, 3), "data.size", "be empty (native size) or three sizes", self.size)
        _require(all(s >= 0 for s in self.size), "data.size", "not be negative", self.size)
        _require_one_of("data.fit", self.fit, ("pad", "resize"))
        fraction = self.validation_fraction
        _require(0.0 <= fraction < 1.0, "data.validation_fraction", "lie in [0, 1)", fraction)


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Random changes of training cases, each with its own probability; all of them are off by default.

    ``flip`` has one probability per axis. ``affine`` turns by up to ``rotation_degrees`` about each axis, scales by a
    factor from ``scale`` and shifts by up to ``shift_mm``; labels move by nearest neighbour. Then follow Gaussian
    noise, blur (sigma in cells; each channel with probability ``blur_channel``), brightness (a factor), contrast (a
    factor about the mean, within the old range), gamma (an exponent on [0, 1]) and a loss of resolution (nearest
    sampling at ``low_resolution_zoom`` of the cells). Ranges are drawn from uniformly, once per case and step.
    """

    flip: tuple[float, float, float] = (0.0, 0.0, 0.0)
    affine: float = 0.0
    rotation_degrees: tuple[float, float, float] = (10.0, 10.0, 10.0)
    scale: tuple[float, float] = (0.9, 1.1)
    shift_mm: tuple[float, float, float] = (2.0, 2.0, 2.0)
    noise: float = 0.0
    noise_std: tuple[float, float] = (0.0, 0.1)
    blur: float = 0.0
    blur_sigma: tuple[float, float] = (0.5, 1.0)
    blur_channel: float = 1.0
    brightness: float = 0.0
    brightness_factor: tuple[float, float] = (0.75, 1.25)
    contrast: float = 0.0
    contrast_factor: tuple[float, float] = (0.75, 1.25)
    gamma: float = 0.0
    gamma_exponent: tuple[float, float] = (0.7, 1.5)
    low_resolution: float = 0.0
    low_resolution_zoom: tuple[float, float] = (0.5, 1.0)

    def __post_init__(self) -> None:
        chances = ("affine", "noise", "blur", "blur_channel", "brightness", "contrast", "gamma", "low_resolution")
        for name in chances:
            _require(0.0 <= getattr(self, name) <= 1.0, f"augment.{name}", "be a probability", getattr(self, name))
        _require(all(0.0 <= p <= 1.0 for p in self.flip), "augment.flip", "be probabilities", self.flip)
        for name in ("rotation_degrees", "shift_mm"):
            _require(
                all(v >= 0.0 for v in getattr(self, name)), f"augment.{name}", "not be negative", getattr(self, name)
            )
        positive = (
            "scale",
            "blur_sigma",
            "brightness_factor",
            "contrast_factor",
            "gamma_exponent",
            "low_resolution_zoom",
        )
        for name in (*positive, "noise_std"):
            low, high = getattr(self, name)
            ordered = low <= high and (low > 0.0 or (name == "noise_std" and low == 0.0))
            _require(ordered, f"augment.{name}", "be a range of positive numbers, the lower one first", (low, high))
        _require(
            self.low_resolution_zoom[1] <= 1.0, "augment.low_resolution_zoom", "not exceed 1", self.low_resolution_zoom
        )

    @property
    def is_on(self) -> bool:
        """Whether anything can happen at all."""
        chances = (self.affine, self.noise, self.blur, self.brightness, self.contrast, self.gamma, self.low_resolution)
        return any(p > 0.0 for p in (*self.flip, *chances))


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The training loop.

    One optimiser step uses ``accumulate`` forward passes of ``batch_size`` volumes, each volume ``duplication`` times
    in its batch. ``steps`` counts optimiser steps; 0 means ``epochs`` passes over the training cases.
    The rate after u updates is ``lr`` (constant), ``lr * lr_decay**u`` (exponential), or falls along a cosine to
    ``lr * lr_final`` at the last step; with ``lr_interval`` "epoch" u counts finished epochs.
    ``loss`` is one of :mod:`ncaseg.losses`, its two parts weighted by ``loss_weights``; ``skip_empty`` leaves out
    channels without foreground in the batch, and the optimiser step where none is left.
    With probability ``foreground_crops`` the patches of a sample are drawn around a voxel of its foreground.
    ``slices`` takes so many random slices of each volume instead of the whole (with ``model.ndim`` 2).
    0 turns off ``grad_clip`` and ``validate_every``; a checkpoint is written every ``checkpoint_every`` steps (0: not)
    and at the end.
    With ``ema_decay`` d above 0 a running mean of the weights, ``mean = d mean + (1 - d) weights``, is what validation
    and the final checkpoint use. It starts as a copy after ``ema_start`` updates and moves after every update
    (``ema_interval`` "step") or after the last one of an epoch ("epoch").
    """

    seed: int = 0
    device: str = "cpu"
    steps: int = 0
    epochs: int = 0
    batch_size: int = 1
    accumulate: int = 1
    duplication: int = 1
    lr: float = 1.6e-3
    betas: tuple[float, float] = (0.9, 0.99)
    optimizer: str = "adam"
    weight_decay: float = 0.0
    loss: str = "dice_bce"
    loss_weights: tuple[float, float] = (1.0, 1.0)
    focal_gamma: float = 2.0
    foreground_crops: float = 0.0
    slices: int = 0
    schedule: str = "constant"
    lr_interval: str = "step"
    lr_decay: float = 0.9999
    lr_final: float = 0.05
    grad_clip: float = 0.0
    skip_empty: bool = True
    keep_every: int = 1
    checkpoint_every: int = 100
    validate_every: int = 0
    ema_decay: float = 0.0
    ema_start: int = 0
    ema_interval: str = "step"

    def __post_init__(self) -> None:
        _require(self.steps > 0 or self.epochs > 0, "train.steps or train.epochs", "be positive", self.steps)
        for name in ("batch_size", "accumulate", "duplication", "keep_every"):
            _require(getattr(self, name) >= 1, f"train.{name}", "be at least 1", getattr(self, name))
        for name in (
            "seed",
            "steps",
            "epochs",
            "grad_clip",
            "checkpoint_every",
            "validate_every",
            "ema_start",
            "slices",
        ):
            _require(getattr(self, name) >= 0, f"train.{name}", "not be negative", getattr(self, name))
        _require(self.lr > 0, "train.lr", "be positive", self.lr)
        _require(all(0 <= b < 1 for b in self.betas), "train.betas", "lie in [0, 1)", self.betas)
        for name in ("weight_decay", "focal_gamma"):
            _require(getattr(self, name) >= 0.0, f"train.{name}", "not be negative", getattr(self, name))
        _require(min(self.loss_weights) >= 0.0, "train.loss_weights", "not be negative", self.loss_weights)
        _require(0.0 <= self.foreground_crops <= 1.0, "train.foreground_crops", "lie in [0, 1]", self.foreground_crops)
        _require_one_of("train.optimizer", self.optimizer, ("adam", "adamw"))
        _require_one_of("train.loss", self.loss, ("dice_bce", "m3d_upstream", "dice_focal"))
        _require_one_of("train.lr_interval", self.lr_interval, ("step", "epoch"))
        _require_one_of("train.schedule", self.schedule, ("constant", "exponential", "cosine"))
        _require(0.0 <= self.ema_decay < 1.0, "train.ema_decay", "lie in [0, 1)", self.ema_decay)
        _require_one_of("train.ema_interval", self.ema_interval, ("step", "epoch"))


@dataclasses.dataclass(frozen=True)
class PredictConfig:
    """The pseudo-ensemble: the mean of the logits of ``samples`` runs, sigmoid, ``threshold`` (M3D-NCA)."""

    samples: int = 10
    threshold: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        _require(self.samples >= 1, "predict.samples", "be at least 1", self.samples)
        _require(0.0 < self.threshold < 1.0, "predict.threshold", "lie between 0 and 1", self.threshold)
        _require(self.seed >= 0, "predict.seed", "not be negative", self.seed)


@dataclasses.dataclass(frozen=True)
class Config:
    """One run: everything but the folder of the data and the folder of the results."""

    name: str
    train: TrainConfig
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    predict: PredictConfig = PredictConfig()

    def __post_init__(self) -> None:
        allowed = (1, len(self.data.labels))
        _require(
            self.model.out_channels in allowed,
            "model.out_channels",
            f"be 1 (merged foreground) or one per entry of data.labels {self.data.labels}",
            self.model.out_channels,
        )
        _require(
            self.model.in_channels == len(self.data.modalities),
            "model.in_channels",
            f"equal the number of data.modalities ({len(self.data.modalities)})",
            self.model.in_channels,
        )
        is_flat = self.train.slices == 0 or self.model.ndim == 2
        _require(is_flat, "train.slices", "be 0 unless model.ndim is 2", self.train.slices)
