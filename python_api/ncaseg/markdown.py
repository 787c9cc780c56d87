"""Tables as Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table without alignment.

    Example:
        >>> print(table(["a"], [["1"]]))
        | a |
        | --- |
        | 1 |
    """
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows))


def text(value: Any) -> str:
    """A plain value as the text of a cell; a list is one of texts, floats get four digits."""
    if isinstance(value, list):
        return "; ".join(value) or "none"
    if isinstance(value, float):
        return f"{value:.4g}"
    return "unknown" if value is None else str(value)


def percent(rate: float | None) -> str:
    """A share as the text of a cell."""
    return "-" if rate is None else f"{100 * rate:.1f} %"


def conditions(runs: Sequence[Mapping[str, Any]]) -> str:
    """The section on the conditions of our runs, given as plain values of the same names."""
    rows = [[text(value) for value in run.values()] for run in runs]
    return "\n## Conditions of our runs\n\n" + (table(list(runs[0]), rows) if rows else "No finished run was found.")
