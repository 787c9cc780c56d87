"""Many cases, of which some fail: the rest is done, and what failed is told at the end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# What a file, or what a model makes of it, can be at fault for; a full disk or a bug ends the batch.
CASE_ERRORS = (ValueError, FloatingPointError, FileNotFoundError, PermissionError, IsADirectoryError, MemoryError)


class BatchError(ValueError):
    """Some cases failed; ``done`` is what the others gave."""

    def __init__(self, failed: dict[str, str], total: int, done: Any) -> None:
        lines = "; ".join(failed.values())
        rest = ", the others are done" if len(failed) < total else ""
        super().__init__(f"{len(failed)} of {total} cases failed{rest}: {lines}")
        self.failed, self.done = failed, done


class Batch:
    """Collects the errors of cases.

    Example:
        >>> batch = Batch()
        >>> for text in ("1", "x"):
        ...     with batch.case(text, Path(text)):
        ...         _ = int(text)
        >>> list(batch.failed)
        ['x']
    """

    def __init__(self) -> None:
        self.failed: dict[str, str] = {}

    @contextmanager
    def case(self, name: str, path: Path) -> Iterator[None]:
        """Go on after an error of this case, and remember it with the name of its file."""
        try:
            with about(path):
                yield
        except CASE_ERRORS as error:
            self.failed[name] = " ".join(str(error).split()) or f"{path}: {type(error).__name__}"

    def finish(self, total: int, done: Any) -> None:
        """Raise a :class:`BatchError` if a case failed."""
        if self.failed:
            raise BatchError(self.failed, total, done)


@contextmanager
def about(path: Path) -> Iterator[None]:
    """Errors of a case name its file, also those from where only its numbers are known."""
    try:
        yield
    except (ValueError, FloatingPointError, MemoryError) as error:
        if path.name in str(error):
            raise
        kind = next(kind for kind in (FloatingPointError, MemoryError, ValueError) if isinstance(error, kind))
        raise kind(f"{path}: {error}") from error
