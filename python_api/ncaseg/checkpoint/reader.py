"""A checkpoint without torch: its arrays, its recipe and its metadata, checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

import ncakern
from ncaseg import config, zoo

FORMAT = "ncaseg"
FORMAT_VERSION = 1


class Weights(NamedTuple):
    """What a checkpoint file holds."""

    path: Path
    arrays: dict[str, np.ndarray]
    cfg: config.Config
    metadata: dict[str, str]


def read_weights(name_or_path: str | Path) -> Weights:
    """Read a checkpoint file, or an entry of the zoo by name.

    Raises:
        ValueError: neither a file nor a zoo entry (the entries are listed), not a checkpoint of this package, or one of
            another format version.
    """
    path = _resolve(name_or_path)
    try:
        with safe_open(path, "np") as file:
            metadata = dict({} if file.metadata() is None else file.metadata())
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except SafetensorError as error:
        raise ValueError(f"{path} must be a safetensors file; it cannot be read as one: {error}") from error
    _check_format(path, metadata)
    return Weights(path, arrays, config.from_dict(json.loads(metadata["recipe"])), metadata)


def check_shapes(weights: Weights, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raise a ValueError that names every array which is missing, surplus or of a wrong shape."""
    arrays = weights.arrays
    missing, surplus = sorted(expected.keys() - arrays.keys()), sorted(arrays.keys() - expected.keys())
    wrong = [
        f"{name} is {list(arrays[name].shape)}, expected {list(expected[name])}"
        for name in sorted(expected.keys() & arrays.keys())
        if arrays[name].shape != tuple(expected[name])
    ]
    if missing or surplus or wrong:
        raise ValueError(
            f"{weights.path} (written by ncakern {weights.metadata.get('ncakern_version')}) does not fit its recipe: "
            f"missing tensors {missing}, surplus tensors {surplus}, wrong shapes {wrong}"
        )


def _resolve(name_or_path: str | Path) -> Path:
    path = Path(name_or_path)
    if path.is_file():
        return path
    if str(name_or_path) in zoo.names():
        return zoo.path(str(name_or_path))
    known = ", ".join(zoo.names()) or "none"
    raise ValueError(f"model must be a checkpoint file or a zoo entry ({known}); got {str(name_or_path)!r}")


def _check_format(path: Path, metadata: Mapping[str, str]) -> None:
    if metadata.get("format") != FORMAT:
        names = ", ".join(sorted(metadata)) or "nothing"
        raise ValueError(f"{path} must be a checkpoint of {FORMAT}; its metadata hold {names}")
    version = metadata.get("format_version", "none")
    if version != str(FORMAT_VERSION):
        writer = metadata.get("ncakern_version", "unknown")
        raise ValueError(
            f"{path} has format_version {version}, this package ({ncakern.__version__}) reads {FORMAT_VERSION}; "
            f"it was written by ncakern {writer}: install that version"
        )
