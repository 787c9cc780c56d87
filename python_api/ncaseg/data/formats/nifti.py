"""NIfTI 1 and 2 in one file, gzipped or not, whatever the name says; header and checksum are checked."""

from __future__ import annotations

import gzip
import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import nibabel as nib
import numpy as np
from nibabel import imageglobals
from nibabel.arrayproxy import ArrayProxy

from ncaseg.data.formats.base import Format, ReadError, Scan, reading

CHUNK = 2**16  # of a compressed file at once; larger pieces are not faster
CODES = range(6)  # of qform and sform
MM = {0: 1.0, 1: 1e3, 2: 1.0, 3: 1e-3}  # by the code of the unit of space; 0 is unknown
RIGID = (1, 2)  # codes of a qform or sform that only turn and move: the scanner's, or aligned to another scan
SPACING_TOLERANCE = 0.01  # between pixdim and the columns of such an affine


class Nifti(Format):
    """NIfTI by nibabel, which is given an open file, so that neither its guesses by name nor other openers matter."""

    name = "NIfTI file"
    suffixes = written = (".nii.gz", ".nii")

    def open(self, path: Path) -> Scan:
        with reading(path, self.name), _opened(path) as file:
            return _parse(path, file).scan

    def read(self, path: Path) -> tuple[Scan, np.ndarray]:
        with reading(path, self.name), _opened(path) as file:
            found = _parse(path, file)
            values = np.asarray(found.voxels).reshape(found.scan.shape, order="F")
            _check_rest(path, file, values.nbytes)
        return found.scan, values

    def write(self, path: Path, voxels: np.ndarray, affine: np.ndarray, header: nib.Nifti1Header) -> None:
        header = header.copy()
        header.set_data_dtype(voxels.dtype)
        header["cal_min"] = header["cal_max"] = 0  # the display range is that of the scan
        kind = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
        image = kind(voxels, affine, header)
        if path.name.lower().endswith(".gz"):
            # No time and no name in the file: equal labels are equal bytes.
            with open(path, "wb") as plain, gzip.GzipFile("", "wb", 1, plain, mtime=0) as file:
                image.to_stream(file)
        else:
            with open(path, "wb") as plain:
                image.to_stream(plain)


class _Parsed(NamedTuple):
    scan: Scan
    voxels: ArrayProxy


class _Gzip(gzip.GzipFile):
    """Reads into a buffer piece by piece, where the standard library would first hold all of it a second time."""

    def readinto(self, buffer: Any) -> int:
        view, done = memoryview(buffer).cast("B"), 0
        while piece := self.read(min(CHUNK, len(view) - done)):
            view[done : done + len(piece)] = piece
            done += len(piece)
        return done


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    with open(path, "rb") as plain:
        is_gzip = plain.read(2) == b"\x1f\x8b"
        plain.seek(0)
        if is_gzip:
            with _Gzip(fileobj=plain, mode="rb") as file:
                yield file  # type: ignore[misc]
        else:
            yield plain


def _parse(path: Path, file: IO[bytes]) -> _Parsed:
    head = file.read(4)
    file.seek(0)
    kind = nib.Nifti2Image if 540 in (int.from_bytes(head, order) for order in ("little", "big")) else nib.Nifti1Image
    # From its bytes alone: what is no header may announce any extensions.
    raw = kind.header_class(file.read(kind.header_class.template_dtype.itemsize), check=False)
    if not bytes(raw["magic"]).startswith(b"n+"):
        raise ReadError(f"{path} must be NIfTI in one file; its magic is {bytes(raw['magic'])!r}")
    _check_fields(path, raw)
    file.seek(0)
    with _quiet():
        source = kind.from_stream(file)  # type: ignore[arg-type]
    voxels = source.dataobj
    assert isinstance(voxels, ArrayProxy)
    cells, channels = _shape(path, source.shape)
    dtype = voxels.dtype
    if dtype.kind not in "iuf":
        kinds = "complex numbers" if dtype.kind == "c" else f"records ({dtype})"
        raise ReadError(f"{path} must hold real numbers; it holds {kinds}. Save the part that you mean by itself")
    offset = int(voxels.offset) or _guess_offset(path, file, raw, math.prod(source.shape) * dtype.itemsize)
    # Not from the image, since its proxy maps a file that is not compressed: reading finds a file that is cut short.
    plain = ArrayProxy(file, (source.shape, dtype, offset, voxels.slope, voxels.inter), mmap=False)
    scalings = int(voxels.slope != 1) + int(voxels.inter != 0)
    scan = Scan(
        path=path,
        shape=(*cells, channels),
        affine=source.affine,
        header=source.header,
        spacing_mm=_spacing(path, source),
        dtype=np.dtype(np.float64) if scalings else dtype,
        extra_bytes=math.prod(source.shape) * (dtype.itemsize + 8 * (scalings - 1)) if scalings else 0,
        has_geometry=bool(raw["qform_code"] > 0 or raw["sform_code"] > 0),
    )
    return _Parsed(scan, plain)


