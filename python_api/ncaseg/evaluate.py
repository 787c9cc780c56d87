"""Scores of a model against labels, case by case, with the conditions that the numbers hold under."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ncaseg import metrics
from ncaseg.config import Config
from ncaseg.data.dataset import Volume, load_case
from ncaseg.data.index import Case, find_cases
from ncaseg.data.split import load_split
from ncaseg.ensemble import FORMULAS
from ncaseg.files import replacing, write_text
from ncaseg.models.base import Segmenter
from ncaseg.score_labels import ON_GRID, answer, score_protocols
from ncaseg.score_samples import format_protocols, score_samples
from ncaseg.scores import METRICS, assemble, deviation, mean, sample_deviation, summarise_groups


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
        `protocols` as well, see `ncaseg.score_samples`; a cDAL of pictures has E-CDAL there, and an M3D-NCA on
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


def format_table(scores: Mapping[str, Any]) -> str:
    """The result as text: one line per case, per-class means, mean and standard deviation."""
    width = max(len("mean"), *(len(row["id"]) for row in scores["cases"]))
    lines = [f"{'case':<{width}}  " + "  ".join(f"{metric:>9}" for metric in METRICS)]
    named = [(row["id"], row) for row in scores["cases"]] + [(key, scores[key]) for key in ("mean", "std")]
    lines += [f"{name:<{width}}  " + "  ".join(f"{_show(row[m]):>9}" for m in METRICS) for name, row in named]
    for value, entry in scores["classes"].items():
        spread = scores.get("classes_std", {}).get(value, {})
        shown = [_show(number) + _show_spread(spread.get(name)) for name, number in entry.items()]
        lines.append(f"label {value}: " + ", ".join(" ".join(pair) for pair in zip(entry, shown, strict=True)))
    if "protocols" in scores:
        lines.append(format_protocols(scores["protocols"]))
    if "floors" in scores:
        lines.append(format_protocols({f"floor {name}": entry for name, entry in scores["floors"].items()}))
    if "comparison" in scores:
        lines.append(_describe_gain(scores))
    count, members = scores["num_cases"], scores["samples"]
    lines.append(f"{count} cases, ensemble of {members}, native geometry; {scores['conditions']['empty']}")
    return "\n".join(lines)


def write_json(scores: Mapping[str, Any], path: str | Path) -> None:
    """Writes the result of `score_cases`."""
    write_text(path, json.dumps(scores, indent=1, allow_nan=False) + "\n")


def write_csv(scores: Mapping[str, Any], path: str | Path) -> None:
    """Writes one row per case; per-class columns are called `label_<value>_<metric>`."""
    rows = []
    for case in scores["cases"]:
        nested = {f"label_{v}_{name}": number for v, entry in case["classes"].items() for name, number in entry.items()}
        nested |= {
            f"{p} {key}": number for p, entry in case.get("protocols", {}).items() for key, number in entry.items()
        }
        rows.append({"id": case["id"], **{metric: case[metric] for metric in METRICS}, **nested})
    with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _overlap(mask: np.ndarray, probability: np.ndarray, truth: np.ndarray, empty: str) -> dict[str, float | None]:
    return {
        "hard_dice": _number(metrics.hard_dice(mask, truth, empty)),
        "iou": _number(metrics.iou(mask, truth, empty)),
        "soft_dice": _number(metrics.soft_dice(probability, truth, empty)),
    }


def _describe_threshold(cfg: Config, rule: str) -> str:
    if cfg.model.has_background:
        return "the channel, background or class, with the highest mean of the samples"
    formula = "mean of the samples, 0 to 1," if cfg.model.is_diffusion else FORMULAS[rule]
    return f"p = {formula} > {cfg.predict.threshold}"


def _class_scores(mask: np.ndarray, probability: np.ndarray, truth: np.ndarray, empty: str) -> dict[str, float | None]:
    return {
        **_overlap(mask, probability, truth, empty),
        "precision": _number(metrics.precision(mask, truth, empty)),
        "sensitivity": _number(metrics.sensitivity(mask, truth, empty)),
    }


def _describe_gain(scores: Mapping[str, Any]) -> str:
    gains = {name: gain for name, gain in scores["comparison"]["gain"].items() if gain is not None}
    points = ", ".join(f"{name} {gain['mean']:+.2f} (sd {gain['std']:.2f})" for name, gain in gains.items())
    return f"ensemble of {scores['samples']} over {scores['comparison']['samples']}, points: {points}"


def _recall(mask: np.ndarray, truth: np.ndarray) -> float | None:
    """Share of the label's cells that the prediction covers; None where the label is absent."""
    return float(mask[truth].mean()) if truth.any() else None


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _show(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _show_spread(value: float | None) -> str:
    return "" if value is None else f" (sd {value:.4f})"
