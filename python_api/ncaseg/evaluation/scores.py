"""Scores of one case: the merged foreground, and every class or label value."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ncaseg.config import Config
from ncaseg.data.dataset import Volume
from ncaseg.evaluation import metrics


def score_volume(
    probabilities: np.ndarray, labels: np.ndarray, volume: Volume, cfg: Config, empty: str
) -> dict[str, Any]:
    """Scores of one case: the merged ones and, under `classes`, those of each label value; None for "skip".

    Raises:
        ValueError: the volume has no label.
    """
    if volume.label is None:
        raise ValueError(f"{volume.id} must have a label to be scored; it has none")
    truth = np.asarray(volume.label)
    scores: dict[str, Any] = _overlap(labels > 0, probabilities.max(0), truth > 0, empty)
    if cfg.model.out_channels > 1:
        channels = zip(cfg.data.labels, probabilities, strict=True)
        scores["classes"] = {str(v): _class_scores(labels == v, p, truth == v, empty) for v, p in channels}
    else:
        scores["classes"] = {str(v): {"recall": _recall(labels > 0, truth == v)} for v in cfg.data.labels}
    return scores


def _overlap(mask: np.ndarray, probability: np.ndarray, truth: np.ndarray, empty: str) -> dict[str, float | None]:
    return {
        "hard_dice": _number(metrics.hard_dice(mask, truth, empty)),
        "iou": _number(metrics.iou(mask, truth, empty)),
        "soft_dice": _number(metrics.soft_dice(probability, truth, empty)),
    }


def _class_scores(mask: np.ndarray, probability: np.ndarray, truth: np.ndarray, empty: str) -> dict[str, float | None]:
    return {
        **_overlap(mask, probability, truth, empty),
        "precision": _number(metrics.precision(mask, truth, empty)),
        "sensitivity": _number(metrics.sensitivity(mask, truth, empty)),
    }


def _recall(mask: np.ndarray, truth: np.ndarray) -> float | None:
    """Share of the label's cells that the prediction covers; None where the label is absent."""
    return float(mask[truth].mean()) if truth.any() else None


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
