"""A run is one TOML file: the reader that checks it, overrides ``section.key=value``, and the writer."""

import dataclasses
import difflib
import json
import math
import tomllib
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from ncaseg import levels
from ncaseg.config.settings import KINDS, AutomataConfig, Config, DataConfig, ModelConfig
from ncaseg.config.settings.checks import require_one_of
from ncaseg.files import read_text
from ncaseg.limits import check_limits

READING = ("data.label_map", "data.white", "data.drop_channels", "data.max_read_gb")


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
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ValueError(f"recipe {name_or_path} is not valid TOML: {error}") from error
    for override in overrides:
        _apply_override(tree, override)
    try:
        cfg = from_dict(tree)
        check_limits(to_dict(cfg))
    except (TypeError, ValueError) as error:
        raise type(error)(f"recipe {name_or_path}: {error}") from error
    return cfg


def with_reading(cfg: Config, overrides: Iterable[str]) -> Config:
    """A finished model's config with other words on how files are read; nothing else of it may change.

    Raises:
        ValueError: another key, or a value out of range.
        TypeError: a value of the wrong type.
    """
    tree = to_dict(cfg)
    for override in overrides:
        key = override.partition("=")[0].strip()
        if key not in READING:
            raise ValueError(f"a trained model takes only {', '.join(READING)}; got {key!r}")
        _apply_override(tree, override)
    return from_dict(tree)


def from_dict(tree: Mapping[str, Any]) -> Config:
    """Build a :class:`Config` from nested mappings (TOML or JSON); raises as :func:`load_recipe`.

    Two entries of a recipe are spelt out here: ``model.sizes``, one triple per level, gives ``model.scales``; and
    ``model.steps = "auto"`` gives enough steps for information to cross the grid that a level trains on.
    """
    return _build(Config, _spell_out(tree), "")


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
    """Lines ``section.key: old -> new`` of all settings in which two configs differ, of those that both have."""
    before, after = _flatten(to_dict(old)), _flatten(to_dict(new))
    shared = [key for key in before if key in after]
    return [f"{key}: {before[key]!r} -> {after[key]!r}" for key in shared if before[key] != after[key]]


def _spell_out(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    if not isinstance(tree, Mapping):
        raise TypeError(f"a recipe must be a table of sections; got a {type(tree).__name__}")
    model = tree.get("model")
    if not isinstance(model, Mapping):
        return tree
    model = dict(model)
    data = _build(DataConfig, tree.get("data", {}), "data.")
    if "sizes" in model:
        sizes = _convert(model.pop("sizes"), tuple[tuple[int, int, int], ...], "model.sizes")
        if "scales" in model or not sizes or any(n < 1 for size in sizes for n in size):
            raise ValueError(f"model.sizes must be positive, one triple per level, without model.scales; got {sizes}")
        if levels.or_native(data.size, sizes[-1]) != sizes[-1]:
            raise ValueError(f"model.sizes must end with data.size {data.size} (0: any); got {sizes[-1]}")
        model["scales"] = levels.scales_of(sizes)
    if model.get("steps") == "auto":
        kernels = model.get("kernel_sizes", AutomataConfig.kernel_sizes)
        cfg = _build(Config, {**tree, "model": {**model, "steps": [0] * len(kernels)}}, "")
        model["steps"] = levels.steps_to_cross(_crossed_sizes(cfg.model, cfg.data), cfg.model.kernel_sizes)
    return {**tree, "model": model}


def _crossed_sizes(model: AutomataConfig, data: DataConfig) -> list[tuple[int, ...]]:
    """Cells of what each level works on in training, along the axes that its automaton sees."""
    size = levels.or_native(data.crop, levels.or_native(data.size, (0, 0, 0)))
    if not all(size[: model.ndim]):
        axes = "XYZ"[: model.ndim]
        given = f"data.size {data.size} and data.crop {data.crop}"
        raise ValueError(f'model.steps "auto" needs data.size or data.crop on the axes {axes} to cross; got {given}')
    return [cells[: model.ndim] for cells in levels.working_sizes(size, model.scales, model.training_patches)]


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
        return read_text(path)
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
    if kind is ModelConfig:
        kind, tree = _of_its_kind(tree)
    for key in tree:
        _known(key, kind, prefix)
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        has_default = field.default is not dataclasses.MISSING
        if field.name not in tree and not has_default:
            raise ValueError(f"key {prefix}{field.name} is missing")
    return kind(**{key: _convert(value, hints[key], f"{prefix}{key}") for key, value in tree.items()})


def _of_its_kind(tree: Mapping[str, Any]) -> tuple[type, dict[str, Any]]:
    """The class of a model's section and what it reads of it.

    Files that name the entries of all kinds, as they once did, may hold those of the others at their defaults.
    """
    name = _convert(tree.get("kind", "m3d"), str, "model.kind")
    require_one_of("model.kind", name, tuple(KINDS))
    kind, own = KINDS[name], {}
    others = {field.name: field.default for other in KINDS.values() for field in dataclasses.fields(other)}
    read = {field.name for field in dataclasses.fields(kind)}
    for key, value in tree.items():
        if key in read or key not in others:
            own[key] = value
        elif _as_tuples(value) != others[key]:
            raise ValueError(
                f"model.{key} must be left out with model.kind {name!r}, which does not read it; got {value!r}"
            )
    return kind, own


def _as_tuples(value: Any) -> Any:
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


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
        if not math.isfinite(value):
            raise ValueError(f"{name} must be finite; got {value!r}")
        return float(value)
    if type(value) is not hint:
        raise TypeError(f"{name} must be of type {hint.__name__}; got {value!r} ({type(value).__name__})")
    return value
