"""Printing never ends the work: names that a terminal cannot show are escaped, and a closed pipe is left alone."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO


class Lenient:
    """A text stream that goes on silently once its reader has gone (``ncaseg ... | head``)."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with self._gone():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._gone():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextlib.contextmanager
    def _gone(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            # What is still in the buffer would raise again at the end of the process.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


@contextlib.contextmanager
def lenient() -> Iterator[None]:
    """Print by way of such streams; what is left in them is written before this ends.

    Raises:
        OSError: standard output is a file on a full disk.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    with contextlib.ExitStack() as stack:
        if sys.stdout is not None:  # it is, where it was closed before the start
            stack.enter_context(contextlib.redirect_stdout(Lenient(sys.stdout)))
        if sys.stderr is not None:
            stack.enter_context(contextlib.redirect_stderr(Lenient(sys.stderr)))
        yield
        if sys.stdout is not None:
            sys.stdout.flush()
