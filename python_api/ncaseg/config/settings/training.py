"""How a model is trained, and what becomes of its runs."""

import dataclasses

from ncaseg.config.settings.checks import require, require_one_of


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The training loop.

    One optimiser step uses ``accumulate`` forward passes of ``batch_size`` volumes, each volume ``duplication`` times
    in its batch. ``steps`` counts optimiser steps; 0 means ``epochs`` passes over the training cases.
    The rate after u updates is ``lr`` (constant), ``lr * lr_decay**u`` (exponential), or falls along a cosine to
    ``lr * lr_final`` at the last step; with ``lr_interval`` "epoch" u counts finished epochs.
    ``optimizer`` is "adam", "adamw", or "muon": Muon for all parameters of two dimensions and AdamW for the rest, see
    :mod:`ncaseg.training.optimizers`.
    ``loss`` is one of :mod:`ncaseg.training.losses`, its two parts weighted by ``loss_weights``; ``skip_empty`` leaves
    out channels without foreground in the batch, and the optimiser step where none is left.
    With probability ``foreground_crops`` the patches of a sample are drawn around a voxel of its foreground.
    ``slices`` takes so many random slices of each volume instead of the whole (with ``model.ndim`` 2).
    The first ``small_steps`` steps work on batches that are resized to ``small_size`` (0 keeps an axis): automata
    learn on few cells, cheaply, what then serves on many.
    ``precision`` "bfloat16" runs convolutions and dense layers of plain PyTorch in that format (autocast); the automata
    compute in float32 all the same.
    0 turns off ``grad_clip`` and ``validate_every``; a checkpoint is written every ``checkpoint_every`` steps (0: not)
    and at the end.
    With ``ema_decay`` d above 0 a running mean of the weights, ``mean = d mean + (1 - d) weights``, is what validation
    and the final checkpoint use. It starts as a copy after ``ema_start`` updates and moves after every update
    (``ema_interval`` "step") or after the last one of an epoch ("epoch").
    """

    seed: int = 0
    device: str = "cpu"
    precision: str = "float32"
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
    small_steps: int = 0
    small_size: tuple[int, ...] = ()
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
        require(self.steps > 0 or self.epochs > 0, "train.steps or train.epochs", "be positive", self.steps)
        for name in ("batch_size", "accumulate", "duplication", "keep_every"):
            require(getattr(self, name) >= 1, f"train.{name}", "be at least 1", getattr(self, name))
        for name in (
            "seed",
            "steps",
            "epochs",
            "grad_clip",
            "checkpoint_every",
            "validate_every",
            "ema_start",
            "slices",
            "small_steps",
        ):
            require(getattr(self, name) >= 0, f"train.{name}", "not be negative", getattr(self, name))
        require(self.lr > 0, "train.lr", "be positive", self.lr)
        require(all(0 <= b < 1 for b in self.betas), "train.betas", "lie in [0, 1)", self.betas)
        for name in ("weight_decay", "focal_gamma"):
            require(getattr(self, name) >= 0.0, f"train.{name}", "not be negative", getattr(self, name))
        require(min(self.loss_weights) >= 0.0, "train.loss_weights", "not be negative", self.loss_weights)
        require(0.0 <= self.foreground_crops <= 1.0, "train.foreground_crops", "lie in [0, 1]", self.foreground_crops)
        fits = len(self.small_size) == 3 * (self.small_steps > 0) and all(s >= 0 for s in self.small_size)
        require(fits, "train.small_size", "be three sizes with train.small_steps, empty without", self.small_size)
        require_one_of("train.precision", self.precision, ("float32", "bfloat16"))
        require_one_of("train.optimizer", self.optimizer, ("adam", "adamw", "muon"))
        require_one_of("train.loss", self.loss, ("dice_bce", "m3d_upstream", "dice_focal", "sample_dice_bce"))
        require_one_of("train.lr_interval", self.lr_interval, ("step", "epoch"))
        require_one_of("train.schedule", self.schedule, ("constant", "exponential", "cosine"))
        require(0.0 <= self.ema_decay < 1.0, "train.ema_decay", "lie in [0, 1)", self.ema_decay)
        require_one_of("train.ema_interval", self.ema_interval, ("step", "epoch"))


@dataclasses.dataclass(frozen=True)
class PredictConfig:
    """The pseudo-ensemble: ``samples`` members combined by ``rule``, by default the sigmoid of the mean of their logits
    (M3D-NCA), see :func:`ncaseg.ensemble.combine`; foreground is what exceeds ``threshold``. With ``flips``, some of
    the letters "xyz", the members see the image mirrored along these axes in turn, see
    :func:`ncaseg.ensemble.mirrored_axes`."""

    samples: int = 10
    rule: str = "mean-logit"
    threshold: float = 0.5
    seed: int = 0
    flips: str = ""

    def __post_init__(self) -> None:
        require(self.samples >= 1, "predict.samples", "be at least 1", self.samples)
        require_one_of("predict.rule", self.rule, ("mean-logit", "mean-probability", "median"))
        require(0.0 < self.threshold < 1.0, "predict.threshold", "lie between 0 and 1", self.threshold)
        require(self.seed >= 0, "predict.seed", "not be negative", self.seed)
        is_known = set(self.flips) <= set("xyz") and len(set(self.flips)) == len(self.flips)
        require(is_known, "predict.flips", "name some of the axes xyz, each once", self.flips)
