"""A paper beside our runs: the tables written, and what its plan still lacks trained and scored."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from ncaseg import config
from ncaseg.checkpoint.model import load_model
from ncaseg.data.index import find_cases
from ncaseg.data.phantom import has_phantoms
from ncaseg.evaluation.cases import evaluate, find_labelled_cases, restrict
from ncaseg.files import write_text
from ncaseg.papers import cdal_tables, m3d_tables, medsegdiffnca_tables
from ncaseg.papers.paper import Paper, PlannedRun
from ncaseg.papers.runs import Run, find_runs, is_planned, of_paper
from ncaseg.provenance import describe
from ncaseg.quality.control import run_qc
from ncaseg.quality.table import Ensemble
from ncaseg.quality.threshold import NoThreshold
from ncaseg.report import markdown
from ncaseg.training.loop import train

SAMPLES = 10


@dataclass(frozen=True)
class Form:
    """What a form of paper asks of its runs.

    ``tables`` makes them; ``inspects``: quality control; ``baselines``: what needs no model is scored too;
    ``own_samples``: ensembles have the size that the recipe says; ``draw``: Markdown of pictures, on data.
    """

    tables: ModuleType
    inspects: bool = False
    baselines: bool = False
    own_samples: bool = False
    draw: Callable[[Sequence[Run], str | Path, Path], str] | None = None


FORMS = {
    "volumes": Form(m3d_tables, inspects=True),
    "masks": Form(medsegdiffnca_tables, baselines=True, draw=medsegdiffnca_tables.show_sampling),
    "labels": Form(cdal_tables, own_samples=True),
}


def write_tables(
    paper: Paper, runs: Sequence[Run], out: str | Path, name: str, data: str | Path | None = None
) -> list[Path]:
    """Write the tables as ``OUT/NAME.md`` and ``OUT/NAME.json``, and return these two.

    Runs on phantoms stand in a section of their own, ``phantoms``, never beside numbers of real data. For a paper on
    sampled masks the runs on the dataset in ``data`` are drawn as well, see ``medsegdiffnca_tables.draw_pictures``.
    """
    out = Path(out)
    form = FORMS[paper.form]
    tables = form.tables.make_tables(paper, [run for run in runs if not run.on_phantoms])
    phantoms = [run.conditions() for run in runs if run.on_phantoms]
    text = form.tables.to_markdown(paper, tables) + markdown.phantoms(phantoms)
    if form.draw is not None and data is not None:
        text += form.draw(runs, data, out)
    paths = [out / f"{name}.md", out / f"{name}.json"]
    content = {"written": describe(), **tables, "phantoms": phantoms}
    write_text(paths[0], text)
    write_text(paths[1], json.dumps(content, indent=1, allow_nan=False) + "\n")
    return paths


def finished_runs(paper: Paper, out: str | Path, more: Iterable[str | Path] = ()) -> list[Run]:
    """The paper's finished runs in ``OUT/runs`` and in further folders; errors as ``ncaseg.papers.runs.find_runs``."""
    own = Path(out) / "runs"
    return of_paper(paper, find_runs([*([own] if own.is_dir() else []), *more]))


def run_missing(paper: Paper, data: str | Path, out: str | Path, runs: Sequence[Run] = ()) -> list[Path]:
    """Train and score, one after the other, what ``missing_runs`` names and the plan does not leave to larger
    machines.

    Finished runs of the plan in ``OUT/runs`` are inspected where their quality control is missing. Every part goes on
    where an earlier call stopped.

    Args:
        paper: the plan.
        data: folder of the dataset; its name says which task it is.
        out: folder; a run lands in ``OUT/runs/<id>``.
        runs: the finished ones, see ``finished_runs``.

    Returns:
        The folders of the runs that were trained.

    Raises:
        ValueError: the folder's name contains no task of the paper; a run's folder holds one of another recipe (nothing
            has been trained then); or see ``ncaseg.training.loop.train`` and ``ncaseg.quality.control.run_qc``.
    """
    data, own = Path(data), Path(out) / "runs"
    plan = _finished_of_plan(paper, data, runs)
    trained = {planned: own / planned.id for planned, finished in plan.items() if planned.trained and not finished}
    for planned, folder in trained.items():
        _check_folder(planned, folder)
    for planned, finished in plan.items():
        folders = [run.folder for run in finished if run.folder.parent.resolve() == own.resolve()]
        if planned in trained:
            folders = [trained[planned]]
            _train_and_score(FORMS[paper.form], planned, data, folders[0])
        for folder in folders:
            if _lacks_inspection(paper, planned, folder):
                _inspect(paper, data, folder)
    return list(trained.values())


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


