"""What needs no model: everything, Otsu's threshold, one constant mask."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np

from ncaseg.batch import Batch
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
        known: other cases, from whose masks the constant mask is made; without them, or where they differ in size,
            there is none.

    Returns:
        For ``everything``, ``otsu`` of the last channel (blue), and ``constant``: the means of Dice, IoU and
        thresholded IoU.
    """
    constant = _constant(cfg, known)
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


def _constant(cfg: Config, known: Sequence[Case]) -> np.ndarray | None:
    """The one mask that fits the known cases best; None, with a word, where there is none on a grid of their own."""
    truths, batch = [], Batch()
    for case in known:
        with batch.case(case.id, case.image):
            truths.append(grid_truth(load_case(case, cfg.data)) > 0.5)
    for failure in batch.failed.values():
        print(f"note: left out of the constant mask: {failure}", file=sys.stderr)
    if len({truth.shape for truth in truths}) > 1:
        print("note: no constant mask among the baselines: the cases differ in size", file=sys.stderr)
        return None
    return protocols.constant_mask(truths) if truths else None
