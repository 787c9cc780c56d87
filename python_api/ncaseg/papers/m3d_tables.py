"""The tables of a paper on volumes beside ours: comparison, ablation, quality control; "-" where there is no number.

A number of ours is one experiment's: the mean over its runs, which differ by seed or split alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ncaseg.evaluation.result import mean, sample_deviation
from ncaseg.papers.paper import VARIANTS, Paper
from ncaseg.papers.runs import Run, experiments, is_planned
from ncaseg.report.markdown import conditions, percent, spread, table

RATES = ("detection_rate", "false_negative_rate", "missed_of_passed")
COUNTS = ("TP", "FP", "FN", "TN")
OURS = "where n runs differ by seed or split alone, mean ± deviation (n - 1) between the runs"


def make_tables(paper: Paper, runs: Sequence[Run]) -> dict[str, Any]:
    """The tables ``comparison``, ``ablation``, ``quality`` as lists of rows of plain values; ``runs`` are their
    conditions.

    A Dice is a mean and a deviation, of ours also a number of runs n; in ``comparison`` the parameters stand before n.
    The deviation is that over test cases, of ours for n > 1 that between runs (n - 1). All runs are the paper's, see
    ``ncaseg.papers.runs.of_paper``, and none is on phantoms.
    """
    return {
        "comparison": _comparison(paper, experiments(runs)),
        "ablation": _ablation(paper, runs),
        "quality": _quality(paper, runs),
        "runs": [run.conditions() for run in runs],
    }


def to_markdown(paper: Paper, tables: Mapping[str, Any]) -> str:
    """The tables as Markdown; a cell "-" was not run here, or not printed there."""
    tasks = paper.tasks
    comparison = [
        [row["model"], *(cell for task in tasks for cell in _dice_and_parameters(row[task]))]
        for row in tables["comparison"]
    ]
    ablation = [
        [row["group"], *(spread(row[who].get(v)) for v in VARIANTS for who in ("paper", "ours"))]
        for row in tables["ablation"]
    ]
    quality = [
        [row["task"], row["source"], *(spread(row.get(rate), percent) for rate in RATES), _confusion(row.get("counts"))]
        for row in tables["quality"]
    ]
    variants = [f"{v.replace('_', ' ')}, {who}" for v in VARIANTS for who in ("paper", "ours")]
    parts = [
        f"# {paper.title}\n\n{paper.citation}.\n\nDice: mean ± standard deviation over test cases. "
        f"Ours: {paper.metric}; {OURS}.\n",
        *(f"* {note}" for note in paper.notes),
        f"\n## Comparison\n\nPaper: {paper.comparison['source']}.\n",
        table(["model", *(head for task in tasks for head in (task, "parameters"))], comparison),
        f"\n## Ablation\n\nPaper: {paper.ablation['source']}.\n",
        table(["", *variants], ablation),
        f"\n## Quality control\n\nPaper: {paper.quality['source']}. Ours: {OURS}; counts are sums over the runs.\n",
        table(["task", "", "detected TP/(TP+FN)", "FN/all", "FN/(FN+TN)", "/".join(COUNTS)], quality),
        conditions(tables["runs"]),
    ]
    return "\n".join(parts) + "\n"


def _comparison(paper: Paper, groups: Sequence[Sequence[Run]]) -> list[dict[str, Any]]:
    rows = [dict(row) for row in paper.comparison["rows"]]
    absent = dict.fromkeys(paper.tasks)
    for group in groups:
        run = group[0]
        task = next((task for task in paper.tasks if task in run.cfg.name), None)
        if task is not None:
            average, deviation, count = _dice([r.scores for r in group], paper.metric)
            rows.append({"model": f"**ours**: {run.title}", task: [average, deviation, run.num_parameters, count]})
    if len(rows) == len(paper.comparison["rows"]):
        rows.append({"model": "**ours**"})
    return [absent | row for row in rows]


def _ablation(paper: Paper, runs: Sequence[Run]) -> list[dict[str, Any]]:
    rows = []
    for printed in paper.ablation["rows"]:
        cells: dict[str, list[Run]] = {
            variant: [
                run
                for planned in paper.plan
                if (planned.group, planned.variant) == (printed["group"], variant)
                for run in runs
                if is_planned(planned, run.cfg)
            ]
            for variant in VARIANTS
        }
        scores = {variant: [run.scores for run in found] for variant, found in cells.items()}
        compared = [entry.get("comparison", {}) for entry in scores["standard"]]
        scores["no_ensemble"] = [entry for entry in compared if entry.get("samples") == 1]
        ours = {variant: _dice(found, paper.metric) for variant, found in scores.items() if found}
        numbers = {variant: printed[variant] for variant in VARIANTS if variant in printed}
        rows.append({"group": printed["group"], "paper": numbers, "ours": ours})
    return rows


def _quality(paper: Paper, runs: Sequence[Run]) -> list[dict[str, Any]]:
    rows = []
    inspected = [run for run in runs if run.quality is not None and "detection" in run.quality]
    failures = dict.fromkeys(_found(run)["failure"] for run in inspected)
    for printed in paper.quality["rows"]:
        task = printed["task"]
        rates = {rate: [printed[rate]] for rate in RATES if rate in printed}
        ours = [
            _detection(group)
            for failure in failures
            for group in experiments(r for r in inspected if task in r.cfg.name and _found(r)["failure"] == failure)
        ]
        rows += [{"task": task, **row} for row in ({"source": "paper", **rates}, *(ours or [{"source": "ours"}]))]
    return rows


def _detection(group: Sequence[Run]) -> dict[str, Any]:
    """What quality control finds over the runs of an experiment; a rate that a run does not have does not count."""
    flags = "; ".join(dict.fromkeys(_found(run)["flag"] for run in group))
    counts = [_found(run)["counts"]["all"] for run in group]
    rates = {rate: [entry[rate] for entry in counts if entry[rate] is not None] for rate in RATES}
    return {
        "source": f"ours: {group[0].title}, {_found(group[0])['failure']}, {flags}",
        **{rate: _over_runs(values) for rate, values in rates.items() if values},
        "counts": {name: sum(entry[name] for entry in counts) for name in COUNTS},
    }


def _found(run: Run) -> dict[str, Any]:
    return (run.quality or {})["detection"]


def _dice(scores: Sequence[Mapping[str, Any]], metric: str) -> list[Any]:
    """The Dice of at least one run, given what each has as ``mean`` and ``std`` over its cases."""
    return _over_runs([entry["mean"][metric] for entry in scores], scores[0]["std"][metric])


def _over_runs(values: Sequence[float], alone: float | None = None) -> list[Any]:
    """Mean, deviation, number: the deviation is that between runs (n - 1), or ``alone`` for one run."""
    return [mean(values), sample_deviation(values) if len(values) > 1 else alone, len(values)]


def _dice_and_parameters(numbers: Sequence[Any] | None) -> list[str]:
    if numbers is None:
        return ["-", "-"]
    average, deviation, parameters, *count = numbers
    return [spread([average, deviation, *count]), f"{parameters:,}"]


def _confusion(counts: Mapping[str, int] | None) -> str:
    return "-" if counts is None else "/".join(str(counts[name]) for name in COUNTS)
