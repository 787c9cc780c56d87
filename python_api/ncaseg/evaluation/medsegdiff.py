"""Scores of a model that samples masks: both protocols, the quality score of the ensemble, and the simple floors."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from ncaseg.config import Config
from ncaseg.data.dataset import Volume, load_case, pad_end
from ncaseg.data.index import Case
from ncaseg.data.resample import resize_image
from ncaseg.data.standard import unstandardise
from ncaseg.ensemble import DEFAULT_RULE
from ncaseg.evaluation import metrics, protocols
from ncaseg.evaluation.result import assemble, mean, summarise_groups
from ncaseg.models.base import Segmenter
from ncaseg.sampling.medsegdiff import check_rule, decode, decode_uncut, sample_volume
from ncaseg.sampling.summary import summarise


def score_samples(
    model: Segmenter,
    cfg: Config,
    cases: Sequence[Case],
    *,
    name: str,
    samples: int = 10,
    seed: int = 0,
    empty: str = "one",
    rule: str = DEFAULT_RULE,
) -> dict[str, Any]:
    """Samples and scores every case.

    `mean`, `std` and `cases` hold what other models get too: overlap on the native grid (E-CLEAN there). `protocols`
    holds the means of E-CLEAN on the native and on the network's grid and of E-AUTHOR: see
    `ncaseg.evaluation.protocols`.

    Args:
        model, cfg: from `load_model`.
        cases: each with a label.
        name: how the result names the model.
        samples: members of the ensemble.
        seed: names the random stream.
        empty: "one": a case without foreground in prediction and label scores 1 in every protocol.
        rule: as `ncaseg.evaluation.cases.score_cases`, without "median".

    Returns:
        The same entries as `ncaseg.evaluation.cases.score_cases`, and `protocols`.

    Raises:
        ValueError: another `empty`, or a rule that samples do not have.
    """
    check_rule(rule)
    if empty != "one":
        raise ValueError(f'empty must be "one" for a model that samples masks; got {empty!r}')
    rows = []
    for case in tqdm(cases, desc="evaluate", unit="case", disable=None):
        volume = load_case(case, cfg.data)
        rows.append({"id": case.id, "classes": {}, **score_case(model, volume, cfg, samples, seed)})
    conditions = {
        "threshold": f"mean of the clipped samples, 0 to 1, > {cfg.predict.threshold}",
        "grid": "native voxels of the label; the mean map is interpolated linearly",
        "empty": "prediction and label both empty: one",
        "sampler": f"{cfg.diffusion.sampler}, {cfg.diffusion.sample_steps} of {cfg.diffusion.timesteps} steps",
    }
    result = assemble(model, cfg, rows, conditions, name=name, samples=samples, seed=seed)
    protocols.check_means(result["mean"]["hard_dice"], result["mean"]["iou"])
    return result | {"classes": {}, "protocols": summarise_groups([row["protocols"] for row in rows], mean)}


def score_case(model: Segmenter, volume: Volume, cfg: Config, samples: int, seed: int) -> dict[str, Any]:
    """Scores of one case, the `seconds` of its sampling, and the `nqm` of its ensemble on the network's grid.

    Without any foreground in the ensemble `nqm` is None.
    """
    began = time.perf_counter()
    coded = sample_volume(model, volume, cfg, samples, seed)
    members = decode(coded, cfg.diffusion)
    native = volume.to_native(members.numpy()).mean(axis=0)[0]
    seconds = time.perf_counter() - began
    truth = np.asarray(volume.require_label() > 0)
    summary = summarise(members)
    small = grid_truth(volume)
    clean = protocols.e_clean(native, truth, cfg.predict.threshold)
    found = {
        "E-CLEAN native": clean,
        "E-CLEAN grid": protocols.e_clean(summary.mean[0].numpy(), small > 0.5, cfg.predict.threshold),
    }
    if small.shape[2] == 1:  # the script is for pictures
        raw = decode_uncut(coded, cfg.diffusion).mean(dim=0)[0, ..., 0].numpy()
        found[protocols.AUTHOR] = protocols.e_author(raw, small[..., 0])
    return {
        "hard_dice": clean["dice"],
        "iou": clean["iou"],
        "soft_dice": metrics.soft_dice(native, truth),
        "seconds": seconds,
        "nqm": summary.nqm if np.isfinite(summary.nqm) else None,
        "protocols": found,
    }


def score_floors(cfg: Config, cases: Sequence[Case], known: Sequence[Case] = ()) -> dict[str, dict[str, float | None]]:
    """What needs no model, scored as E-CLEAN on the network's grid.

    Args:
        cfg: how images are read.
        cases: to be scored.
        known: other cases, from whose masks the constant mask is made; without them there is none.

    Returns:
        For `everything`, `otsu` of the last channel (blue), and `constant`: the means of Dice, IoU and thresholded IoU.
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


def grid_truth(volume: Volume) -> np.ndarray:
    """The share of foreground `[*S]` in every cell of the network's grid, float32."""
    truth = (volume.require_label() > 0).astype(np.float32)
    if volume.is_resized:
        return resize_image(truth[None], volume.image.shape[1:], "area")[0]
    missing = [(0, grid - n) for grid, n in zip(volume.image.shape[1:], truth.shape, strict=True)]
    return np.pad(truth, missing)


def grid_mask(volume: Volume) -> np.ndarray:
    """The foreground `[*S]` on the network's grid by nearest neighbour, bool; the padding is none."""
    masks = volume.to_content((volume.require_label() > 0)[None].astype(np.float32))
    return pad_end(masks, volume.image.shape[1:])[0] > 0
