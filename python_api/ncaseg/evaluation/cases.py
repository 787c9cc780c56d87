"""Scores of a model against labels, case by case, with the conditions that the numbers hold under."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ncaseg.batch import Batch
from ncaseg.config import Config
from ncaseg.data.dataset import load_case
from ncaseg.data.index import Case, find_cases
from ncaseg.data.split import load_split
from ncaseg.evaluation.baselines import score_baselines
from ncaseg.evaluation.medsegdiff import MaskScoring
from ncaseg.evaluation.result import METRICS, assemble, deviation, mean
from ncaseg.evaluation.scores import LabelScoring, Scoring, VolumeScoring
from ncaseg.evaluation.text import format_table, write_csv, write_json
from ncaseg.inference.case import answer
from ncaseg.models.base import Segmenter

# Kinds of model that are scored in a way of their own.
SCORINGS = {"m3d": VolumeScoring(), "unet": VolumeScoring(), "medsegdiff": MaskScoring(), "cdal": LabelScoring()}


def find_labelled_cases(
    *, data: str | Path | None = None, images: str | Path | None = None, labels: str | Path | None = None
) -> list[Case]:
    """All cases of a dataset that have a label; arguments and errors as ``find_cases``.

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
        split: the ``split.json`` of a run.
        subset: "validation" or "train".

    Raises:
        FileNotFoundError: no such split file.
        ValueError: the subset names ids that ``cases`` do not have, or none at all.
    """
    ids = getattr(load_split(split), subset)
    if not ids:
        raise ValueError(f"{split} has no {subset} ids; nothing to score")
    by_id = {case.id: case for case in cases}
    missing = [i for i in ids if i not in by_id]
    if missing:
        raise ValueError(f"{split} names {len(missing)} {subset} ids that the data lacks, e.g. {missing[0]!r}")
    return [by_id[i] for i in ids]


def evaluate(
    model: Segmenter,
    cfg: Config,
    cases: Sequence[Case],
    *,
    name: str,
    samples: int,
    seed: int,
    empty: str = "one",
    rule: str | None = None,
    compare: int | None = None,
    known: Sequence[Case] | None = None,
    data: str | None = None,
    show: bool = False,
    json_file: Path | None = None,
    csv_file: Path | None = None,
) -> dict[str, Any]:
    """Score every case, compare and write: the whole of ``ncaseg evaluate``.

    Args:
        model, cfg, cases, name, samples, seed, empty, rule: as in ``score_cases``.
        compare: size of another ensemble, over which the gain is given under ``comparison``; None compares with none.
        known: cases for the baselines that need no model, see ``score_baselines``, under ``floors``; None leaves them
            out.
        data: name of the dataset, kept under ``data``.
        show: print the table.
        json_file, csv_file: where to write the result and the rows.

    Returns:
        The result of ``score_cases`` with these entries.
    """
    options: dict[str, Any] = {"name": name, "seed": seed, "empty": empty, "rule": rule}
    scores = score_cases(model, cfg, cases, samples=samples, **options)
    if data is not None:
        scores["data"] = data
    cases = [case for case in cases if case.id not in scores.get("failed", {})]
    if compare is not None:
        scores["comparison"] = compare_samples(scores, score_cases(model, cfg, cases, samples=compare, **options))
    if known is not None:
        scores["floors"] = score_baselines(cfg, cases, known)
    if show:
        print(format_table(scores))
    if json_file is not None:
        write_json(scores, json_file)
    if csv_file is not None:
        write_csv(scores, csv_file)
    return scores


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
    """Segment and score every case on its native grid.

    The merged foreground (every label above 0) is always scored: hard Dice and IoU of the thresholded prediction, and
    the soft Dice that the published M3D-NCA code reports. A model with one output channel per class also gets these
    three per class, and precision and sensitivity; a model of the merged foreground gets the recall of every label
    value, since it cannot tell them apart. The standard deviation is that of the population of cases, as in the papers.

    Args:
        model, cfg: from ``load_model``.
        cases: each with a label.
        name: how the result names the model.
        samples: members of the ensemble.
        seed: names the random stream.
        empty: score of a case without foreground in prediction and label: "one", "zero", or "skip" (None in the
            result, and left out of the means).
        rule: how members become one, see ``ncaseg.ensemble.combine``; None takes the recipe's.

    Returns:
        What ``ncaseg evaluate --json`` writes: ``mean``, ``std``, ``cases``, ``classes`` (means per class), ``model``,
        ``samples``, ``seed``, ``conditions``, ``made`` (commit, machine), ``seconds_per_case``; plain numbers, strings,
        lists and dicts. ``classes_std`` are deviations over cases as of a sample, n - 1, as in cDAL's paper. A
        MedSegDiffNCA gets ``protocols`` as well, see ``ncaseg.evaluation.medsegdiff``; a cDAL of pictures has E-CDAL
        there, and an M3D-NCA on another grid than the native one E-M3D, both with ``protocols_std``. ``failed`` is
        there if cases failed: their ids and the errors; the numbers are those of the others.

    Raises:
        BatchError: every case failed.
        ValueError: a model that samples masks is given an ``empty`` or a ``rule`` that it does not have.
    """
    rule = cfg.predict.rule if rule is None else rule
    scoring = SCORINGS.get(cfg.model.kind, Scoring())
    scoring.check(empty, rule)
    rows, batch = [], Batch()
    options: dict[str, Any] = {"rule": rule, "with_spread": scoring.with_spread, "with_grid": True}
    for case in tqdm(cases, desc="evaluate", unit="case", disable=None):
        with batch.case(case.id, case.image):
            volume = load_case(case, cfg.data)
            answered = answer(model, volume, cfg, samples, seed, **options)
            rows.append({"id": case.id, "seconds": answered.seconds, **scoring.score(answered, volume, cfg, empty)})
    if not rows:
        batch.finish(len(cases), rows)
    conditions = scoring.conditions(cfg, rule, empty, rows)
    result = assemble(model, cfg, rows, conditions, name=name, samples=samples, seed=seed) | scoring.summarise(rows)
    return result | ({"failed": batch.failed} if batch.failed else {})


def compare_samples(scores: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """What the ensemble of ``scores`` is worth over the one of ``other``: two results of ``score_cases`` on the same
    cases.

    Returns:
        ``samples`` and ``mean`` of ``other``, and per metric under ``gain`` the mean and the population standard
        deviation over cases of the difference ``scores - other``, in points (hundredths); cases that either leaves out
        do not count.
    """
    gain, others = {}, {row["id"]: row for row in other["cases"]}  # a case may have failed in either
    both = [(row, others[row["id"]]) for row in scores["cases"] if row["id"] in others]
    for metric in METRICS:
        pairs = [(a[metric], b[metric]) for a, b in both]
        points = [100 * (a - b) for a, b in pairs if a is not None and b is not None]
        gain[metric] = {"mean": mean(points), "std": deviation(points)} if points else None
    return {"samples": other["samples"], "mean": other["mean"], "std": other["std"], "gain": gain}
