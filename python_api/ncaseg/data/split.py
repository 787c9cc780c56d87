"""The split into training and validation cases: by patient, reproducible, and written down with a hash."""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ncaseg import files


@dataclass(frozen=True)
class Split:
    """Ids of the training and of the validation cases, each sorted, and what made them."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    fraction: float
    seed: int

    @property
    def sha256(self) -> str:
        """Hash of the content; a split file that was edited does not match its own."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def make_split(ids: Iterable[str], fraction: float, seed: int, groups: Mapping[str, str] | None = None) -> Split:
    """Sort the ids, shuffle them with ``seed`` and keep ``fraction`` of them for validation.

    The number of validation cases is rounded to the nearest, at least one when ``fraction`` is positive. Cases of one
    group (a patient, a lesion) stay together: groups are shuffled, and held back until there are enough cases.

    Args:
        ids: of all cases.
        fraction: of the cases that is held back.
        seed: of the order.
        groups: id to the name of its group; an id without one is a group of its own.

    Raises:
        ValueError: an id occurs twice, or no training case would be left.

    Example:
        >>> split = make_split(["a", "b", "c", "d"], 0.25, seed=0)
        >>> len(split.train), len(split.validation)
        (3, 1)
    """
    ordered = sorted(ids)
    if len(set(ordered)) != len(ordered):
        raise ValueError("ids must be unique; got one twice")
    if not 0.0 <= fraction < 1.0:
        raise ValueError(f"fraction must lie in [0, 1); got {fraction}")
    count = max(math.floor(fraction * len(ordered) + 0.5), 1 if fraction > 0 else 0)
    if count >= len(ordered):
        raise ValueError(f"ids must leave at least one training case; got {len(ordered)} ids and fraction {fraction}")
    members: dict[str, list[str]] = {}
    for name in ordered:
        members.setdefault(name if groups is None else groups.get(name, name), []).append(name)
    names = sorted(members)
    held: set[str] = set()
    for i in np.random.default_rng(seed).permutation(len(names)):
        if len(held) < count:
            held.update(members[names[i]])
    if len(held) == len(ordered):
        raise ValueError(f"groups must leave at least one training case; got {len(names)} groups of {len(ordered)} ids")
    return Split(
        train=tuple(i for i in ordered if i not in held),
        validation=tuple(i for i in ordered if i in held),
        fraction=fraction,
        seed=seed,
    )


def save_split(path: str | Path, split: Split) -> None:
    """Write the split and its hash as JSON."""
    files.write_text(path, json.dumps({**asdict(split), "sha256": split.sha256}, indent=1) + "\n")


def load_split(path: str | Path) -> Split:
    """Read a split.

    Raises:
        ValueError: no JSON, missing keys, a case on both sides, or a content that does not match the hash in the file.
    """
    content = files.read_json(path, "a split file")
    try:
        split = Split(
            train=tuple(content["train"]),
            validation=tuple(content["validation"]),
            fraction=content["fraction"],
            seed=content["seed"],
        )
        matches = split.sha256 == content["sha256"]
    except KeyError as error:
        raise ValueError(f"{path} must be a split file; it has no entry {error}") from error
    except TypeError as error:
        raise ValueError(f"{path} must be a split file; its lists are none: {error}") from error
    named = [*split.train, *split.validation]
    if not all(isinstance(name, str) for name in named) or len(set(named)) < len(named):
        raise ValueError(f"{path} must name every case once, by its id, on one side of the split")
    if not matches:
        raise ValueError(f"{path} was changed: its content does not match its sha256. Restore it, or start a new run")
    return split
