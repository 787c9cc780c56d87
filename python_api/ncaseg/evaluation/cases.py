"""Scores of a model against labels, case by case, with the conditions that the numbers hold under."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ncaseg.config import Config
from ncaseg.data.dataset import load_case
from ncaseg.data.index import Case, find_cases
from ncaseg.data.split import load_split
from ncaseg.ensemble import FORMULAS
from ncaseg.evaluation.answer import ON_GRID, answer, score_protocols
from ncaseg.evaluation.medsegdiff import score_samples
from ncaseg.evaluation.result import METRICS, assemble, deviation, mean, sample_deviation, summarise_groups
from ncaseg.evaluation.scores import score_volume
from ncaseg.models.base import Segmenter


def find_labelled_cases(
    *, data: str | Path | None = None, images: str | Path | None = None, labels: str | Path | None = None
) -> list[Case]:
    """All cases of a dataset that have a label; arguments and errors as `find_cases`.

    Raises:
        ValueError: no case has a label.
    """
    cases = find_cases(data, images=images, labels=labels)
    labelled = [case for case in cases if case.label is not None]
    if not labelled:
        raise ValueError(f"none of the {len(cases)} images has a label of the same file name; nothing to score")
    if len(labelled) < len(cases):
        print(f"scoring {len(labelled)} of {len(cases)} images; the others have no label")
    return labelled


def restrict(cases: Sequence[Case], split: str | Path, subset: str) -> list[Case]:
    """The cases whose ids are in one subset of a split file.

    Args:
        cases: where to choose from.
        split: the `split.json` of a run.
        subset: "validation" or "train".

    Raises:
        FileNotFoundError: no such split file.
        ValueError: the subset names ids that `cases` do not have, or none at all.
    """
    ids = getattr(load_split(split), subset)
    if not ids:
        raise ValueError(f"{split} has no {subset} ids; nothing to score")
    found = {case.id: case for case in cases}
    missing = [i for i in ids if i not in found]
    if missing:
        raise ValueError(f"{split} names {len(missing)} {subset} ids that the data lacks, e.g. {missing[0]!r}")
    return [found[i] for i in ids]


def score_cases(
    model: Segmenter,
    cfg: Config,
    cases: Sequence[Case],
    *,
    name: str,
    samples: int = 10,
    seed: int = 0,
    empty: str = "one",
    rule: str | None = None,
) -> dict[str, Any]:
    """Segments and scores every case on its native grid.

    The merged foreground (every label above 0) is always scored: hard Dice and IoU of the thresholded prediction, and
    the soft Dice that the published M3D-NCA code reports. A model with one output channel per class also gets these
    three per class, and precision and sensitivity; a model of the merged foreground gets the recall of every label
    value, since it cannot tell them apart. The standard deviation is that of the population of cases, as in the papers.

    Args:
        model, cfg: from `load_model`.
        cases: each with a label.
        name: how the result names the model.
        samples: members of the ensemble.
        seed: names the random stream.
        empty: score of a case without foreground in prediction and label: "one", "zero", or "skip" (None in the
            result, and left out of the means).
        rule: how members become one, see `ncaseg.ensemble.combine`; None takes the recipe's.

    Returns:
        What `ncaseg evaluate --json` writes: `mean`, `std`, `cases`, `classes` (means per class), `model`, `samples`,
        `seed`, `conditions`, `made` (commit, machine), `seconds_per_case`; plain numbers, strings, lists and dicts.
        `classes_std` are deviations over cases as of a sample, n - 1, as in cDAL's paper. A MedSegDiffNCA gets
        `protocols` as well, see `ncaseg.evaluation.medsegdiff`; a cDAL of pictures has E-CDAL there, and an M3D-NCA on
        another grid than the native one E-M3D, both with `protocols_std`.

    Raises:
        ValueError: a model that samples masks is given an `empty` or a `rule` that it does not have.
    """
    rule = cfg.predict.rule if rule is None else rule
    if cfg.model.kind == "medsegdiff":
        return score_samples(model, cfg, cases, name=name, samples=samples, seed=seed, empty=empty, rule=rule)
    rows = []
    for case in tqdm(cases, desc="evaluate", unit="case", disable=None):
        volume = load_case(case, cfg.data)
        found = answer(model, volume, cfg, samples, seed, rule)
        scores = score_volume(found.probabilities, found.labels, volume, cfg, empty)
        named = score_protocols(found, volume, cfg)
        rows.append({"id": case.id, "seconds": found.seconds, **scores, **({"protocols": named} if named else {})})
    conditions = {
        "threshold": _describe_threshold(cfg, rule),
        "grid": "native voxels of the label; no resampling",
        "empty": f"prediction and label both empty: {empty}",
        "soft_dice": "2 sum(p t) / (sum(p) + sum(t)), p the largest over channels; no smoothing",
    }
    conditions |= dict.fromkeys(rows[0].get("protocols", {}), ON_GRID)
    result = assemble(model, cfg, rows, conditions, name=name, samples=samples, seed=seed)
    for key in (key for key in ("classes", "protocols") if key in rows[0]):
        groups = [row[key] for row in rows]
        result |= {key: summarise_groups(groups, mean), f"{key}_std": summarise_groups(groups, sample_deviation)}
    return result


def compare_samples(scores: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """What the ensemble of `scores` is worth over the one of `other`: two results of `score_cases` on the same cases.

    Returns:
        `samples` and `mean` of `other`, and per metric under `gain` the mean and the population standard deviation over
        cases of the difference `scores - other`, in points (hundredths); cases that either leaves out do not count.
    """
    gain = {}
    for metric in METRICS:
        pairs = [(a[metric], b[metric]) for a, b in zip(scores["cases"], other["cases"], strict=True)]
        points = [100 * (a - b) for a, b in pairs if a is not None and b is not None]
        gain[metric] = {"mean": mean(points), "std": deviation(points)} if points else None
    return {"samples": other["samples"], "mean": other["mean"], "std": other["std"], "gain": gain}


def _describe_threshold(cfg: Config, rule: str) -> str:
    if cfg.model.has_background:
        return "the channel, background or class, with the highest mean of the samples"
    formula = "mean of the samples, 0 to 1," if cfg.model.is_diffusion else FORMULAS[rule]
    return f"p = {formula} > {cfg.predict.threshold}"
