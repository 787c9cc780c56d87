"""The tables of a paper on sampled masks beside ours, and pictures of how our runs sample.

A number of ours is read from the ``scores.json`` of a run. Where there is none the table says "not run".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ncaseg import config
from ncaseg.checkpoint.model import load_model
from ncaseg.data.dataset import load_case
from ncaseg.data.index import find_cases
from ncaseg.evaluation import protocols
from ncaseg.papers.paper import Paper, PlannedRun
from ncaseg.papers.runs import Run, is_planned, num_parameters
from ncaseg.report.markdown import NOT_RUN, Section, page
from ncaseg.report.sampling import draw_strip

TABLE_1 = "table 1"
OURS = ("parameters, ours", "Dice E-CLEAN", "IoU E-CLEAN", "Dice E-AUTHOR", "IoU E-AUTHOR")
PICTURES_PER_RUN = 3


def make_tables(paper: Paper, runs: Sequence[Run]) -> dict[str, Any]:
    """``comparison`` (the paper's rows, ours beside), ``groups`` (further ones of the plan), ``others``, ``floors``,
    ``runs``.

    Plain values. All runs are the paper's, see ``ncaseg.papers.runs.of_paper``.
    """
    planned_groups = dict.fromkeys(planned.group for planned in paper.plan if planned.group != TABLE_1)
    return {
        "comparison": [_beside(row, paper, runs) for row in paper.comparison["rows"]],
        "groups": {group: [_planned_row(p, runs) for p in paper.plan if p.group == group] for group in planned_groups},
        "others": [_other(run) for run in runs if not any(is_planned(planned, run.cfg) for planned in paper.plan)],
        "floors": [{"run": run.folder.name, **run.scores["floors"]} for run in runs if "floors" in run.scores],
        "runs": [_conditions(run) for run in runs],
    }


def to_markdown(paper: Paper, tables: Mapping[str, Any]) -> str:
    """The tables as Markdown."""
    printed = [
        [row["model"], row["parameters"], f"{row['dice']:.4f}", f"{row['iou']:.4f}", *_cells(row["ours"])]
        for row in tables["comparison"]
    ]
    header = ["model", "parameters, paper", "Dice, paper", "IoU, paper", *OURS]
    sections = [Section("Comparison", f"Paper: {paper.comparison['source']}.", header, printed)]
    for group, rows in tables["groups"].items():
        sections.append(Section(group.capitalize(), "", [group, *OURS], [[r["variant"], *_cells(r)] for r in rows]))
    if tables["others"]:
        others = [[row["variant"], *_cells(row)] for row in tables["others"]]
        sections.append(Section("Runs with other settings", "", ["run", *OURS], others))
    if tables["floors"]:
        names = [name for name in tables["floors"][0] if name != "run"]
        cells = [[row["run"], *(_pair(row.get(name)) for name in names)] for row in tables["floors"]]
        intro = "Dice / IoU on the pictures that the run was scored on."
        sections.append(Section("What needs no model", intro, ["run", *names], cells))
    return page(paper.title, f"{paper.citation}.", paper.notes, sections, tables["runs"])


def draw_pictures(runs: Sequence[Run], data: str | Path, out: str | Path) -> list[Path]:
    """Draw how the first validation pictures of every run were sampled, see ``ncaseg.report.sampling``.

    They go to ``OUT/pictures/<run>-<case>.png``; one that is newer than its model is kept. A run without
    ``model.safetensors``, of a model that does not sample, or on other data is left out.
    """
    cases = {case.id: case for case in find_cases(data)}
    paths = []
    for run in runs:
        weights = run.folder / "model.safetensors"
        ids = [name for name in run.split.validation if name in cases][:PICTURES_PER_RUN]
        if not (run.cfg.model.is_diffusion and weights.is_file()):
            continue
        model, cfg, _ = load_model(weights)
        for name in ids:
            path = Path(out) / "pictures" / f"{run.folder.name}-{name}.png"
            if not path.exists() or path.stat().st_mtime < weights.stat().st_mtime:
                samples, seed = run.scores["samples"], run.scores["seed"]
                draw_strip(path, model, load_case(cases[name], cfg.data), cfg, samples, seed)
            paths.append(path)
    return paths


def show_sampling(runs: Sequence[Run], data: str | Path, out: Path) -> str:
    """Markdown that shows what :func:`draw_pictures` draws; empty without pictures."""
    pictures = draw_pictures(runs, data, out)
    if not pictures:
        return ""
    return "\n".join(["\n## Sampling\n", *(f"![{path.stem}](pictures/{path.name})\n" for path in pictures)]) + "\n"


def _beside(printed: Mapping[str, Any], paper: Paper, runs: Sequence[Run]) -> dict[str, Any]:
    planned = [p for p in paper.plan if (p.group, p.variant) == (TABLE_1, printed["model"])]
    return {**printed, "ours": _planned_row(planned[0], runs) if planned else None}


def _planned_row(planned: PlannedRun, runs: Sequence[Run]) -> dict[str, Any]:
    """The first finished run of a plan's entry, or its parameters alone."""
    cfg = config.load_recipe(planned.recipe, planned.overrides)
    finished = next((run for run in runs if is_planned(planned, run.cfg)), None)
    return {"variant": planned.variant, "parameters": num_parameters(cfg)} | (
        {} if finished is None else _numbers(finished)
    )


def _numbers(run: Run) -> dict[str, Any]:
    scores = run.scores
    author = scores.get("protocols", {}).get(protocols.AUTHOR)
    return {
        "run": run.folder.name,
        "parameters": run.num_parameters,
        "dice": [scores[key]["hard_dice"] for key in ("mean", "std")],
        "iou": [scores[key]["iou"] for key in ("mean", "std")],
        "author": None if author is None else [author["dice"], author["iou"]],
    }


def _conditions(run: Run) -> dict[str, Any]:
    return run.short_conditions() | {
        "size": "x".join(map(str, run.cfg.data.size)),
        "steps": run.cfg.train.steps,
        "sampler": run.scores["conditions"].get("sampler", "one pass"),
    }


def _other(run: Run) -> dict[str, Any]:
    """A run that is not in the plan."""
    return _numbers(run) | {"variant": f"{run.folder.name}: {run.title}"}


def _cells(row: Mapping[str, Any] | None) -> list[str]:
    """Parameters, E-CLEAN and E-AUTHOR of ours; a row of the paper that is not ours to run has dashes."""
    if row is None:
        return ["-"] * len(OURS)
    if "dice" not in row:
        return [f"{row['parameters']:,}", NOT_RUN, *["-"] * 3]
    author = ["-", "-"] if row["author"] is None else [f"{value:.4f}" for value in row["author"]]
    return [f"{row['parameters']:,}", *(f"{m:.4f} ± {sd:.4f}" for m, sd in (row["dice"], row["iou"])), *author]


def _pair(baseline: Mapping[str, float] | None) -> str:
    return "-" if baseline is None else f"{baseline['dice']:.4f} / {baseline['iou']:.4f}"
