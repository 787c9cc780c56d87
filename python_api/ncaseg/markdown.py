"""Tables as Markdown."""

from collections.abc import Sequence
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
