"""Finished runs: what their folders say about recipe, data, scores and quality control."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ncaseg import config
from ncaseg.config import Config
from ncaseg.data.phantom import has_phantoms
from ncaseg.data.split import Split, load_split
from ncaseg.models import build_model
from ncaseg.papers.paper import Paper, PlannedRun

# What tells two runs of one experiment apart, or changes no result: not a reason to call them different.
FREE_KEYS = {
    "train.seed",
    "train.device",
    "train.keep_every",
    "train.checkpoint_every",
    "train.validate_every",
    "data.split_seed",
    "data.cache",
    "diffusion.validate_cases",
    "cdal.validate_cases",
}

# How long a run trains: what it has learned is another model, but of the same experiment.
BUDGET_KEYS = {"train.steps", "train.epochs"}


@dataclass(frozen=True)
class Run:
    """A folder with ``recipe.toml``, ``split.json`` and ``scores.json``; ``quality`` is its ``qc.json``, or None."""

    folder: Path
    cfg: Config
    split: Split
    scores: dict[str, Any]
    quality: dict[str, Any] | None

    @property
    def num_parameters(self) -> int:
        """As counted when it was scored: a baseline's library need not be installed here."""
        return self.scores.get("parameters") or num_parameters(self.cfg)

    @property
    def changes(self) -> list[str]:
        """Differences to the built-in recipe of the same name; empty where there is none of that name."""
        if self.cfg.name not in config.recipe_names():
            return []
        return significant_differences(config.load_recipe(self.cfg.name), self.cfg)

    @property
    def title(self) -> str:
        """Its recipe and what it changes of that."""
        return self.cfg.name + (f" ({'; '.join(self.changes)})" if self.changes else "")

    @property
    def on_phantoms(self) -> bool:
        """Whether a case that it learned from or was scored on is synthetic: its numbers say nothing of real data."""
        scored = (case["id"] for case in self.scores.get("cases", ()))
        return has_phantoms((*self.split.train, *self.split.validation, *scored))

    def conditions(self) -> dict[str, Any]:
        """What its numbers hold under, as plain values."""
        made = self.scores.get("made", {})
        return {
            "run": self.folder.name,
            "recipe": self.cfg.name,
            "data": self.scores.get("data"),
            "changes": self.changes,
            "parameters": self.num_parameters,
            "train_cases": len(self.split.train),
            "test_cases": self.scores["num_cases"],
            "split_seed": self.split.seed,
            "train_seed": self.cfg.train.seed,
            "samples": self.scores["samples"],
            "predict_seed": self.scores["seed"],
            "commit": made.get("commit"),
            "machine": made.get("machine"),
            "soft_dice": [self.scores[key]["soft_dice"] for key in ("mean", "std")],
            "hard_dice": [self.scores[key]["hard_dice"] for key in ("mean", "std")],
        }


def find_runs(folders: Iterable[str | Path]) -> list[Run]:
    """The finished runs in these folders and one level below, by path; a run without ``scores.json`` is not finished.

    Raises:
        FileNotFoundError: a folder does not exist.
        ValueError: a file of a run cannot be read.
    """
    places = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise FileNotFoundError(f"runs must be a folder; {folder} is not one")
        for place in (folder, *sorted(path for path in folder.iterdir() if path.is_dir())):
            if all((place / name).is_file() for name in ("recipe.toml", "split.json", "scores.json")):
                places[place.resolve()] = place
    return [_read(place) for place in places.values()]


def of_paper(paper: Paper, runs: Iterable[Run]) -> list[Run]:
    """The runs of the kinds of model that the paper's plan has: its own and their baselines."""
    recipes = (_recipe_of(planned) for planned in paper.plan)
    kinds = {cfg.model.kind for cfg in recipes if cfg is not None}
    return [run for run in runs if run.cfg.model.kind in kinds]


def experiments(runs: Iterable[Run]) -> list[list[Run]]:
    """The runs in groups, by their first members: those of a group differ in nothing but ``FREE_KEYS``."""
    groups: list[list[Run]] = []
    for run in runs:
        same = next((group for group in groups if not significant_differences(group[0].cfg, run.cfg)), None)
        if same is None:
            groups.append([run])
        else:
            same.append(run)
    return groups


def significant_differences(old: Config, new: Config) -> list[str]:
    """Differences between two recipes that make them different experiments."""
    return [line for line in config.differences(old, new) if line.partition(":")[0] not in FREE_KEYS]


def is_planned(planned: PlannedRun, cfg: Config) -> bool:
    """Whether a recipe is that of a planned run, up to seeds and what changes no result."""
    return changed_budget(planned, cfg) == []


def changed_budget(planned: PlannedRun, cfg: Config) -> list[str] | None:
    """What a recipe changes of the length of a planned run; None if it changes anything else that matters."""
    recipe = _recipe_of(planned)
    if recipe is None:
        return None
    changes = significant_differences(recipe, cfg)
    return changes if all(line.partition(":")[0] in BUDGET_KEYS for line in changes) else None


def num_parameters(cfg: Config) -> int:
    """Parameters of the model that a recipe describes (of cDAL: its generator), counted without making the weights."""
    with torch.device("meta"):
        return sum(p.numel() for p in build_model(cfg.model, cfg.cdal).parameters())


def _recipe_of(planned: PlannedRun) -> Config | None:
    """None where this installation does not have the recipe."""
    try:
        return config.load_recipe(planned.recipe, planned.overrides)
    except FileNotFoundError:
        return None


def _read(folder: Path) -> Run:
    quality = folder / "qc.json"
    try:
        return Run(
            folder=folder,
            cfg=config.load_recipe(folder / "recipe.toml"),
            split=load_split(folder / "split.json"),
            scores=json.loads((folder / "scores.json").read_text(encoding="utf-8")),
            quality=json.loads(quality.read_text(encoding="utf-8")) if quality.is_file() else None,
        )
    except (ValueError, TypeError) as error:
        raise ValueError(f"{folder} must hold the files of a run; they cannot be read: {error}") from error
