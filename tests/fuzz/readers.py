"""Second readers, written from the formats' specifications: what they say is compared with what the package read.

Each knows only what the generators write. They raise what they like; a file that they cannot read proves nothing,
except where a checksum is wrong (:class:`Damaged`): then nobody may have read it.
"""

import gzip
import json
import math
import struct
import zlib

import numpy as np


class Damaged(Exception):
    """A checksum of the file does not fit."""


def nifti(content: bytes) -> tuple[np.ndarray, np.ndarray | None]:
    """Voxels ``[X, Y, Z]``, and the affine where it comes from the sform."""
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise Damaged(str(error)) from error
    order = "<" if struct.unpack("<i", content[:4])[0] == 348 else ">"
    dim = struct.unpack(order + "8h", content[40:56])
    kind = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
    dtype = np.dtype(order + kind[struct.unpack(order + "h", content[70:72])[0]])
    offset, slope, inter = struct.unpack(order + "3f", content[108:120])
    shape = dim[1 : dim[0] + 1]
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    count = math.prod(shape)
    start = int(offset) or len(content) - count * dtype.itemsize
    voxels = np.frombuffer(content, dtype, count, start).reshape(shape, order="F")
    if np.isfinite(slope) and slope != 0 and (slope, inter) != (1.0, 0.0):
        voxels = voxels.astype(np.float64) * slope + inter
    has_sform = struct.unpack(order + "h", content[254:256])[0] > 0
    rows = np.frombuffer(content, order + "f4", 12, 280).reshape(3, 4)
    return voxels, rows.astype(np.float64) if has_sform else None


def png(content: bytes) -> np.ndarray:
    """Samples ``[rows, columns(, colours)]`` of a PNG that is not interlaced; of a palette, the colours."""
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    at, data, palette = 8, b"", None
    while at < len(content):
        length, name = struct.unpack(">I4s", content[at : at + 8])
        body, total = content[at + 8 : at + 8 + length], content[at + 8 + length : at + 12 + length]
        if struct.pack(">I", zlib.crc32(name + body)) != total:
            raise Damaged(name)
        if name == b"IHDR":
            columns, rows, bits, colour, _, _, interlace = struct.unpack(">IIBBBBB", body)
        elif name == b"PLTE":
            palette = np.frombuffer(body, np.uint8).reshape(-1, 3)
        elif name == b"IDAT":
            data += body
        elif name == b"IEND":
            break
        at += 12 + length
    assert not interlace and bits in (8, 16)
    samples = {0: 1, 2: 3, 3: 1}[colour]
    step, width = samples * bits // 8, columns * samples * bits // 8
    raw = np.frombuffer(zlib.decompress(data), np.uint8)[: rows * (width + 1)].reshape(rows, width + 1)
    lines = np.zeros((rows + 1, width + step), np.int64)  # one row above and one pixel before, of zeros
    for r in range(rows):
        for c in range(width):
            left, up, corner = lines[r + 1, c], lines[r, c + step], lines[r, c]
            near = left + up - corner
            away = [abs(near - left), abs(near - up), abs(near - corner)]
            paeth = (left, up, corner)[away.index(min(away))]
            guess = (0, left, up, (left + up) // 2, paeth)[raw[r, 0]]
            lines[r + 1, c + step] = (raw[r, 1 + c] + guess) % 256
    cells = np.ascontiguousarray(lines[1:, step:].astype(np.uint8)).view(np.uint8 if bits == 8 else ">u2")
    cells = cells.reshape(rows, columns, samples)
    return palette[cells[..., 0]] if colour == 3 else cells.squeeze(2) if samples == 1 else cells


def tiff(content: bytes) -> np.ndarray:
    """Samples of a TIFF in strips without compression, turned as its orientation says."""
    order = "<" if content[:2] == b"II" else ">"
    (start,) = struct.unpack(order + "I", content[4:8])
    (count,) = struct.unpack(order + "H", content[start : start + 2])
    tags: dict[int, tuple] = {}
    for i in range(count):
        place = start + 2 + 12 * i
        tag, kind, number = struct.unpack(order + "HHI", content[place : place + 8])
        assert tag not in tags  # else readers may differ on which one counts
        form = {3: "H", 4: "I"}.get(kind)
        if form is not None and number < 1000:
            length = struct.calcsize(form) * number
            at = place + 8 if length <= 4 else struct.unpack(order + "I", content[place + 8 : place + 12])[0]
            tags[tag] = struct.unpack(f"{order}{number}{form}", content[at : at + length])
    assert tags.get(259, (1,)) == (1,)  # compression
    columns, rows, bits = tags[256][0], tags[257][0], tags[258][0]
    samples = tags.get(277, (1,))[0]
    kind = {1: "u", 2: "i", 3: "f"}[tags.get(339, (1,))[0]]
    data = b"".join(content[at : at + n] for at, n in zip(tags[273], tags[279], strict=True))
    cells = np.frombuffer(data, f"{order}{kind}{bits // 8}", rows * columns * samples).reshape(rows, columns, samples)
    if tags[262][0] == 0:
        cells = 255 - cells
    turn = tags.get(274, (1,))[0]
    assert turn in range(1, 9)
    cells = cells.swapaxes(0, 1) if turn >= 5 else cells
    down = turn in (3, 4, 7, 8)
    across = turn in (2, 3, 6, 7)
    cells = cells[:: -1 if down else 1, :: -1 if across else 1]
    return cells[..., 0] if samples == 1 else cells


def jpeg_size(content: bytes) -> tuple[int, int]:
    """Rows and columns by the frame header."""
    at = 2
    while at < len(content):
        assert content[at] == 0xFF
        marker, length = content[at + 1], struct.unpack(">H", content[at + 2 : at + 4])[0]
        if marker in range(0xC0, 0xC4):
            rows, columns = struct.unpack(">HH", content[at + 5 : at + 9])
            return rows, columns
        at += 2 + length
    raise ValueError("no frame")


def safetensors(content: bytes) -> dict[str, np.ndarray]:
    """The arrays of a file whose tensors are float32."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    arrays = {}
    for name, entry in header.items():
        if name != "__metadata__":
            low, high = entry["data_offsets"]
            body = content[8 + length :][low:high]
            arrays[name] = np.frombuffer(body, "<f4").reshape(entry["shape"])
    return arrays
