"""The record of a run (CSV for people, JSONL for programs) and its progress on the terminal."""

import csv
import errno
import io
import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from ncaseg import files

LINE_SECONDS = 10.0  # a plain line at most this often where there is no terminal


class RunLog:
    """``log.jsonl`` and ``log.csv`` with one row per step.

    Rows after step ``keep_through`` are dropped on opening: after a crash they describe steps that the restored
    checkpoint has not done. A last line cut off by the crash is dropped as well.

    Raises:
        ValueError: ``log.jsonl`` is damaged, or lacks rows that ``log.csv``, which is made from it, still has.
    """

    def __init__(self, folder: Path, columns: tuple[str, ...], *, keep_through: int) -> None:
        self._columns = columns
        path = folder / "log.jsonl"
        kept = [row for row in read_rows(path) if row["step"] <= keep_through] if path.exists() else []
        _check_csv(folder / "log.csv", path, len(kept), keep_through)
        files.write_text(path, "".join(json.dumps(row) + "\n" for row in kept))
        header = ",".join(columns) + "\n"
        files.write_text(folder / "log.csv", header + "".join(self._csv_line(row) for row in kept))
        # Without a buffer, which would fail again where the disk is full, when the files are closed.
        self._jsonl = path.open("ab", buffering=0)
        self._csv = (folder / "log.csv").open("ab", buffering=0)

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one row; the system has it when the call returns."""
        for file, line in ((self._jsonl, json.dumps(dict(row)) + "\n"), (self._csv, self._csv_line(row))):
            with files.naming(file.name):
                data = line.encode()
                if file.write(data) < len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *_: object) -> None:
        self._jsonl.close()
        self._csv.close()

    def _csv_line(self, row: Mapping[str, Any]) -> str:
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow([row[column] for column in self._columns])
        return line.getvalue()


def _check_csv(table: Path, path: Path, kept: int, keep_through: int) -> None:
    steps = files.read_text(table).split("\n")[1:-1] if table.exists() else []
    rows = sum(step.isdecimal() and int(step) <= keep_through for step, *_ in (line.split(",") for line in steps))
    if rows > kept:
        raise ValueError(
            f"{path} holds {kept} steps of the {rows} in {table}, which is made from it. Restore it, or move the table"
        )


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a ``log.jsonl``, without a last line that a crash cut off.

    Raises:
        ValueError: a line before that is damaged.
    """
    rows = []
    for number, line in enumerate(files.read_text(path).splitlines(keepends=True), start=1):
        if line.endswith("\n"):
            try:
                row = json.loads(line)
            except (json.JSONDecodeError, RecursionError) as error:
                raise ValueError(f"{path} is damaged in line {number}: {error}. Remove the line, or the log") from error
            if not isinstance(row, dict) or not isinstance(row.get("step"), int):
                raise ValueError(f"{path} is damaged in line {number}: it holds no step. Remove the line, or the log")
            rows.append(row)
    return rows


class Progress:
    """A bar on a terminal, plain lines elsewhere (a file, a pipe)."""

    def __init__(self, total: int, *, start: int = 0, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._total, self._start = total, start
        self._began = self._last_line = time.monotonic()
        is_terminal = self._stream.isatty()
        self._bar = tqdm(total=total, initial=start, file=self._stream, unit="step") if is_terminal else None

    def update(self, step: int, text: str) -> None:
        """Say that ``step`` steps are done; ``text`` holds the numbers to show."""
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(step - self._bar.n)
            return
        now = time.monotonic()
        if step < self._total and now - self._last_line < LINE_SECONDS:
            return
        self._last_line = now
        each_s = (now - self._began) / max(1, step - self._start)
        left_min = each_s * (self._total - step) / 60
        line = f"step {step}/{self._total}  {text}  {each_s:.2f} s/step  {left_min:.1f} min left"
        print(line, file=self._stream, flush=True)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
