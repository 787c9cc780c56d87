"""A checkpoint without torch: its arrays, its recipe and its metadata, checked."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

import ncakern
from ncaseg import config, limits, zoo

FORMAT = "ncaseg"
FORMAT_VERSION = 1
CHECKSUM = "sha256"  # entry of the metadata; older files have none


class Weights(NamedTuple):
    """What a checkpoint file holds."""

    path: Path
    arrays: dict[str, np.ndarray]
    cfg: config.Config
    metadata: dict[str, str]


def read_weights(name_or_path: str | Path) -> Weights:
    """Read a checkpoint file, or an entry of the zoo by name.

    Raises:
        ValueError: neither a file nor a zoo entry (the entries are listed), not a checkpoint of this package, one of
            another format version, a damaged one, or weights that are not finite.
    """
    path = _resolve(name_or_path)
    try:
        with safe_open(path, "np") as file:
            metadata = dict({} if file.metadata() is None else file.metadata())
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, TypeError, ValueError, MemoryError) as error:
        raise ValueError(f"{path} must be a safetensors file; it cannot be read as one: {error}") from error
    _check_format(path, metadata)
    checksum = metadata.pop(CHECKSUM, None)
    if checksum not in (None, digest(metadata, arrays)):
        raise ValueError(f"{path} is damaged: its content does not match its {CHECKSUM}. Fetch it again")
    try:
        cfg = config.from_dict(json.loads(metadata["recipe"]))
        limits.check_limits(config.to_dict(cfg))
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} must hold a recipe that can be read; it does not: {error}") from error
    not_finite = sorted(n for n, array in arrays.items() if array.dtype.kind == "f" and not np.isfinite(array).all())
    if not_finite:
        raise ValueError(
            f"{path} holds weights that are NaN or infinite, in {', '.join(not_finite)}: it diverged or is damaged. "
            "Use an earlier checkpoint"
        )
    return Weights(path, arrays, cfg, metadata)


def digest(metadata: Mapping[str, str], arrays: Mapping[str, np.ndarray]) -> str:
    """The SHA-256 of everything in a checkpoint but the entry for it."""
    found = hashlib.sha256()
    for key in sorted(metadata):
        found.update(json.dumps([key, metadata[key]]).encode())
    for name, array in sorted(arrays.items()):
        found.update(json.dumps([name, str(array.dtype), array.shape]).encode())
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()


def check_shapes(weights: Weights, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raise a ValueError that names every array which is missing, surplus or of a wrong shape."""
    arrays = weights.arrays
    foreign = sorted(name for name, array in arrays.items() if array.dtype != np.float32)
    if foreign:
        kinds = ", ".join(f"{name} ({arrays[name].dtype})" for name in foreign)
        raise ValueError(f"{weights.path} must hold float32 tensors; it holds {kinds}")
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
        if str(name_or_path) in zoo.names():
            print(f"note: {path} is a file here; it is used, not the zoo entry of that name", file=sys.stderr)
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
