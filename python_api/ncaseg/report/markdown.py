"""Tables as Markdown."""

from collections.abc import Callable, Mapping, Sequence
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


def spread(numbers: Sequence[Any] | None, show: Callable[[float], str] = "{:.3f}".format) -> str:
    """Mean, deviation and number of runs as the text of a cell; the latter two may be missing, or None and 1.

    Example:
        >>> spread([0.9, 0.012, 3])
        '0.900 ± 0.012 (n = 3)'
    """
    if numbers is None:
        return "-"
    mean, deviation, count = (*numbers, None, None)[:3]
    cell = show(mean) if deviation is None else f"{show(mean)} ± {show(deviation)}"
    return f"{cell} (n = {count})" if count is not None and count > 1 else cell


def conditions(runs: Sequence[Mapping[str, Any]]) -> str:
    """The section on the conditions of our runs, given as plain values of the same names."""
    return "\n## Conditions of our runs\n\n" + (_list_runs(runs) if runs else "No finished run was found.")


def phantoms(runs: Sequence[Mapping[str, Any]]) -> str:
    """The section on runs on synthetic data, given as ``conditions``; empty without one."""
    note = "Synthetic volumes: no number above is theirs. Dice: mean ± standard deviation over test cases."
    return f"\n## Phantoms (no real data)\n\n{note}\n\n{_list_runs(runs)}\n" if runs else ""


def _list_runs(runs: Sequence[Mapping[str, Any]]) -> str:
    rows = [[spread(v) if key.endswith("_dice") else text(v) for key, v in run.items()] for run in runs]
    return table(list(runs[0]), rows)
