"""Weights as safetensors with the recipe in their metadata; the resumable state of a run as a separate file."""

import io
import json
import pickle
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

import ncakern
from ncaseg import config, files
from ncaseg.checkpoint.reader import CHECKSUM, FORMAT, FORMAT_VERSION, check_shapes, digest, read_weights
from ncaseg.models import build_model
from ncaseg.models.base import Segmenter

# What damaged archives raise: names that are no text, sizes that are none, members of a method that is not known.
DAMAGE = (RuntimeError, EOFError, KeyError, IndexError, ValueError, TypeError, NotImplementedError, AttributeError)


def save_model(path: str | Path, model: Segmenter, cfg: config.Config, extra: Mapping[str, str] | None = None) -> None:
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
    _write(path, tensors, metadata | dict({} if extra is None else extra))


def _write(path: str | Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    checksum = digest(metadata, {name: tensor.numpy() for name, tensor in tensors.items()})
    with files.replacing(path) as temporary:
        # Not save_file, whose files nobody but the owner may read.
        temporary.write_bytes(save(dict(tensors), metadata={**metadata, CHECKSUM: checksum}))


def load_model(name_or_path: str | Path) -> tuple[Segmenter, config.Config, dict[str, str]]:
    """Read a model from a file, or from the zoo by name.

    Returns:
        The model on the CPU, its config, and all metadata.

    Raises:
        ValueError: neither a file nor a zoo entry (the entries are listed), not a checkpoint of this package, another
            format version, or tensors that do not fit the recipe (they are named).
    """
    weights = read_weights(name_or_path)
    with torch.device("meta"):  # shapes alone: what a recipe asks for may not fit into memory
        expected = build_model(weights.cfg.model, weights.cfg.cdal).state_dict()
    check_shapes(weights, {name: tuple(tensor.shape) for name, tensor in expected.items()})
    model = build_model(weights.cfg.model, weights.cfg.cdal)
    model.load_state_dict({name: torch.from_numpy(array) for name, array in weights.arrays.items()})
    return model, weights.cfg, weights.metadata


def add_metadata(path: str | Path, extra: Mapping[str, str]) -> None:
    """Add entries to the metadata of a checkpoint, replacing equal names; the tensors keep their bits.

    Raises:
        ValueError: as :func:`load_model`.
    """
    path = Path(path)
    metadata = load_model(path)[2]
    tensors = {name: torch.from_numpy(array) for name, array in read_weights(path).arrays.items()}
    _write(path, tensors, metadata | dict(extra))


def save_state(path: str | Path, state: Mapping[str, Any]) -> None:
    """Write the resumable state of a run: tensors, numbers and texts in dictionaries and lists."""
    content = io.BytesIO()  # torch's own writer does not say that a disk is full
    torch.save(dict(state), content)
    with files.replacing(path) as temporary:
        temporary.write_bytes(content.getbuffer())


def load_state(path: str | Path) -> dict[str, Any]:
    """Read what :func:`save_state` wrote; nothing in the file is executed (``weights_only=True``).

    Raises:
        ValueError: the file is not such a state.
    """
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} must be the state of a run; it is not a file that torch.save writes")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch writes a checksum of every entry, but does not compare it
        if damaged is not None:
            raise RuntimeError(f"the checksum of its entry {damaged} is wrong")
        return torch.load(path, map_location="cpu", weights_only=True)
    except (*DAMAGE, pickle.UnpicklingError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} must be the state of a run; it cannot be read as one: {error}") from error
