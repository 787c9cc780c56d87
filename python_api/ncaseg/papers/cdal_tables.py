"""The tables of a paper on sampled labels beside ours: one row per published model or planned run, in percent.

A number of ours is read from the ``scores.json`` of a run. Where there is none the table says "not run".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch

from ncaseg import config
from ncaseg.config import CdalModelConfig
from ncaseg.evaluation.result import mean, sample_deviation
from ncaseg.models.cdal.build import build_discriminator
from ncaseg.papers.paper import Paper, PlannedRun
from ncaseg.papers.runs import Run, changed_budget, num_parameters
from ncaseg.report.markdown import conditions, table, text

NOT_RUN = "not run"


def make_tables(paper: Paper, runs: Sequence[Run]) -> dict[str, Any]:
    """``tables`` (the paper's rows, ours beside), ``effort``, ``others`` (runs outside of the plan), ``runs``
    (conditions).

    Plain values; scores in percent, each a mean and a deviation or None. All runs are the paper's, see
    ``ncaseg.papers.runs.of_paper``.
    """
    planned = {entry.id: entry for entry in paper.plan}
    taken = {run.folder for run in runs for entry in paper.plan if changed_budget(entry, run.cfg) is not None}
    return {
        "tables": [_one_table(printed, planned, runs) for printed in paper.tables],
        "effort": [_effort(entry, runs) for entry in paper.plan if not entry.overrides],
        "others": [_other(run) for run in runs if run.folder not in taken],
        "runs": [_conditions(run) for run in runs],
    }


def to_markdown(paper: Paper, tables: Mapping[str, Any]) -> str:
    """The tables as Markdown; "-" was not printed, or does not apply."""
    parts = [f"# {paper.title}\n\n{paper.citation}.\n", *(f"* {note}" for note in paper.notes)]
    for entry in tables["tables"]:
        parts += [f"\n## {entry['title']}\n", *([f"Paper: {entry['source']}.\n"] if entry["source"] else [])]
        parts += [_show_table(entry)]
    parts += [f"\n## Cost\n\nPaper: {paper.effort['source']}.\n", _show_effort(paper.effort["rows"], tables["effort"])]
    if tables["others"]:
        header = ["run", "parameters", "Dice, merged", "Dice of each label", "E-CDAL Dice", "E-CDAL mIoU"]
        parts += ["\n## Runs with other settings\n", table(header, [_show_other(row) for row in tables["others"]])]
    return "\n".join([*parts, conditions(tables["runs"])]) + "\n"


def _one_table(printed: Mapping[str, Any], planned: Mapping[str, PlannedRun], runs: Sequence[Run]) -> dict[str, Any]:
    columns = printed["columns"]
    paths = [column["score"] for column in columns]
    rows = [line for row in printed["rows"] for line in _rows(row, planned.get(row.get("run", "")), paths, runs)]
    return {
        "title": printed["title"],
        "source": printed["source"],
        "columns": [column["name"] for column in columns],
        "rows": rows,
    }


def _rows(
    printed: Mapping[str, Any], planned: PlannedRun | None, paths: Sequence[Sequence[str]], runs: Sequence[Run]
) -> list[dict[str, Any]]:
    """A printed row with our runs of that recipe, then one for each other length of training."""
    row: dict[str, Any] = {"data": printed["data"], "model": printed["model"], "paper": printed.get("printed")}
    if planned is None:
        return [row]
    lengths: dict[tuple[str, ...], list[Run]] = {(): []}
    for run in runs:
        changed = changed_budget(planned, run.cfg)
        if changed is not None and _is_tested_on(run, printed.get("tested_on", "")):
            lengths.setdefault(tuple(changed), []).append(run)
    parameters = _parameters(planned)[0]
    rows = []
    for changes, members in lengths.items():
        ours: dict[str, Any] = {"parameters": parameters, "runs": [run.folder.name for run in members]}
        ours["scores"] = [_over_runs(members, path) for path in paths]
        longer = {"model": f"{row['model']} ({'; '.join(changes)})", "paper": None} if changes else {}
        rows.append(row | longer | {"ours": ours})
    return rows


def _over_runs(runs: Sequence[Run], path: Sequence[str]) -> list[float | None] | None:
    """Mean and deviation (n - 1) over runs of one score in percent; no deviation of one run, None without a score."""
    values = [value for run in runs if (value := _score(run.scores, path)) is not None]
    numbers = (mean(values), sample_deviation(values))
    return [None if value is None else 100 * value for value in numbers] if values else None


def _score(scores: Any, path: Sequence[str]) -> float | None:
    for key in path:
        scores = scores.get(key) if isinstance(scores, Mapping) else None
    return scores


def _is_tested_on(run: Run, prefix: str) -> bool:
    return all(name.startswith(prefix) for name in run.split.validation)


def _parameters(planned: PlannedRun) -> tuple[int | None, int]:
    return _count(planned.recipe, planned.overrides)


@cache
def _count(recipe: str, overrides: tuple[str, ...]) -> tuple[int | None, int]:
    """Parameters of generator and discriminator; None for a generator of a library that is not installed."""
    cfg = config.load_recipe(recipe, overrides)
    model = cfg.model
    with torch.device("meta"):
        discriminator = build_discriminator(model, cfg.cdal) if isinstance(model, CdalModelConfig) else None
    other = 0 if discriminator is None else sum(p.numel() for p in discriminator.parameters())
    try:
        return num_parameters(cfg), other
    except ImportError:
        return None, other


def _effort(planned: PlannedRun, runs: Sequence[Run]) -> dict[str, Any]:
    """What a planned recipe costs; its times are those of all runs of it, whatever they were trained for."""
    generator, discriminator = _parameters(planned)
    timed = [run for run in runs if changed_budget(planned, run.cfg) is not None and "seconds_per_case" in run.scores]
    seconds = [
        {key: run.scores[key] for key in ("seconds_per_case", "samples")} | {"machine": run.scores["made"]["machine"]}
        for run in timed
    ]
    return {"recipe": planned.recipe, "generator": generator, "discriminator": discriminator, "times": seconds}


def _other(run: Run) -> dict[str, Any]:
    scores = run.scores
    dice = {label: _score(entry, ["hard_dice"]) for label, entry in scores.get("classes", {}).items()}
    return {
        "run": f"{run.folder.name}: {run.title}",
        "parameters": run.num_parameters,
        "merged": scores["mean"]["hard_dice"],
        "classes": {label: value for label, value in dice.items() if value is not None},
        "protocol": [_score(scores, ["protocols", "E-CDAL", key]) for key in ("dice", "iou")],
    }


def _conditions(run: Run) -> dict[str, Any]:
    left_out = ("parameters", "soft_dice", "hard_dice")
    kept = {key: value for key, value in run.conditions().items() if key not in left_out}
    train = run.cfg.train
    length = f"{train.steps} steps" if train.steps > 0 else f"{train.epochs} epochs"
    return kept | {"length": length, "seconds_per_case": run.scores.get("seconds_per_case")}


def _show_table(entry: Mapping[str, Any]) -> str:
    names = entry["columns"]
    has_paper = any(row["paper"] for row in entry["rows"])
    ours = ", ours" if has_paper else ""
    header = ["", "model", *(f"{name}, paper" for name in names if has_paper), f"parameters{ours}"]
    header += [*(f"{name}{ours}" for name in names), "runs"]
    rows = []
    for row in entry["rows"]:
        printed = [_percent(value) for value in row["paper"] or [None] * len(names)] if has_paper else []
        rows.append([row["data"], row["model"], *printed, *_ours(row.get("ours"), len(names))])
    return table(header, rows)


def _ours(ours: Mapping[str, Any] | None, columns: int) -> list[str]:
    """Parameters, scores and names of our runs; a model of the paper that is not ours to run has dashes."""
    if ours is None:
        return ["-"] * (columns + 2)
    count = _number(ours["parameters"])
    if not ours["runs"]:
        return [count, NOT_RUN, *["-"] * columns]
    return [count, *(_percent(value) for value in ours["scores"]), ", ".join(ours["runs"])]


def _show_effort(printed: Sequence[Mapping[str, Any]], ours: Sequence[Mapping[str, Any]]) -> str:
    rows = [[f"paper: {row['model']}", "-", "-", f"{row['seconds']:g}"] for row in printed]
    for row in ours:
        times = [f"{t['seconds_per_case']:.2f}, {t['samples']} samples ({text(t['machine'])})" for t in row["times"]]
        counts = (_number(row["generator"]), _number(row["discriminator"]))
        rows.append([row["recipe"], *counts, "; ".join(times) or NOT_RUN])
    return table(["", "generator, parameters", "discriminator, parameters", "seconds per case"], rows)


def _show_other(row: Mapping[str, Any]) -> list[str]:
    values = [None if value is None else [100 * value, None] for value in (row["merged"], *row["protocol"])]
    merged, *protocol = (_percent(value) for value in values)
    classes = ", ".join(f"{label}: {100 * value:.2f}" for label, value in row["classes"].items())
    return [row["run"], _number(row["parameters"]), merged, classes or "-", *protocol]


def _percent(value: float | Sequence[float | None] | None) -> str:
    """A number in percent, or mean and deviation."""
    if value is None:
        return "-"
    mean, deviation = (value, None) if isinstance(value, (int, float)) else value
    return f"{mean:.2f}" + ("" if deviation is None else f" ({deviation:.2f})")


def _number(count: int | None) -> str:
    return "-" if count is None else f"{count:,}"
