"""What evaluation needs of a model's answer for one case, and the scores of cDAL's paper for pictures."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from ncaseg import cdal, medsegdiff, protocols
from ncaseg.config import Config
from ncaseg.data.dataset import Volume
from ncaseg.models.base import Segmenter
from ncaseg.predict import labels_of, predict_case
from ncaseg.score_samples import grid_mask


@dataclass(frozen=True)
class Answer:
    """The ensemble's answer for one case.

    ``probabilities`` ``[C_out, *S]`` and ``labels`` ``[*S]`` are on the native grid, ``grid`` ``[C_out, *S]`` holds the
    probabilities on the network's (of cDAL only); ``seconds`` passed from the loaded case to the labels.
    """

    probabilities: np.ndarray
    labels: np.ndarray
    grid: np.ndarray | None
    seconds: float


def answer(model: Segmenter, volume: Volume, cfg: Config, samples: int, seed: int, rule: str) -> Answer:
    """The same probabilities and labels as those of :func:`ncaseg.predict.predict_case`; arguments and errors too."""
    began = time.perf_counter()
    grid = None
    if cfg.model.kind == "cdal":
        medsegdiff.check_rule(rule)
        members = cdal.sample_volume(model, volume, cfg, samples, seed).numpy()
        native = volume.to_native(members).mean(0)
        first = int(cfg.model.has_background)
        probabilities, labels, grid = native[first:], labels_of(native, cfg), members.mean(0)[first:]
    else:
        probabilities, labels, _ = predict_case(model, volume, cfg, samples, seed, rule=rule)
    return Answer(probabilities, labels, grid, time.perf_counter() - began)


def score_protocols(found: Answer, volume: Volume) -> dict[str, protocols.Scores]:
    """E-CDAL of a picture with one label; nothing for volumes, several labels and other models."""
    if found.grid is None or len(found.grid) > 1 or found.grid.shape[3] > 1:
        return {}
    return {protocols.CDAL: protocols.e_cdal(found.grid[0], grid_mask(volume))}
