"""The tables of a paper beside ours: printed numbers, finished runs with their conditions, "-" where there is none."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ncaseg import config, evaluate, mask_tables
from ncaseg.checkpoint import load_model
from ncaseg.files import write_text
from ncaseg.markdown import table
from ncaseg.measure import Ensemble
from ncaseg.paper import VARIANTS, Paper, PlannedRun
from ncaseg.provenance import describe
from ncaseg.qc import run_qc
from ncaseg.runs import Run, is_planned
from ncaseg.score_samples import score_floors
from ncaseg.train import train

SAMPLES = 10


def write_tables(
    paper: Paper, runs: Sequence[Run], out: str | Path, name: str, data: str | Path | None = None
) -> list[Path]:
    """Writes the tables as `OUT/NAME.md` and `OUT/NAME.json`, and returns these two.

    For a paper on sampled masks the runs on the dataset in `data` are drawn as well, see `mask_tables.draw_pictures`.
    """
    out = Path(out)
    if paper.form == "masks":
        tables = mask_tables.make_tables(paper, runs)
        pictures = [] if data is None else mask_tables.draw_pictures(runs, data, out)
        text = mask_tables.to_markdown(paper, tables, pictures)
    else:
        tables = make_tables(paper, runs)
        text = to_markdown(paper, tables)
    paths = [out / f"{name}.md", out / f"{name}.json"]
    write_text(paths[0], text)
    write_text(paths[1], json.dumps({"written": describe(), **tables}, indent=1, allow_nan=False) + "\n")
    return paths


def run_missing(paper: Paper, data: str | Path, out: str | Path) -> list[Path]:
    """Trains, scores and inspects, one after the other, what the plan has for this dataset and `OUT/runs` lacks.

    Every part goes on where an earlier call stopped.

    Args:
        paper: the plan.
        data: folder of the dataset; its name says which task it is.
        out: folder; a run lands in `OUT/runs/<id>`.

    Returns:
        The folders of all planned runs of this dataset.

    Raises:
        ValueError: the folder's name contains no task of the paper, or see `ncaseg.train.train`.
    """
    data = Path(data)
    folders = []
    for run in planned_for(paper, data):
        folders.append(Path(out) / "runs" / run.id)
        if not (folders[-1] / "scores.json").exists():
            _train_and_score(run, data, folders[-1])
        if _is_inspected(paper, run) and "detection" not in _read_json(folders[-1] / "qc.json"):
            _inspect(paper, data, folders[-1])
    return folders


def planned_for(paper: Paper, data: str | Path) -> list[PlannedRun]:
    """The planned runs of the dataset in this folder, whose name has to contain a task.

    Raises:
        ValueError: it contains none with planned runs; the message lists them.
    """
    planned = [run for run in paper.plan if run.task in Path(data).resolve().name.lower()]
    if not planned:
        tasks = ", ".join(dict.fromkeys(run.task for run in paper.plan))
        raise ValueError(f"data must be a folder whose name contains a task with planned runs ({tasks}); got {data}")
    return planned


def missing_runs(paper: Paper, data: str | Path, runs: Sequence[Run]) -> list[str]:
    """Ids of the planned runs of this dataset that are not among the finished ones; errors as `planned_for`."""
    return [p.id for p in planned_for(paper, data) if not any(is_planned(p, run.cfg) for run in runs)]


def make_tables(paper: Paper, runs: Sequence[Run]) -> dict[str, Any]:
    """The tables `comparison`, `ablation`, `quality` as lists of rows of plain values; `runs` are their conditions."""
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
        [row["model"], *(text for task in tasks for text in (_dice(row[task]), _count(row[task])))]
        for row in tables["comparison"]
    ]
    ablation = [
        [row["group"], *(text for v in VARIANTS for text in (_dice(row["paper"].get(v)), _dice(row["ours"].get(v))))]
        for row in tables["ablation"]
    ]
    rates = ("detection_rate", "false_negative_rate", "missed_of_passed")
    quality = [
        [row["task"], row["source"], *(_percent(row.get(rate)) for rate in rates), _confusion(row.get("counts"))]
        for row in tables["quality"]
    ]
    conditions = [[_condition(key, entry[key]) for key in entry] for entry in tables["runs"]]
    variants = [f"{v.replace('_', ' ')}, {who}" for v in VARIANTS for who in ("paper", "ours")]
    parts = [
        f"# {paper.title}\n\n{paper.citation}. Dice: mean ± standard deviation over test cases. Ours: {paper.metric}.",
        *(f"* {note}" for note in paper.notes),
        f"\n## Comparison\n\nPaper: {paper.comparison['source']}.\n",
        table(["model", *(text for task in tasks for text in (task, "parameters"))], comparison),
        f"\n## Ablation\n\nPaper: {paper.ablation['source']}. Ours: mean over runs that differ by their seeds only.\n",
        table(["", *variants], ablation),
        f"\n## Quality control\n\nPaper: {paper.quality['source']}.\n",
        table(["task", "", "detected TP/(TP+FN)", "FN/all", "FN/(FN+TN)", "TP/FP/FN/TN"], quality),
        "\n## Conditions of our runs\n",
        table(list(tables["runs"][0]), conditions) if conditions else "No finished run was found.",
    ]
    return "\n".join(parts) + "\n"


def _comparison(paper: Paper, runs: Sequence[Run]) -> list[dict[str, Any]]:
    rows = [dict(row) for row in paper.comparison["rows"]]
    absent = dict.fromkeys(paper.tasks)
    for run in runs:
        task = next((task for task in paper.tasks if task in run.cfg.name), None)
        if task is not None:
            changed = f" ({'; '.join(run.changes)})" if run.changes else ""
            numbers = [*run.conditions()[paper.metric], run.num_parameters]
            rows.append({"model": f"**ours**: {run.cfg.name}{changed}", **absent, task: numbers})
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


def _is_inspected(paper: Paper, run: PlannedRun) -> bool:
    """Whether quality control has a meaning for this run: only models that are random have a spread."""
    is_random = paper.form == "volumes" and config.load_recipe(run.recipe).model.kind != "unet"
    return is_random and run.variant != "no_duplication"


def _train_and_score(planned: PlannedRun, data: Path, folder: Path) -> None:
    print(f"run {planned.id}: {planned.recipe} {' '.join(planned.overrides)}")
    name = train(config.load_recipe(planned.recipe, planned.overrides), data, folder)
    model, cfg, _ = load_model(name)
    cases = evaluate.restrict(evaluate.find_labelled_cases(data=data), folder / "split.json", "validation")
    both = [
        evaluate.score_cases(model, cfg, cases, name=name.name, samples=samples, seed=cfg.predict.seed)
        for samples in (SAMPLES, 1)
    ]
    both[0]["comparison"] = evaluate.compare_samples(*both)
    both[0]["data"] = data.resolve().name
    if cfg.model.kind.startswith("medsegdiff"):
        known = evaluate.restrict(evaluate.find_labelled_cases(data=data), folder / "split.json", "train")
        both[0]["floors"] = score_floors(cfg, cases, known)
    evaluate.write_json(both[0], folder / "scores.json")


def _inspect(paper: Paper, data: Path, folder: Path) -> None:
    model, cfg, _ = load_model(folder / "model.safetensors")
    cases = evaluate.find_labelled_cases(data=data)
    calibration, evaluation = (evaluate.restrict(cases, folder / "split.json", s) for s in ("train", "validation"))
    try:
        run_qc(
            Ensemble(model, cfg, SAMPLES, cfg.predict.seed),
            folder / "qc.csv",
            calibration_cases=calibration,
            evaluation_cases=evaluation,
            metric=paper.metric,
            target=paper.quality["target"],
        )
    except ValueError as error:  # no threshold: the table says "-", and the other runs go on
        print(f"no quality control of {folder.name}: {error}")


def _mean_over(scores: Sequence[Mapping[str, Any]], metric: str) -> list[float] | None:
    """Mean and deviation of the Dice, each averaged over runs."""
    if not scores:
        return None
    return [float(np.mean([entry[key][metric] for entry in scores])) for key in ("mean", "std")]


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _dice(numbers: Sequence[float] | None) -> str:
    return "-" if numbers is None else f"{numbers[0]:.3f} ± {numbers[1]:.3f}"


def _count(numbers: Sequence[float] | None) -> str:
    return "-" if numbers is None else f"{int(numbers[2]):,}"


def _percent(rate: float | None) -> str:
    return "-" if rate is None else f"{100 * rate:.1f} %"


def _confusion(counts: Mapping[str, int] | None) -> str:
    return "-" if counts is None else "/".join(str(counts[name]) for name in ("TP", "FP", "FN", "TN"))


def _condition(key: str, value: Any) -> str:
    if key.endswith("_dice"):
        return _dice(value)
    if isinstance(value, list):
        return "; ".join(value) or "none"
    return "unknown" if value is None else str(value)
