"""States on disk: larger than memory, read and written box by box."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np

from ncaseg.levels import Triple

Box = tuple[slice, slice, slice]

MAP_BYTES = 16 * 2**20  # of a file that are mapped at once: what is mapped counts as memory of the process


class DiskState:
    """A state ``[*size, C]`` float32 in a file without a name, which vanishes with the object or the process."""

    def __init__(self, folder: Path, size: Triple, channels: int) -> None:
        self.size, self.channels = size, channels
        self._row_bytes = 4 * channels * size[1] * size[2]
        self._file = TemporaryFile(dir=folder, prefix="ncaseg-")  # noqa: SIM115 (open as long as this object)
        size_bytes = self._row_bytes * size[0]
        try:
            # Space that is only promised is missed later, as a signal that ends the process (SIGBUS).
            os.posix_fallocate(self._file.fileno(), 0, size_bytes)
        except AttributeError:  # macOS
            self._file.truncate(size_bytes)
        except OSError as error:
            self._file.close()
            raise OSError(error.errno, f"{error.strerror}: {size_bytes} bytes for a state", str(folder)) from error

    def read(self, box: Box) -> np.ndarray:
        """The cells of a box, ``[1, nx, ny, nz, C]``."""
        out = np.empty((1, *(s.stop - s.start for s in box), self.channels), np.float32)
        for rows, view in self._maps(box[0]):
            out[0, rows] = view[:, box[1], box[2]]
        return out

    def write(self, box: Box, cells: np.ndarray) -> None:
        """Store ``[nx, ny, nz, C]`` into a box."""
        for rows, view in self._maps(box[0]):
            view[:, box[1], box[2]] = cells[rows]

    def close(self) -> None:
        """Give the file back; allowed twice."""
        self._file.close()

    def __enter__(self) -> DiskState:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _maps(self, rows: slice) -> Iterator[tuple[slice, np.ndarray]]:
        """Views of the rows, a few at a time, each with its place in the box."""
        at_once = max(1, MAP_BYTES // self._row_bytes)
        for first in range(rows.start, rows.stop, at_once):
            last = min(first + at_once, rows.stop)
            shape = (last - first, *self.size[1:], self.channels)
            yield (
                slice(first - rows.start, last - rows.start),
                np.memmap(self._file, np.float32, "r+", offset=first * self._row_bytes, shape=shape),
            )
