"""A paper beside our runs: the tables written, and what its plan still lacks trained and scored."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ncaseg import config, evaluate, label_tables, mask_tables, volume_tables
from ncaseg.checkpoint import load_model
from ncaseg.files import write_text
from ncaseg.measure import Ensemble
from ncaseg.paper import Paper, PlannedRun
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
    maker = {"volumes": volume_tables, "masks": mask_tables, "labels": label_tables}[paper.form]
    tables = maker.make_tables(paper, runs)
    text = maker.to_markdown(paper, tables)
    if paper.form == "masks" and data is not None:
        text += mask_tables.show_pictures(mask_tables.draw_pictures(runs, data, out))
    paths = [out / f"{name}.md", out / f"{name}.json"]
    write_text(paths[0], text)
    write_text(paths[1], json.dumps({"written": describe(), **tables}, indent=1, allow_nan=False) + "\n")
    return paths


def run_missing(paper: Paper, data: str | Path, out: str | Path) -> list[Path]:
    """Trains, scores and inspects, one after the other, what the plan has for this dataset and `OUT/runs` lacks.

    Every part goes on where an earlier call stopped. What the plan leaves to larger machines is not trained.

    Args:
        paper: the plan.
        data: folder of the dataset; its name says which task it is.
        out: folder; a run lands in `OUT/runs/<id>`.

    Returns:
        The folders of the runs of this dataset that are trained here.

    Raises:
        ValueError: the folder's name contains no task of the paper, or see `ncaseg.train.train`.
    """
    data = Path(data)
    folders = []
    for run in filter(lambda planned: planned.trained, planned_for(paper, data)):
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
        for samples in (cfg.predict.samples if cfg.model.kind == "cdal" else SAMPLES, 1)
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


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
