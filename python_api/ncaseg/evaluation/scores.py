"""Scores of one case, and what they hold under: merged foreground, classes, and what papers take on their grid."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ncaseg.config import Config
from ncaseg.data.dataset import Volume, pad_end
from ncaseg.data.resample import resize_image
from ncaseg.ensemble import FORMULAS
from ncaseg.evaluation import metrics
from ncaseg.evaluation.protocols import CDAL, M3D, Scores, e_cdal, e_m3d
from ncaseg.evaluation.result import mean, sample_deviation, summarise_groups
from ncaseg.inference.case import Answer

ON_GRID = "foreground alone on the network's grid, label by nearest neighbour; both empty: one"


class Scoring:
    """How the answers of a model are scored; this is the way of all kinds of model that have none of their own."""

    with_spread = False  # whether answers need it

    def check(self, empty: str, rule: str) -> None:
        """Raise a ValueError for what the scores do not know."""

    def score(self, answered: Answer, volume: Volume, cfg: Config, empty: str) -> dict[str, Any]:
        """One case: the entries of :func:`score_volume`, and ``protocols`` where there are any."""
        scores = score_volume(answered.probabilities, answered.labels, volume, cfg, empty)
        named = {} if answered.grid is None else self.protocols(answered.grid, volume)
        return {**scores, **({"protocols": named} if named else {})}

    def protocols(self, grid: np.ndarray, volume: Volume) -> dict[str, Scores]:
        """What papers take of the probabilities ``[C_out, *S]`` on the network's grid, by name of the protocol."""
        return {}

    def threshold(self, cfg: Config, rule: str) -> str:
        """What foreground is, in words."""
        return f"p = {FORMULAS[rule]} > {cfg.predict.threshold}"

    def conditions(self, cfg: Config, rule: str, empty: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
        """What the numbers hold under."""
        conditions = {
            "threshold": self.threshold(cfg, rule),
            **({"flips": f"members see the image mirrored along {cfg.predict.flips}"} if cfg.predict.flips else {}),
            "grid": "native voxels of the label; no resampling",
            "empty": f"prediction and label both empty: {empty}",
            "soft_dice": "2 sum(p t) / (sum(p) + sum(t)), p the largest over channels; no smoothing",
        }
        return conditions | dict.fromkeys(rows[0].get("protocols", {}), ON_GRID)

    def summarise(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Means and deviations of a sample over the cases, per class and per protocol."""
        result: dict[str, Any] = {}
        for key in (key for key in ("classes", "protocols") if key in rows[0]):
            groups = [row[key] for row in rows]
            result |= {key: summarise_groups(groups, mean), f"{key}_std": summarise_groups(groups, sample_deviation)}
        return result


class VolumeScoring(Scoring):
    """M3D-NCA and its baseline: also E-M3D, off the native grid."""

    def protocols(self, grid: np.ndarray, volume: Volume) -> dict[str, Scores]:
        return {M3D: e_m3d(grid.max(axis=0), grid_mask(volume))}


class LabelScoring(Scoring):
    """cDAL: also E-CDAL, of pictures with one label."""

    def protocols(self, grid: np.ndarray, volume: Volume) -> dict[str, Scores]:
        is_flat = len(grid) == 1 and grid.shape[3] == 1
        return {CDAL: e_cdal(grid[0], grid_mask(volume))} if is_flat else {}

    def threshold(self, cfg: Config, rule: str) -> str:
        if cfg.model.has_background:
            return "the channel, background or class, with the highest mean of the samples"
        return f"p = mean of the samples, 0 to 1, > {cfg.predict.threshold}"


def score_volume(
    probabilities: np.ndarray, labels: np.ndarray, volume: Volume, cfg: Config, empty: str
) -> dict[str, Any]:
    """Scores of one case: the merged ones and, under ``classes``, those of each label value; None for "skip".

    ``empty`` is there where a pair of prediction and label has no cell: "foreground", or label values as text.

    Raises:
        ValueError: the volume has no label.
    """
    if volume.label is None:
        raise ValueError(f"{volume.id} must have a label to be scored; it has none")
    truth = np.asarray(volume.label)
    pairs = {"foreground": (labels > 0, truth > 0)}
    if cfg.model.out_channels > 1:
        pairs |= {str(v): (labels == v, truth == v) for v in cfg.data.labels}
    without = [name for name, (mask, there) in pairs.items() if not mask.any() and not there.any()]
    scores: dict[str, Any] = _overlap(labels > 0, probabilities.max(0), truth > 0, empty)
    if cfg.model.out_channels > 1:
        channels = zip(cfg.data.labels, probabilities, strict=True)
        scores["classes"] = {str(v): _class_scores(labels == v, p, truth == v, empty) for v, p in channels}
    else:
        scores["classes"] = {str(v): {"recall": _recall(labels > 0, truth == v)} for v in cfg.data.labels}
    return scores | ({"empty": without} if without else {})


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


def grid_truth(volume: Volume) -> np.ndarray:
    """The share of foreground ``[*S]`` in every cell of the network's grid, float32."""
    truth = (volume.require_label() > 0).astype(np.float32)
    if volume.is_resized:
        return resize_image(truth[None], volume.image.shape[1:], "area")[0]
    missing = [(0, grid - n) for grid, n in zip(volume.image.shape[1:], truth.shape, strict=True)]
    return np.pad(truth, missing)


def grid_mask(volume: Volume) -> np.ndarray:
    """The foreground ``[*S]`` on the network's grid by nearest neighbour, bool; the padding is none."""
    masks = volume.to_content((volume.require_label() > 0)[None].astype(np.float32))
    return pad_end(masks, volume.image.shape[1:])[0] > 0
