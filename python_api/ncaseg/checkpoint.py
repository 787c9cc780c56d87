"""Weights as safetensors with the recipe in their metadata; the resumable state of a run as a separate file."""

import json
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

import ncakern
from ncaseg import config, files, zoo
from ncaseg.models import build_model
from ncaseg.models.segmenter import M3D

FORMAT = "ncaseg"
FORMAT_VERSION = 1


def save_model(path: str | Path, model: M3D, cfg: config.Config, extra: Mapping[str, str] | None = None) -> None:
    """Write the weights with everything that is needed to use them.

    The metadata hold ``format``, ``format_version``, ``ncakern_version``, ``recipe`` (JSON of the whole config, with it
    the normalisation), ``labels`` (JSON: one entry per output channel, the label values it stands for) and ``extra``.
    """
    labels = [list(cfg.data.labels)] if cfg.model.out_channels == 1 else [[value] for value in cfg.data.labels]
    metadata = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "ncakern_version": ncakern.__version__,
        "recipe": json.dumps(config.to_dict(cfg)),
        "labels": json.dumps(labels),
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with files.replacing(path) as temporary:
        # Not save_file, whose files nobody but the owner may read.
        temporary.write_bytes(save(tensors, metadata=metadata | dict({} if extra is None else extra)))


def load_model(name_or_path: str | Path) -> tuple[M3D, config.Config, dict[str, str]]:
    """Read a model from a file, or from the zoo by name.

    Returns:
        The model on the CPU, its config, and all metadata.

    Raises:
        ValueError: neither a file nor a zoo entry (the entries are listed), not a checkpoint of this package, another
            format version, or tensors that do not fit the recipe (they are named).
    """
    path = _resolve(name_or_path)
    try:
        with safe_open(path, "pt") as file:
            metadata = dict({} if file.metadata() is None else file.metadata())
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except SafetensorError as error:
        raise ValueError(f"{path} must be a safetensors file; it cannot be read as one: {error}") from error
    _check_format(path, metadata)
    cfg = config.from_dict(json.loads(metadata["recipe"]))
    model = build_model(cfg.model)
    _check_tensors(path, tensors, model.state_dict(), metadata)
    model.load_state_dict(tensors)
    return model, cfg, metadata


def add_metadata(path: str | Path, extra: Mapping[str, str]) -> None:
    """Add entries to the metadata of a checkpoint, replacing equal names; the tensors keep their bits.

    Raises:
        ValueError: as :func:`load_model`.
    """
    path = Path(path)
    metadata = load_model(path)[2]
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    with files.replacing(path) as temporary:
        temporary.write_bytes(save(tensors, metadata=metadata | dict(extra)))


def save_state(path: str | Path, state: Mapping[str, Any]) -> None:
    """Write the resumable state of a run: tensors, numbers and texts in dictionaries and lists."""
    with files.replacing(path) as temporary:
        torch.save(dict(state), temporary)


def load_state(path: str | Path) -> dict[str, Any]:
    """Read what :func:`save_state` wrote; nothing in the file is executed (``weights_only=True``).

    Raises:
        ValueError: the file is not such a state.
    """
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} must be the state of a run; it is not a file that torch.save writes")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise ValueError(f"{path} must be the state of a run; it cannot be read as one: {error}") from error


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
        found = ", ".join(sorted(metadata)) or "nothing"
        raise ValueError(f"{path} must be a checkpoint of {FORMAT}; its metadata hold {found}")
    version = metadata.get("format_version", "none")
    if version != str(FORMAT_VERSION):
        writer = metadata.get("ncakern_version", "unknown")
        raise ValueError(
            f"{path} has format_version {version}, this package ({ncakern.__version__}) reads {FORMAT_VERSION}; "
            f"it was written by ncakern {writer}: install that version"
        )


def _check_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], metadata: Mapping[str, str]
) -> None:
    missing, surplus = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    wrong = [
        f"{name} is {list(tensors[name].shape)}, expected {list(expected[name].shape)}"
        for name in sorted(expected.keys() & tensors.keys())
        if tensors[name].shape != expected[name].shape
    ]
    if missing or surplus or wrong:
        raise ValueError(
            f"{path} (written by ncakern {metadata.get('ncakern_version')}) does not fit its recipe: "
            f"missing tensors {missing}, surplus tensors {surplus}, wrong shapes {wrong}"
        )
