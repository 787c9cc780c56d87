"""Files are written to a temporary name and renamed: a reader, or a killed run, never meets half a file."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it takes the place of ``path``, on an exception it vanishes.

    The temporary name keeps the suffixes of ``path`` (writers such as nibabel choose the format by them).

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "a.txt"
        >>> with replacing(target) as temporary:
        ...     _ = temporary.write_text("done")
        >>> target.read_text()
        'done'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp{os.getpid()}-{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` (UTF-8) to ``path`` by way of a temporary file."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_text(path: str | Path) -> str:
    """The text of a file in UTF-8, with or without the mark that Windows editors put at its start.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is in another encoding; the message names it.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        place = f"byte {error.object[error.start]:#04x} at {error.start}"
        raise ValueError(f"{path} must be a text in UTF-8; it is not: {place}. Save it as UTF-8") from error


def read_json(path: str | Path, what: str) -> dict[str, Any]:
    """The JSON object in a file; ``what`` it should be is for the message.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no JSON, or no object.
    """
    try:
        content = json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} must be {what}; it is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must be {what}; it holds a {type(content).__name__}")
    return content
