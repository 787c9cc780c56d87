"""What a file format is to the rest of the package, and the one place where errors of its reader become ours."""

from __future__ import annotations

import struct
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError, HeaderTypeError, ImageDataError
from nibabel.wrapstruct import WrapStructError

# What readers of damaged files are known to raise. MemoryError: a header may name more cells than there is memory.
READER_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    HeaderDataError,
    HeaderTypeError,
    ImageDataError,
    ImageFileError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    WrapStructError,
    struct.error,
    zlib.error,
)
Value = float | str  # of a label file: a number, or a colour as text


class ReadError(ValueError):
    """A file that cannot be read, or that says what no image can mean; the message names it and the remedy."""


@dataclass(frozen=True)
class Scan:
    """What the header of an image says.

    ``shape`` is ``(X, Y, Z, channels)``; ``header`` is what a NIfTI written from it keeps; ``dtype`` is that
    of the values as :meth:`Format.read` returns them, ``extra_bytes`` what reading takes beside them. ``white`` is the
    value of a picture that stands for 1 (0: unknown), None of others. ``is_repeated``: a further channel that is asked
    for equals the only one.
    """

    path: Path
    shape: tuple[int, int, int, int]
    affine: np.ndarray
    header: nib.Nifti1Header
    spacing_mm: tuple[float, float, float]
    dtype: np.dtype
    extra_bytes: int = 0
    white: float | None = None
    has_geometry: bool = True
    is_repeated: bool = False

    @property
    def size(self) -> tuple[int, int, int]:
        return self.shape[:3]


class Coded(NamedTuple):
    """A label as it is stored: ``codes`` ``[X, Y, Z]``; ``names`` says what a code means where it is no plain number.

    ``indices`` are those of a palette, which ``data.label_map`` may name instead of its colours.
    """

    codes: np.ndarray
    names: Mapping[int, Value] | None = None
    indices: np.ndarray | None = None


class Format(ABC):
    """One file format; a line in ``ncaseg.data.formats.FORMATS`` makes it known everywhere."""

    name: str  # "NIfTI file"
    suffixes: tuple[str, ...]  # in lower case, the longest first
    written: tuple[str, ...]  # those that segmentations may have

    @abstractmethod
    def open(self, path: Path) -> Scan:
        """The header alone.

        Raises:
            ReadError: it cannot be understood.
        """

    @abstractmethod
    def read(self, path: Path) -> tuple[Scan, np.ndarray]:
        """The header and the values ``[X, Y, Z, channels]`` with the file's scaling, real numbers of any dtype.

        Raises:
            ReadError: the file is damaged.
        """

    @abstractmethod
    def write(self, path: Path, voxels: np.ndarray, affine: np.ndarray, header: nib.Nifti1Header) -> None:
        """Write ``[X, Y, Z]`` in this geometry to exactly this path.

        Raises:
            ValueError: the format cannot hold these.
        """

    def read_label(self, path: Path) -> tuple[Scan, Coded]:
        """The header and the stored values of a label.

        Raises:
            ReadError: the file is damaged, or has several channels.
        """
        scan, values = self.read(path)
        if values.shape[3] != 1:
            raise ReadError(f"{path} must hold one label per cell; it has {values.shape[3]} channels")
        return scan, Coded(values[..., 0])

    def stem(self, name: str) -> str:
        """The name of a file of this format without its suffix."""
        return name[: len(name) - len(self.suffix(name))]

    def suffix(self, name: str) -> str:
        """The suffix of a name as it is written there; empty for another format."""
        found = next((end for end in self.suffixes if name.lower().endswith(end)), "")
        return name[len(name) - len(found) :]

    def output_name(self, name: str) -> str:
        """The name of the segmentation of an image of this name."""
        return name

    def is_image(self, name: str) -> bool:
        """Whether a file of this name is an image of a set, and not something that lies beside them."""
        return bool(self.suffix(name)) and not name.startswith(".")


@contextmanager
def reading(path: Path, what: str, *more: type[Exception]) -> Iterator[None]:
    """Everything that a reader raises for a file, and ``more``, becomes a :class:`ReadError` that names it.

    That it does not exist, is a folder or may not be read is the system's word, and stays as it is.
    """
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise ReadError(f"{path} must be a file; it is a device or a pipe, which may never end")
        yield
    except (ReadError, FileNotFoundError, IsADirectoryError, PermissionError):
        raise
    except READER_ERRORS + more as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise ReadError(
            f"{path} must be a readable {what}; it is not: {said}. Fetch or export it again, or drop the case"
        ) from error
