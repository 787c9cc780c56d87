"""A run is one TOML file: frozen dataclasses, the reader that checks it, and overrides ``section.key=value``."""

import dataclasses
import difflib
import json
import tomllib
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints


def _require(holds: bool, name: str, must: str, got: object) -> None:
    if not holds:
        raise ValueError(f"{name} must {must}; got {got!r}")


def _require_one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    _require(value in allowed, name, f"be one of {', '.join(allowed)}", value)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The M3D segmenter. Tuples ordered by level run from coarse to fine.

    ``out_channels`` 1 is the merged foreground; otherwise one sigmoid channel per entry of ``data.labels``.
    ``scales[i]`` are the per-axis factors between level i and level i + 1; ``pad`` fills sizes that the product of the
    factors does not divide.
    """

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
        _require_one_of("model.pad", self.pad, ("replicate", "zeros"))
        _require_one_of("model.norm", self.norm, ("none", "batch", "instance"))
        _require_one_of("model.padding", self.padding, ("reflect", "zeros", "replicate", "circular"))


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """How a case becomes tensors, and how the cases are split.

    ``labels`` are the foreground values that may occur; ``size`` is the grid that volumes are zero-padded to at the end
    of each axis (empty: native size); ``clip_again`` repeats clip and min-max after padding, as M3D-NCA does.
    """

    labels: tuple[int, ...] = (1,)
    modalities: tuple[int, ...] = (0,)
    clip_percentiles: tuple[float, float] = (0.5, 99.5)
    size: tuple[int, ...] = ()
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
        _require(all(s >= 1 for s in self.size), "data.size", "be positive", self.size)
        fraction = self.validation_fraction
        _require(0.0 <= fraction < 1.0, "data.validation_fraction", "lie in [0, 1)", fraction)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The training loop.

    One optimiser step uses ``accumulate`` forward passes of ``batch_size`` volumes, each volume ``duplication`` times
    in its batch. ``steps`` counts optimiser steps; 0 means ``epochs`` passes over the training cases.
    The rate after u updates is ``lr`` (constant), ``lr * lr_decay**u`` (exponential), or falls along a cosine to
    ``lr * lr_final`` at the last step. 0 turns off ``grad_clip`` and ``validate_every``; a checkpoint is written every
    ``checkpoint_every`` steps (0: not) and at the end.
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
    schedule: str = "constant"
    lr_decay: float = 0.9999
    lr_final: float = 0.05
    grad_clip: float = 0.0
    skip_empty: bool = True
    keep_every: int = 1
    checkpoint_every: int = 100
    validate_every: int = 0

    def __post_init__(self) -> None:
        _require(self.steps > 0 or self.epochs > 0, "train.steps or train.epochs", "be positive", self.steps)
        for name in ("batch_size", "accumulate", "duplication", "keep_every"):
            _require(getattr(self, name) >= 1, f"train.{name}", "be at least 1", getattr(self, name))
        for name in ("seed", "steps", "epochs", "grad_clip", "checkpoint_every", "validate_every"):
            _require(getattr(self, name) >= 0, f"train.{name}", "not be negative", getattr(self, name))
        _require(self.lr > 0, "train.lr", "be positive", self.lr)
        _require(all(0 <= b < 1 for b in self.betas), "train.betas", "lie in [0, 1)", self.betas)
        _require_one_of("train.schedule", self.schedule, ("constant", "exponential", "cosine"))


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


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package, sorted."""
    folder = resources.files("ncaseg") / "recipes"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load_recipe(name_or_path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Read a recipe of the package by name, or a TOML file, and apply overrides.

    Args:
        name_or_path: a name of :func:`recipe_names` (``"demo"``) or the path of a ``.toml`` file.
        overrides: texts ``section.key=value``; the value is read as TOML, and as plain text where that fails.

    Raises:
        FileNotFoundError: there is neither a recipe nor a file of that name; the message lists the recipes.
        ValueError: not TOML, an unknown key (the nearest known key is named), or a value out of range.
        TypeError: a value of the wrong type.

    Example:
        >>> load_recipe("demo", ["train.steps=5"]).train.steps
        5
    """
    try:
        tree = tomllib.loads(_recipe_text(name_or_path))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"recipe {name_or_path} is not valid TOML: {error}") from error
    for override in overrides:
        _apply_override(tree, override)
    return from_dict(tree)


def from_dict(tree: Mapping[str, Any]) -> Config:
    """Build a :class:`Config` from nested mappings (TOML or JSON); raises as :func:`load_recipe`."""
    return _build(Config, tree, "")


def to_dict(cfg: Config) -> dict[str, Any]:
    """Nested dictionaries of plain values; ``from_dict(to_dict(cfg)) == cfg``, also by way of JSON."""
    return dataclasses.asdict(cfg)


def to_toml(cfg: Config) -> str:
    """The complete recipe as TOML, defaults included; :func:`load_recipe` reads it back to an equal config."""
    sections = to_dict(cfg)
    # JSON of strings, numbers, booleans and arrays is TOML as well.
    lines = [f"name = {json.dumps(sections.pop('name'))}"]
    for section, values in sections.items():
        lines += ["", f"[{section}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
    return "\n".join(lines) + "\n"


def differences(old: Config, new: Config) -> list[str]:
    """Lines ``section.key: old -> new`` of all settings in which two configs differ."""
    before, after = _flatten(to_dict(old)), _flatten(to_dict(new))
    return [f"{key}: {before[key]!r} -> {after[key]!r}" for key in before if before[key] != after[key]]


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _recipe_text(name_or_path: str | Path) -> str:
    path = Path(name_or_path)
    if path.suffix == ".toml":
        if not path.is_file():
            raise FileNotFoundError(f"recipe file {path} does not exist; recipes by name: {', '.join(recipe_names())}")
        return path.read_text(encoding="utf-8")
    if str(name_or_path) not in recipe_names():
        known = ", ".join(recipe_names())
        raise FileNotFoundError(f"no recipe named {str(name_or_path)!r}; known: {known}; or give a .toml file")
    return (resources.files("ncaseg") / "recipes" / f"{name_or_path}.toml").read_text(encoding="utf-8")


def _apply_override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    section, dot, name = key.strip().partition(".")
    if not equals or not dot or not name:
        raise ValueError(f"an override must read section.key=value, e.g. train.steps=500; got {override!r}")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()  # a bare word such as cosine
    _known(section, Config, "")
    if not isinstance(tree.setdefault(section, {}), dict):
        raise ValueError(f"an override must name a key inside a section; got {override!r}")
    tree[section][name] = value


def _known(key: str, kind: type, prefix: str) -> None:
    names = [field.name for field in dataclasses.fields(kind)]
    if key not in names:
        near = difflib.get_close_matches(key, names, n=1)
        hint = f"did you mean {prefix}{near[0]}?" if near else f"known: {', '.join(prefix + n for n in names)}"
        raise ValueError(f"unknown key {prefix}{key}; {hint}")


def _build(kind: type, tree: Mapping[str, Any], prefix: str) -> Any:
    if not isinstance(tree, Mapping):
        raise TypeError(f"{prefix.rstrip('.')} must be a section (a table); got {tree!r}")
    for key in tree:
        _known(key, kind, prefix)
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        has_default = field.default is not dataclasses.MISSING
        if field.name not in tree and not has_default:
            raise ValueError(f"key {prefix}{field.name} is missing")
    return kind(**{key: _convert(value, hints[key], f"{prefix}{key}") for key, value in tree.items()})


def _convert(value: Any, hint: Any, name: str) -> Any:
    """Return ``value`` as the annotated type: sequences become tuples, whole numbers may stand for floats."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return _build(hint, value, f"{name}.")
    if get_origin(hint) is tuple:
        inner = get_args(hint)
        if not isinstance(value, (list, tuple)):
            raise TypeError(f"{name} must be a list; got {value!r}")
        if inner[-1] is Ellipsis:
            inner = (inner[0],) * len(value)
        if len(inner) != len(value):
            raise ValueError(f"{name} must have {len(inner)} entries; got {value!r}")
        return tuple(_convert(v, h, f"{name}[{i}]") for i, (v, h) in enumerate(zip(value, inner, strict=True)))
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is float and is_number:
        return float(value)
    if type(value) is not hint:
        raise TypeError(f"{name} must be of type {hint.__name__}; got {value!r} ({type(value).__name__})")
    return value
