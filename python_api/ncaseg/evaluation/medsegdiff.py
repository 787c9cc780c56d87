"""Scores of sampled masks: E-CLEAN on both grids, E-AUTHOR of pictures, and the quality score of the ensemble."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ncaseg.config import Config
from ncaseg.data.dataset import Volume
from ncaseg.ensemble import check_rule
from ncaseg.evaluation import metrics, protocols
from ncaseg.evaluation.result import mean, summarise_groups
from ncaseg.evaluation.scores import Scoring, grid_truth
from ncaseg.inference.case import Answer


class MaskScoring(Scoring):
    """The scores that other models get too are overlap on the native grid, which is E-CLEAN there."""

    with_spread = True

    def check(self, empty: str, rule: str) -> None:
        check_rule(rule, of_samples=True)
        if empty != "one":
            raise ValueError(f'empty must be "one" for a model that samples masks; got {empty!r}')

    def score(self, answered: Answer, volume: Volume, cfg: Config, empty: str) -> dict[str, Any]:
        """``nqm`` is that of the ensemble on the network's grid, None without any foreground in it."""
        assert answered.grid is not None and answered.nqm is not None  # they were asked for
        native, threshold = answered.probabilities[0], cfg.predict.threshold
        truth, small = np.asarray(volume.require_label() > 0), grid_truth(volume)
        clean = protocols.e_clean(native, truth, threshold)
        named = {
            "E-CLEAN native": clean,
            "E-CLEAN grid": protocols.e_clean(answered.grid[0], small > 0.5, threshold),
        }
        if answered.uncut is not None and small.shape[2] == 1:  # the script is for pictures
            named[protocols.AUTHOR] = protocols.e_author(answered.uncut[0, ..., 0], small[..., 0])
        is_empty = not truth.any() and not (native > threshold).any()
        return ({"empty": ["foreground"]} if is_empty else {}) | {
            "classes": {},
            "hard_dice": clean["dice"],
            "iou": clean["iou"],
            "soft_dice": metrics.soft_dice(native, truth),
            "nqm": answered.nqm if np.isfinite(answered.nqm) else None,
            "protocols": named,
        }

    def conditions(self, cfg: Config, rule: str, empty: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
        return {
            "threshold": f"mean of the clipped samples, 0 to 1, > {cfg.predict.threshold}",
            "grid": "native voxels of the label; the mean map is interpolated linearly",
            "empty": "prediction and label both empty: one",
            "sampler": f"{cfg.diffusion.sampler}, {cfg.diffusion.sample_steps} of {cfg.diffusion.timesteps} steps",
        }

    def summarise(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        protocols.check_means(*(float(np.mean([row[metric] for row in rows])) for metric in ("hard_dice", "iou")))
        return {"classes": {}, "protocols": summarise_groups([row["protocols"] for row in rows], mean)}
