"""Trained weights that come with the package: one ``<name>.safetensors`` each, the recipe inside."""

from importlib import resources
from pathlib import Path

SUFFIX = ".safetensors"


def names() -> list[str]:
    """Names of the entries, sorted."""
    folder = resources.files("ncaseg") / "zoo"
    return sorted(entry.name.removesuffix(SUFFIX) for entry in folder.iterdir() if entry.name.endswith(SUFFIX))


def path(name: str) -> Path:
    """The file of an entry.

    Raises:
        ValueError: there is no such entry; the message lists the entries.
    """
    if name not in names():
        raise ValueError(f"no zoo entry named {name!r}; known: {', '.join(names()) or 'none'}")
    return Path(str(resources.files("ncaseg") / "zoo" / f"{name}{SUFFIX}"))
