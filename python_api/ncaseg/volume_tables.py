"""The tables of a paper on volumes beside ours: comparison, ablation, quality control; "-" where there is no number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ncaseg.markdown import conditions, percent, table
from ncaseg.paper import VARIANTS, Paper
from ncaseg.runs import Run, is_planned


def make_tables(paper: Paper, runs: Sequence[Run]) -> dict[str, Any]:
    """The tables `comparison`, `ablation`, `quality` as lists of rows of plain values; `runs` are their conditions.

    All runs are the paper's, see `ncaseg.runs.of_paper`.
    """
    return {
        "comparison": _comparison(paper, runs),
        "ablation": _ablation(paper, runs),
        "quality": _quality(paper, runs),
        "runs": [run.conditions() for run in runs],
    }


def to_markdown(paper: Paper, tables: Mapping[str, Any]) -> str:
    """The tables as Markdown; a cell "-" was not run here, or not printed there."""
    tasks = paper.tasks
    comparison = [
        [row["model"], *(cell for task in tasks for cell in (_dice(row[task]), _count(row[task])))]
        for row in tables["comparison"]
    ]
    ablation = [
        [row["group"], *(cell for v in VARIANTS for cell in (_dice(row["paper"].get(v)), _dice(row["ours"].get(v))))]
        for row in tables["ablation"]
    ]
    rates = ("detection_rate", "false_negative_rate", "missed_of_passed")
    quality = [
        [row["task"], row["source"], *(percent(row.get(rate)) for rate in rates), _confusion(row.get("counts"))]
        for row in tables["quality"]
    ]
    runs = [
        {key: _dice(value) if key.endswith("_dice") else value for key, value in run.items()} for run in tables["runs"]
    ]
    variants = [f"{v.replace('_', ' ')}, {who}" for v in VARIANTS for who in ("paper", "ours")]
    parts = [
        f"# {paper.title}\n\n{paper.citation}. Dice: mean ± standard deviation over test cases. Ours: {paper.metric}.",
        *(f"* {note}" for note in paper.notes),
        f"\n## Comparison\n\nPaper: {paper.comparison['source']}.\n",
        table(["model", *(head for task in tasks for head in (task, "parameters"))], comparison),
        f"\n## Ablation\n\nPaper: {paper.ablation['source']}. Ours: mean over runs that differ by their seeds only.\n",
        table(["", *variants], ablation),
        f"\n## Quality control\n\nPaper: {paper.quality['source']}.\n",
        table(["task", "", "detected TP/(TP+FN)", "FN/all", "FN/(FN+TN)", "TP/FP/FN/TN"], quality),
        conditions(runs),
    ]
    return "\n".join(parts) + "\n"


def _comparison(paper: Paper, runs: Sequence[Run]) -> list[dict[str, Any]]:
    rows = [dict(row) for row in paper.comparison["rows"]]
    absent = dict.fromkeys(paper.tasks)
    for run in runs:
        task = next((task for task in paper.tasks if task in run.cfg.name), None)
        if task is not None:
            numbers = [*run.conditions()[paper.metric], run.num_parameters]
            rows.append({"model": f"**ours**: {run.title}", **absent, task: numbers})
    if not any(row["model"].startswith("**ours**") for row in rows):
        rows.append({"model": "**ours**", **absent})
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
        ours = {variant: _mean_over([run.scores for run in found], paper.metric) for variant, found in cells.items()}
        single = [
            r.scores["comparison"] for r in cells["standard"] if r.scores.get("comparison", {}).get("samples") == 1
        ]
        ours["no_ensemble"] = _mean_over(single, paper.metric)
        numbers = {variant: printed[variant] for variant in VARIANTS if variant in printed}
        rows.append({"group": printed["group"], "paper": numbers, "ours": ours})
    return rows


def _quality(paper: Paper, runs: Sequence[Run]) -> list[dict[str, Any]]:
    rows = []
    for printed in paper.quality["rows"]:
        rows.append({**printed, "source": "paper"})
        found = [
            r for r in runs if printed["task"] in r.cfg.name and r.quality is not None and "detection" in r.quality
        ]
        for run in found:
            detection = (run.quality or {})["detection"]
            counts = detection["counts"]["all"]
            source = f"ours: {run.folder.name}, {detection['failure']}, {detection['flag']}"
            rows.append({"task": printed["task"], "source": source, "counts": counts, **counts})
        if not found:
            rows.append({"task": printed["task"], "source": "ours"})
    return rows


def _mean_over(scores: Sequence[Mapping[str, Any]], metric: str) -> list[float] | None:
    """Mean and deviation of the Dice, each averaged over runs."""
    if not scores:
        return None
    return [float(np.mean([entry[key][metric] for entry in scores])) for key in ("mean", "std")]


def _dice(numbers: Sequence[float] | None) -> str:
    return "-" if numbers is None else f"{numbers[0]:.3f} ± {numbers[1]:.3f}"


def _count(numbers: Sequence[float] | None) -> str:
    return "-" if numbers is None else f"{int(numbers[2]):,}"


def _confusion(counts: Mapping[str, int] | None) -> str:
    return "-" if counts is None else "/".join(str(counts[name]) for name in ("TP", "FP", "FN", "TN"))
