"""What needs no model: everything, Otsu's threshold, one constant mask."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ncaseg.config import Config
from ncaseg.data.dataset import load_case
from ncaseg.data.index import Case
from ncaseg.data.standard import unstandardise
from ncaseg.evaluation import protocols
from ncaseg.evaluation.result import mean, summarise_groups
from ncaseg.evaluation.scores import grid_truth


def score_baselines(
    cfg: Config, cases: Sequence[Case], known: Sequence[Case] = ()
) -> dict[str, dict[str, float | None]]:
    """What needs no model, scored as E-CLEAN on the network's grid.

    Args:
        cfg: how images are read.
        cases: to be scored.
        known: other cases, from whose masks the constant mask is made; without them there is none.

    Returns:
        For ``everything``, ``otsu`` of the last channel (blue), and ``constant``: the means of Dice, IoU and
        thresholded IoU.
    """
    constant = None
    if known:
        constant = protocols.constant_mask(grid_truth(load_case(case, cfg.data)) > 0.5 for case in known)
    rows = []
    for case in cases:
        volume = load_case(case, cfg.data)
        last = unstandardise(volume.image, cfg.data)[-1]
        masks = {"everything": np.ones(last.shape, bool), "otsu": protocols.otsu(last)}
        if constant is not None:
            masks["constant"] = constant
        truth = grid_truth(volume) > 0.5
        rows.append({key: protocols.e_clean(mask.astype(np.float32), truth) for key, mask in masks.items()})
    return summarise_groups(rows, mean)
