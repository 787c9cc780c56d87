"""The file formats that are read and written: one class each, and a line in ``FORMATS``."""

from __future__ import annotations

from pathlib import Path

from ncaseg.data.formats.base import Format
from ncaseg.data.formats.nifti import Nifti
from ncaseg.data.formats.picture import Picture

# Where a folder holds files of several, those of the first are its images.
FORMATS: tuple[Format, ...] = (Nifti(), Picture())


def find_format(path: str | Path) -> Format | None:
    """The format that a name belongs to by its suffix, in upper or lower case; None for other files."""
    return next((form for form in FORMATS if form.suffix(Path(path).name)), None)


def format_of(path: str | Path) -> Format:
    """The format of a name.

    Raises:
        ValueError: it has the suffix of none; all are listed.
    """
    found = find_format(path)
    if found is None:
        kinds = " or a ".join(form.name for form in FORMATS)
        raise ValueError(f"{path} must be a {kinds}, ending in {suffixes()}; convert it to one")
    return found


def suffixes() -> str:
    """All suffixes, for messages."""
    known = [suffix for form in FORMATS for suffix in form.suffixes]
    return f"{', '.join(known[:-1])} or {known[-1]}"


def is_picture(path: str | Path) -> bool:
    """Whether the name is that of a picture."""
    return isinstance(find_format(path), Picture)