def missing_runs(paper: Paper, data: str | Path, runs: Sequence[Run]) -> list[PlannedRun]:
    """The planned runs of this dataset whose recipe no finished run has, up to seeds; errors as ``planned_for``.

    Where the dataset is phantoms only runs on phantoms count, elsewhere only the others.
    """
    return [planned for planned, finished in _finished_of_plan(paper, data, runs).items() if not finished]


def _finished_of_plan(paper: Paper, data: str | Path, runs: Sequence[Run]) -> dict[PlannedRun, list[Run]]:
    """The finished runs of each planned one of this dataset."""
    on_phantoms = Path(data).is_dir() and has_phantoms(case.id for case in find_cases(data))
    fitting = [run for run in runs if run.on_phantoms == on_phantoms]
    return {planned: [run for run in fitting if is_planned(planned, run.cfg)] for planned in planned_for(paper, data)}


def _check_folder(planned: PlannedRun, folder: Path) -> None:
    """Training refuses a folder of another recipe: better now than after hours of the other runs."""
    recipe = folder / "recipe.toml"
    if not recipe.exists():
        return
    changes = config.differences(config.load_recipe(recipe), config.load_recipe(planned.recipe, planned.overrides))
    if changes:
        raise ValueError(
            f"{folder} must hold a run of the planned recipe, or nothing; it holds one of another. Move it elsewhere "
            f"(--runs DIR still shows it if it is finished). Differences: {'; '.join(changes)}"
        )


def _lacks_inspection(paper: Paper, planned: PlannedRun, folder: Path) -> bool:
    """Whether quality control is missing and has a meaning: only models that are random have a spread."""
    if not FORMS[paper.form].inspects or planned.variant == "no_duplication":
        return False
    is_random = config.load_recipe(planned.recipe).model.is_random
    has_weights = (folder / "model.safetensors").exists()
    return is_random and has_weights and "detection" not in _read_json(folder / "qc.json")


def _train_and_score(form: Form, planned: PlannedRun, data: Path, folder: Path) -> None:
    print(f"run {planned.id}: {planned.recipe} {' '.join(planned.overrides)}")
    name = train(config.load_recipe(planned.recipe, planned.overrides), data, folder)
    model, cfg, _ = load_model(name)
    labelled = find_labelled_cases(data=data)
    cases, known = (restrict(labelled, folder / "split.json", subset) for subset in ("validation", "train"))
    evaluate(
        model,
        cfg,
        cases,
        name=name.name,
        samples=cfg.predict.samples if form.own_samples else SAMPLES,
        seed=cfg.predict.seed,
        compare=1,
        known=known if form.baselines else None,
        data=data.resolve().name,
        json_file=folder / "scores.json",
    )


def _inspect(paper: Paper, data: Path, folder: Path) -> None:
    model, cfg, _ = load_model(folder / "model.safetensors")
    cases = find_labelled_cases(data=data)
    calibration, evaluation = (restrict(cases, folder / "split.json", s) for s in ("train", "validation"))
    try:
        run_qc(
            Ensemble(model, cfg, SAMPLES, cfg.predict.seed),
            folder / "qc.csv",
            calibration_cases=calibration,
            evaluation_cases=evaluation,
            metric=paper.metric,
            target=paper.quality["target"],
        )
    except NoThreshold as error:  # the table says "-", and the other runs go on
        print(f"no quality control of {folder.name}: {error}")


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
