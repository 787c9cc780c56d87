"""What evaluation needs of a model's answer for one case, and the scores that papers take on the network's grid."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from ncaseg.config import Config
from ncaseg.data.dataset import Volume
from ncaseg.ensemble import combine
from ncaseg.evaluation import protocols
from ncaseg.evaluation.medsegdiff import grid_mask
from ncaseg.inference.case import labels_of, member_logits, predict_case
from ncaseg.models.base import Segmenter
from ncaseg.sampling import cdal
from ncaseg.sampling.medsegdiff import check_rule

ON_GRID = "foreground alone on the network's grid, label by nearest neighbour; both empty: one"


@dataclass(frozen=True)
class Answer:
    """The ensemble's answer for one case.

    ``probabilities`` ``[C_out, *S]`` and ``labels`` ``[*S]`` are on the native grid, ``grid`` ``[C_out, *S]`` holds the
    probabilities on the network's (None where that is the native one); ``seconds`` passed from the loaded case to the
    labels.
    """

    probabilities: np.ndarray
    labels: np.ndarray
    grid: np.ndarray | None
    seconds: float


def answer(model: Segmenter, volume: Volume, cfg: Config, samples: int, seed: int, rule: str) -> Answer:
    """The probabilities and labels of :func:`ncaseg.inference.case.predict_case`; arguments and errors as there."""
    began = time.perf_counter()
    grid = None
    if cfg.model.kind == "cdal":
        check_rule(rule)
        members = cdal.sample_volume(model, volume, cfg, samples, seed).numpy()
        native = volume.to_native(members).mean(0)
        first = int(cfg.model.has_background)
        probabilities, labels, grid = native[first:], labels_of(native, cfg), members.mean(0)[first:]
    elif volume.image.shape[1:] == volume.native_size:
        probabilities, labels, _ = predict_case(model, volume, cfg, samples, seed, rule=rule)
    else:
        logits = list(member_logits(model, volume, cfg, samples, seed))
        probabilities = combine(map(volume.to_native, logits), rule=rule).probabilities
        labels, grid = labels_of(probabilities, cfg), combine(logits, rule=rule).probabilities
    return Answer(probabilities, labels, grid, time.perf_counter() - began)


def score_protocols(found: Answer, volume: Volume, cfg: Config) -> dict[str, protocols.Scores]:
    """E-M3D of an M3D-NCA or its baseline off the native grid; E-CDAL of a picture with one label by a cDAL."""
    if found.grid is None:
        return {}
    if cfg.model.kind in ("m3d", "unet"):
        return {protocols.M3D: protocols.e_m3d(found.grid.max(axis=0), grid_mask(volume))}
    if cfg.model.kind == "cdal" and len(found.grid) == 1 and found.grid.shape[3] == 1:
        return {protocols.CDAL: protocols.e_cdal(found.grid[0], grid_mask(volume))}
    return {}
