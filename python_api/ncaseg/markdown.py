"""Tables as Markdown."""

from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table without alignment.

    Example:
        >>> print(table(["a"], [["1"]]))
        | a |
        | --- |
        | 1 |
    """
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows))
