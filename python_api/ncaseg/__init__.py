"""ncaseg: segmentation of medical images with neural cellular automata, on the kernels of ``ncakern``.

The names below are the public ones; each is loaded when it is first asked for, so that importing the package loads
neither torch nor the kernels and ``ncaseg --help`` answers at once. :mod:`ncaseg.edge` predicts without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ncaseg import config, edge
    from ncaseg.checkpoint.model import load_model
    from ncaseg.config import load_recipe
    from ncaseg.data.dataset import load_case
    from ncaseg.data.index import find_cases
    from ncaseg.evaluation.cases import score_cases
    from ncaseg.inference.case import answer
    from ncaseg.inference.files import predict_path as predict
    from ncaseg.inference.files import save_labels
    from ncaseg.training.loop import train

__all__ = [
    "answer",
    "config",
    "edge",
    "find_cases",
    "load_case",
    "load_model",
    "load_recipe",
    "predict",
    "save_labels",
    "score_cases",
    "train",
]

_PLACES = {
    "answer": "ncaseg.inference.case:answer",
    "find_cases": "ncaseg.data.index:find_cases",
    "load_case": "ncaseg.data.dataset:load_case",
    "load_model": "ncaseg.checkpoint.model:load_model",
    "load_recipe": "ncaseg.config:load_recipe",
    "predict": "ncaseg.inference.files:predict_path",
    "save_labels": "ncaseg.inference.files:save_labels",
    "score_cases": "ncaseg.evaluation.cases:score_cases",
    "train": "ncaseg.training.loop:train",
}


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        module, _, attribute = _PLACES[name].partition(":")
        return getattr(importlib.import_module(module), attribute)
    if name in __all__:
        return importlib.import_module(f"ncaseg.{name}")
    raise AttributeError(f"module 'ncaseg' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
