"""PNG, JPEG, BMP, TIFF as volumes of one slice: the first axis counts rows, the second columns; colours are channels.

A picture is what a viewer shows: turned as its EXIF says. What Pillow would drop without a word (pages, low bits,
transparency) is refused.
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import nibabel as nib
import numpy as np

from ncaseg.config.settings.label_map import TRANSPARENT
from ncaseg.data.formats.base import Coded, Format, ReadError, Scan, Value, reading

if TYPE_CHECKING:
    from PIL.Image import Image

# Of the masks of ISIC and Shenzhen, in either case: ISIC_0000000_segmentation.png, CHNCXR_0001_0_mask.png.
MASK_ENDINGS = ("_segmentation", "_mask")
NO_IMAGES = "_superpixels"  # files of ISIC 2016 and 2017 beside the images
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # per pixel, by the colour type
# First column and row of each pass of interlaced PNG, and the steps between its columns and rows.
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
INFLATED_BYTES = 1 << 20  # at once
MOST_INFLATED = 1 << 31  # pictures beyond are not counted; others are refused for the memory that they would take
WIDE = {"I;16": 65535.0, "I;16B": 65535.0, "I;16L": 65535.0, "I": 0.0, "F": 0.0}  # modes of more than 8 bits: white
# Tags of TIFF, the first also of EXIF.
ORIENTATION, BITS, PHOTOMETRIC, SAMPLES, SAMPLE_FORMAT = 0x0112, 258, 262, 277, 339
COLUMNS, ROWS, STRIPS, ROWS_PER_STRIP, PLANAR, TILE_COLUMNS, TILE_ROWS, TILES = 256, 257, 273, 278, 284, 322, 323, 324
TURNED = range(5, 9)  # orientations that swap rows and columns


class Picture(Format):
    """Pictures by Pillow, loaded when the first one is read."""

    name = "picture"
    suffixes = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
    written = (".png",)  # JPEG would change the values

    def open(self, path: Path) -> Scan:
        with _opened(path) as picture:
            return _scan(path, picture)

    def read(self, path: Path) -> tuple[Scan, np.ndarray]:
        with _opened(path) as picture:
            scan = _scan(path, picture)
            values = _values(path, _upright(picture))
            return scan, (values.view(scan.dtype) if picture.mode == "I" else values).reshape(scan.shape)

    def read_label(self, path: Path) -> tuple[Scan, Coded]:
        with _opened(path) as picture:
            scan, bits = _scan(path, picture), _bits(path, picture)
            picture = _upright(picture)
            coded = _decode(picture, bits)
            if picture.mode == "I":
                coded = Coded(coded.codes.view(scan.dtype))
        return scan, coded

    def write(self, path: Path, voxels: np.ndarray, affine: np.ndarray, header: nib.Nifti1Header) -> None:
        """An 8-bit PNG: 0 and 255 where 1 is the only label, else the values."""
        if not path.name.lower().endswith(self.written):
            raise ValueError(f"out must end in .png for a picture; got {path.name}")
        if voxels.ndim != 3 or voxels.shape[2] != 1:
            raise ValueError(f"labels must have shape [rows, columns, 1]; got {voxels.shape}")
        grey = voxels[..., 0].astype(np.uint8)
        grey = grey * 255 if grey.max(initial=0) <= 1 else grey
        from PIL import Image

        with open(path, "wb") as file:
            Image.fromarray(grey).save(file, "PNG")

    def stem(self, name: str) -> str:
        stem = super().stem(name)
        ending = next((ending for ending in MASK_ENDINGS if stem.lower().endswith(ending)), "")
        return stem[: len(stem) - len(ending)]

    def output_name(self, name: str) -> str:
        return f"{self.stem(name)}.png"

    def is_image(self, name: str) -> bool:
        return super().is_image(name) and not super().stem(name).endswith(NO_IMAGES)


@contextmanager
def _opened(path: Path) -> Iterator[Image]:
    """The picture, not decoded yet; the bound on memory is ours (from its size), so Pillow's is not asked."""
    from PIL import BmpImagePlugin, Image, JpegImagePlugin, PngImagePlugin, TiffImagePlugin

    bomb = Image.DecompressionBombError  # which Pillow still raises for some TIFF, and which is a plain Exception
    # By the first bytes, and no other readers that Pillow has: one of them starts Ghostscript.
    readers = {
        PNG_SIGNATURE: PngImagePlugin.PngImageFile,
        b"\xff\xd8\xff": JpegImagePlugin.jpeg_factory,
        b"BM": BmpImagePlugin.BmpImageFile,
        b"II": TiffImagePlugin.TiffImageFile,
        b"MM": TiffImagePlugin.TiffImageFile,
    }
    with reading(path, Picture.name, bomb), open(path, "rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _check_sums(file)
        head = file.read(8)
        file.seek(0)
        make = next((reader for magic, reader in readers.items() if head.startswith(magic)), None)
        if make is None:
            raise ReadError(f"{path} must be a readable picture: PNG, JPEG, BMP or TIFF by its content; it is none")
        # Without its name: Pillow maps files that have one, and maps turned TIFF with rows and columns exchanged.
        with make(file) as picture:
            _refuse_what_would_be_lost(path, picture)
            yield picture


def _check_sums(file) -> None:
    """Check every chunk of a PNG by its sum, and that the pixels are all there; Pillow does neither."""
    if file.read(8) == PNG_SIGNATURE:
        expected, pixels = 0, _Inflated()
        while head := file.read(8):
            length, kind = int.from_bytes(head[:4], "big"), head[4:]
            body, total = file.read(length), file.read(4)
            if len(total) < 4 or zlib.crc32(body, zlib.crc32(kind)) != int.from_bytes(total, "big"):
                raise ValueError(f"the checksum of its chunk {kind.decode('latin-1')!r} is wrong")
            if kind == b"IHDR" and length == 13:
                expected = _png_bytes(body)
            if kind == b"IDAT" and pixels.count < expected <= MOST_INFLATED:
                pixels.add(body)
            if kind == b"IEND":
                break
        if pixels.count < expected <= MOST_INFLATED:
            raise ValueError("its pixels end before its last row")
    file.seek(0)


class _Inflated:
    """Counts the bytes of a compressed stream, a piece at a time."""

    def __init__(self) -> None:
        self._stream, self.count = zlib.decompressobj(), 0

    def add(self, data: bytes) -> None:
        while data:
            self.count += len(self._stream.decompress(data, INFLATED_BYTES))
            data = self._stream.unconsumed_tail


def _png_bytes(header: bytes) -> int:
    """Bytes of all rows of a PNG, each behind one that names its filter, by the 13 bytes of its IHDR."""
    columns, rows = int.from_bytes(header[:4], "big"), int.from_bytes(header[4:8], "big")
    bits = header[8] * PNG_SAMPLES.get(header[9], 1)
    passes = ADAM7 if header[12] == 1 else ((0, 0, 1, 1),)
    sizes = ((-(-(columns - x) // dx), -(-(rows - y) // dy)) for x, y, dx, dy in passes)
    return sum(down * (1 + -(-across * bits // 8)) for across, down in sizes if across > 0 and down > 0)


def _refuse_what_would_be_lost(path: Path, picture: Image) -> None:
    pages = getattr(picture, "n_frames", 1)
    if pages > 1 and picture.format != "MPO":  # whose further pictures are previews of the first
        raise ReadError(f"{path} must hold one picture; it holds {pages} pages. Save each to a file of its own")
    bits = _bits(path, picture)
    if bits > 8 and picture.mode not in WIDE:
        raise ReadError(f"{path} has {bits} bits per colour, of which only 8 are read. Save it with 8, or as grey")
    tags = getattr(picture, "tag_v2", {})
    if tags.get(SAMPLES, 1) > len(picture.getbands()):
        raise ReadError(f"{path} has {tags[SAMPLES]} channels, of which {len(picture.getbands())} are read")
    if not _has_every_strip(picture):
        raise ReadError(f"{path} lacks rows: it has fewer strips or tiles than its size takes. Export it again")
    is_inverted = tags.get(PHOTOMETRIC) == 0 and picture.mode in WIDE
    if is_inverted:
        raise ReadError(f"{path} stores white as 0 in {bits} bits, which is not read. Save it with black as 0")


def _has_every_strip(picture: Image) -> bool:
    """Whether a TIFF has as many pieces as its size takes; Pillow leaves the rows of missing ones black."""
    tags = getattr(picture, "tag_v2", {})
    columns, rows = tags.get(COLUMNS, 0), tags.get(ROWS, 0)
    planes = tags.get(SAMPLES, 1) if tags.get(PLANAR, 1) == 2 else 1
    if STRIPS in tags:
        return len(tags[STRIPS]) == planes * -(-rows // max(1, min(rows, tags.get(ROWS_PER_STRIP, rows))))
    if TILES in tags:
        across, down = (
            -(-columns // max(1, tags.get(TILE_COLUMNS, columns))),
            -(-rows // max(1, tags.get(TILE_ROWS, rows))),
        )
        return len(tags[TILES]) == planes * across * down
    return True


def _is_unsigned(picture: Image) -> bool:
    """Whether numbers of 32 bits have no sign in the file; Pillow gives them one."""
    tags = getattr(picture, "tag_v2", {})
    return picture.mode == "I" and tags.get(BITS) == (32,) and tags.get(SAMPLE_FORMAT, (1,)) == (1,)


def _bits(path: Path, picture: Image) -> int:
    """Bits per sample as stored."""
    if picture.format == "PNG":
        with open(path, "rb") as file:
            return file.read(25)[24]
    stored = getattr(picture, "tag_v2", {}).get(BITS, 8)
    return max(stored) if isinstance(stored, tuple) else int(stored)


def _scan(path: Path, picture: Image) -> Scan:
    columns, rows = picture.size
    if picture.format != "TIFF" and picture.getexif().get(ORIENTATION) in TURNED:  # Pillow turns TIFF by itself
        columns, rows = rows, columns
    grey = picture.mode in (*WIDE, "1", "L", "LA", "La")
    affine, channels = np.eye(4), 1 if grey else 3
    kinds = {"I": "u4" if _is_unsigned(picture) else "i4", "F": "f4"}
    dtype = np.dtype(kinds.get(picture.mode, "u2" if picture.mode in WIDE else "u1"))
    return Scan(
        path=path,
        shape=(rows, columns, 1, channels),
        affine=affine,
        header=nib.Nifti1Image(np.zeros((1, 1, 1), np.uint8), affine).header,
        spacing_mm=(1.0, 1.0, 1.0),
        dtype=dtype,
        extra_bytes=8 * rows * columns,  # as decoded, and turned
        white=WIDE.get(picture.mode, 255.0),
        is_repeated=grey,
    )


def _upright(picture: Image) -> Image:
    from PIL import ImageOps

    picture.load()
    return ImageOps.exif_transpose(picture)


def _values(path: Path, picture: Image) -> np.ndarray:
    """``[rows, columns]``, or ``[rows, columns, 3]``."""
    if picture.mode in WIDE:
        return np.asarray(picture)
    grey = picture.mode in ("1", "L", "LA", "La")
    if picture.has_transparency_data:
        alpha = np.asarray(picture.convert("RGBA"))[..., 3]
        if alpha.min() < 255:
            share = np.mean(alpha < 255)
            raise ReadError(f"{path} is transparent in {share:.1%} of its pixels. Flatten it onto a background")
    return np.asarray(picture.convert("L" if grey else "RGB"))


def _decode(picture: Image, bits: int) -> Coded:
    """The values of a mask, or its colours where it has any; what is transparent counts as a colour of its own."""
    if picture.mode in WIDE:
        return Coded(np.asarray(picture)[..., None])
    if picture.mode == "1":
        return Coded(np.asarray(picture)[..., None].astype(np.uint8))
    if picture.mode == "L" and not picture.has_transparency_data:
        # Pillow stretches samples of 2 and 4 bits to 8.
        return Coded(np.asarray(picture)[..., None] // (255 // (2**bits - 1) if bits < 8 else 1))
    indices = np.asarray(picture)[..., None] if picture.mode == "P" else None
    colours = np.asarray(picture.convert("RGBA")).astype(np.uint32)
    codes = (colours[..., 0] << 24 | colours[..., 1] << 16 | colours[..., 2] << 8 | colours[..., 3])[..., None]
    return Coded(codes, _names(np.unique(codes).tolist()), indices)


def _names(codes: list[int]) -> dict[int, Value]:
    """Grey values where nothing is coloured or transparent; else colours as ``#rrggbb`` or ``#rrggbbaa``."""
    if all(code & 255 == 255 and code >> 24 == code >> 16 & 255 == code >> 8 & 255 for code in codes):
        return {code: code >> 24 for code in codes}
    names: dict[int, Value] = {}
    for code in codes:
        opaque, alpha = f"#{code >> 8:06x}", code & 255
        names[code] = opaque if alpha == 255 else TRANSPARENT if alpha == 0 else f"{opaque}{alpha:02x}"
    return names