def _check_fields(path: Path, raw: nib.Nifti1Header) -> None:
    """What nibabel would mend without a word that reaches anybody."""
    axes = int(raw["dim"][0])
    sizes, steps = raw["dim"][1 : axes + 1], raw["pixdim"][1:4]
    if not 1 <= axes <= 7 or (sizes < 1).any():
        raise ReadError(f"{path} must have 1 to 7 axes of at least one cell; its dim is {raw['dim'].tolist()}")
    for name in ("qform_code", "sform_code"):
        if int(raw[name]) not in CODES:
            raise ReadError(f"{path} must have a {name} from 0 to 5; got {int(raw[name])}. Its geometry is unknown")
    if not np.isfinite(steps).all() or (steps[: min(axes, 3)][sizes[:3] > 1] == 0).any():
        raise ReadError(f"{path} must have finite cell sizes above 0; its pixdim is {steps.tolist()}")
    slope, intercept = float(raw["scl_slope"]), float(raw["scl_inter"])
    if math.isinf(slope) or math.isinf(intercept):  # NaN is how nibabel writes that there is none
        raise ReadError(f"{path} must have a finite scl_slope and scl_inter; got {slope} and {intercept}")
    if int(raw["xyzt_units"]) % 8 not in MM:
        raise ReadError(f"{path} must give lengths in metres, mm or microns; its xyzt_units is {raw['xyzt_units']}")


def _shape(path: Path, shape: tuple[int, ...]) -> tuple[tuple[int, int, int], int]:
    """Cells and channels: axes of length 1 beyond the third mean nothing."""
    further = [n for n in shape[3:] if n != 1]
    if len(shape) < 3 or len(further) > 1:
        raise ReadError(f"{path} must have 3 axes, or 4 with the modalities last; got shape {shape}")
    x, y, z = shape[:3]
    return (x, y, z), further[0] if further else 1


def _guess_offset(path: Path, file: IO[bytes], raw: nib.Nifti1Header, voxel_bytes: int) -> int:
    """Where voxels begin in a file whose ``vox_offset`` is 0: behind the header, as far as its length says so."""
    start = int(raw["sizeof_hdr"])
    file.seek(0)
    length = sum(len(piece) for piece in iter(lambda: file.read(CHUNK), b""))
    for offset in (start + 4, start):  # with and without the four bytes that announce extensions
        if length == offset + voxel_bytes:
            return offset
    raise ReadError(
        f"{path} must say where its voxels begin; its vox_offset is 0, in the header. Set it (usually {start + 4})"
    )


def _spacing(path: Path, source: nib.Nifti1Image) -> tuple[float, float, float]:
    """Millimetres per cell, after checks that the affine is one and does not contradict itself."""
    header, affine = source.header, source.affine
    linear = affine[:3, :3]
    if not np.isfinite(affine).all() or not abs(np.linalg.det(linear)) > 1e-12 * np.abs(linear).max() ** 3:
        raise ReadError(f"{path} must have an affine that can be inverted; got {affine.tolist()}. Repair its header")
    zooms = np.array(header.get_zooms()[:3])
    sform, qform = int(header["sform_code"]), int(header["qform_code"])
    columns = np.sqrt((linear**2).sum(0))
    angles = (linear / columns).T @ (linear / columns) - np.eye(3)
    is_sheared = np.abs(angles).max() > SPACING_TOLERANCE  # by a tilted gantry: pixdim may be the distance of planes
    is_close = np.allclose(columns, zooms, rtol=SPACING_TOLERANCE, atol=0)
    if (sform or qform) in RIGID and not (is_sheared or is_close):
        raise ReadError(
            f"{path} contradicts itself: its affine has cells of {columns.round(4).tolist()}, its pixdim of "
            f"{zooms.round(4).tolist()}. Repair the one that is wrong"
        )
    axes = [nib.aff2axcodes(given) for given in (header.get_sform(), header.get_qform())]
    if sform == qform and sform in RIGID and axes[0] != axes[1]:
        raise ReadError(
            f"{path} contradicts itself: its axes are {''.join(axes[0])} by its sform and {''.join(axes[1])} by its "
            "qform. Repair the one that is wrong"
        )
    x, y, z = (float(step) * MM[int(header["xyzt_units"]) % 8] for step in zooms)
    return x, y, z


def _check_rest(path: Path, file: IO[bytes], voxel_bytes: int) -> None:
    """Read to the end: only there does gzip compare its checksum."""
    rest = 0
    while piece := file.read(CHUNK):
        rest += len(piece)
        if rest >= voxel_bytes:
            raise ReadError(f"{path} must hold as many cells as its header says; it holds at least twice as many")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without nibabel's log of what it mends (the fourth cell size, say); what matters has been checked."""
    logger, before = imageglobals.logger, imageglobals.logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
