"""Published numbers, one TOML file per paper, and the runs that are set beside them."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

SUFFIX = ".toml"
FORMS = ("volumes", "masks", "labels")
VARIANTS = ("standard", "no_duplication", "no_ensemble")


@dataclass(frozen=True)
class PlannedRun:
    """One training that a table asks for: a recipe with changes, and where it stands in the ablation, if it does.

    ``task`` is part of the name of the dataset's folder and of the recipes for it. What is not ``trained`` by
    ``--train`` is for larger machines.
    """

    id: str
    task: str
    recipe: str
    group: str = ""
    variant: str = ""
    overrides: tuple[str, ...] = ()
    trained: bool = True


@dataclass(frozen=True)
class Paper:
    """The numbers as printed (``comparison``, ``ablation``, ``quality``: each with ``source`` and ``rows``), and the
    plan.

    ``form`` says which tables are made of them: "volumes" those of ``m3d_tables``, "masks" those of
    ``medsegdiffnca_tables``, which have no quality control, and "labels" those of ``cdal_tables``, which are all in
    ``tables``: each with ``title``, ``source``, ``columns`` and ``rows``, and with ``effort`` beside.
    """

    title: str
    citation: str
    metric: str
    notes: tuple[str, ...]
    plan: tuple[PlannedRun, ...]
    comparison: Mapping[str, Any] = field(default_factory=dict)
    ablation: Mapping[str, Any] = field(default_factory=dict)
    quality: Mapping[str, Any] = field(default_factory=dict)
    form: str = "volumes"
    tables: Sequence[Mapping[str, Any]] = ()
    effort: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tasks(self) -> list[str]:
        """The tasks of the comparison, in the order of its columns."""
        return [row["task"] for row in self.quality.get("rows", ())]


def names() -> list[str]:
    """Names of the papers, sorted."""
    folder = resources.files("ncaseg") / "papers"
    return sorted(entry.name.removesuffix(SUFFIX) for entry in folder.iterdir() if entry.name.endswith(SUFFIX))


def load_paper(name_or_path: str | Path) -> Paper:
    """Read a paper by name, or a TOML file of the same form.

    Raises:
        FileNotFoundError: there is neither; the message lists the names.
        ValueError: a key is missing or unknown.
    """
    known = names()
    if str(name_or_path) in known:
        text = (resources.files("ncaseg") / "papers" / f"{name_or_path}{SUFFIX}").read_text(encoding="utf-8")
    elif Path(name_or_path).is_file():
        text = Path(name_or_path).read_text(encoding="utf-8")
    else:
        raise FileNotFoundError(
            f"no paper named {str(name_or_path)!r}; known: {', '.join(known)}; or give a .toml file"
        )
    return _parse(tomllib.loads(text), str(name_or_path))


def _parse(tree: dict[str, Any], name: str) -> Paper:
    try:
        plan = tuple(_planned(entry) for entry in tree.pop("runs"))
        paper = Paper(notes=tuple(tree.pop("notes")), plan=plan, **tree)
    except (KeyError, TypeError) as error:
        raise ValueError(f"paper {name} has a key missing or unknown: {error}") from error
    if paper.form not in FORMS:
        raise ValueError(f"form of paper {name} must be one of {', '.join(FORMS)}; got {paper.form!r}")
    return paper


def _planned(entry: dict[str, Any]) -> PlannedRun:
    overrides: Sequence[str] = entry.pop("overrides", ())
    return PlannedRun(overrides=tuple(overrides), **entry)
