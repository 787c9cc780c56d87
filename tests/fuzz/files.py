"""Damaged and hostile files against every reader: ``python tests/fuzz/files.py [COUNT] [SEED]``.

A small valid file of each kind is drawn, changed (bits turned, cut, fields of its header set to extremes, pieces
repeated), and read. Counted are: refusals, all of which must be errors of ours that name the file; files that are read
as a second reader reads them; and what must not be: crashes (other exceptions), hangs, silent wrong results.
"""

import csv
import io
import json
import signal
import struct
import sys
import tempfile
import time
import tomllib
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))
from fuzz import readers

from ncaseg import config
from ncaseg.checkpoint.model import load_model, save_model
from ncaseg.data.formats import format_of
from ncaseg.data.index import find_cases, find_groups
from ncaseg.data.split import load_split, make_split, save_split
from ncaseg.models import build_model

REFUSALS = (ValueError, TypeError, FileNotFoundError)
HANG_S = 20
TINY = config.load_recipe("demo", ["model.hidden=4", "model.channels=4", "model.steps=[1]"])
Check = Callable[[Path, bytes], None]  # raises AssertionError for a result that differs from the second reader's


class Hang(BaseException):
    """A file took longer than any may."""


class Finding(NamedTuple):
    """What must not be: its kind, the file's kind, its number, and what happened."""

    what: str
    kind: str
    number: int
    detail: str


def draw_nifti(rng: np.random.Generator, folder: Path) -> tuple[str, bytes]:
    size = tuple(int(n) for n in rng.integers(1, 8, 3)) + ((1,) if rng.random() < 0.2 else ())
    dtype = np.dtype(str(rng.choice(["u1", "i2", "i4", "f4", "f8", "u2", "i8"])))
    dtype = dtype.newbyteorder(str(rng.choice(["<", ">"])))
    image = nib.Nifti1Image(
        rng.integers(0, 100, size).astype(dtype), np.diag([*rng.uniform(0.5, 3, 3), 1]), dtype=dtype
    )
    raw = bytearray(image.to_bytes())
    name = str(rng.choice(["x.nii", "x.nii.gz"]))
    if rng.random() < 0.6:  # the header means something only as a whole: fields change one by one
        fields = [(40, "h"), (42, "h"), (44, "h"), (48, "h"), (70, "h"), (72, "h"), (76, "f"), (80, "f"), (108, "f")]
        fields += [(112, "f"), (116, "f"), (123, "b"), (252, "h"), (254, "h"), (256, "f"), (280, "f"), (344, "I")]
        offset, form = fields[rng.integers(len(fields))]
        extremes = [0, 1, -1, 2, 3, 7, 127] + ([999, 32767, -32768] if form == "h" else [])
        extremes += [float("nan"), float("inf"), 1e30, 0.5] if form == "f" else []
        value = extremes[rng.integers(len(extremes))]
        struct.pack_into("<" + form, raw, offset, abs(value) if form == "I" else value)
    return name, gzip_of(bytes(raw)) if name.endswith("gz") else bytes(raw)


def gzip_of(content: bytes) -> bytes:
    import gzip

    return gzip.compress(content, 1, mtime=0)


def draw_png(rng: np.random.Generator, folder: Path) -> tuple[str, bytes]:
    size = tuple(int(n) for n in rng.integers(1, 12, 2))
    kind = str(rng.choice(["grey", "colour", "wide", "palette"]))
    if kind == "wide":
        image = Image.fromarray(rng.integers(0, 65536, size, dtype=np.uint16))
    else:
        image = Image.fromarray(rng.integers(0, 256, (*size, 3) if kind != "grey" else size, dtype=np.uint8))
    return "x.png", encoded(image.quantize(16) if kind == "palette" else image, "PNG")


def draw_jpeg(rng: np.random.Generator, folder: Path) -> tuple[str, bytes]:
    size = tuple(int(n) for n in rng.integers(1, 40, 2))
    pixels = rng.integers(0, 256, (*size, 3) if rng.random() < 0.5 else size, dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = int(rng.integers(1, 9))
    return "x.jpg", encoded(Image.fromarray(pixels), "JPEG", exif=exif.tobytes())


def draw_tiff(rng: np.random.Generator, folder: Path) -> tuple[str, bytes]:
    size = tuple(int(n) for n in rng.integers(1, 12, 2))
    kind = str(rng.choice(["grey", "colour", "wide", "fraction"]))
    if kind == "fraction":
        image = Image.fromarray(rng.random(size).astype(np.float32))
    elif kind == "wide":
        image = Image.fromarray(rng.integers(0, 65536, size, dtype=np.uint16))
    else:
        image = Image.fromarray(rng.integers(0, 256, (*size, 3) if kind == "colour" else size, dtype=np.uint8))
    return "x.tif", encoded(image, "TIFF", tiffinfo={274: int(rng.integers(1, 9))})


def encoded(image: Image.Image, form: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def draw_safetensors(rng: np.random.Generator, folder: Path) -> tuple[str, bytes]:
    path = folder / "drawn.safetensors"
    save_model(path, build_model(TINY.model, TINY.cdal), TINY)
    return "x.safetensors", path.read_bytes()


def draw_toml(rng: np.random.Generator, folder: Path) -> tuple[str, bytes]:
    names = config.recipe_names()
    return "x.toml", config.to_toml(config.load_recipe(names[rng.integers(len(names))])).encode()


def draw_json(rng: np.random.Generator, folder: Path) -> tuple[str, bytes]:
    if rng.random() < 0.5:
        path = folder / "drawn.json"
        save_split(path, make_split([f"case_{i}" for i in range(int(rng.integers(2, 9)))], 0.3, 0))
        return "split.json", path.read_bytes()
    for kind in ("imagesTr", "labelsTr"):
        (folder / kind).mkdir(exist_ok=True)
        for i in range(3):
            (folder / kind / f"c{i}.nii.gz").touch()
    pairs = [{"image": f"./imagesTr/c{i}.nii.gz", "label": f"./labelsTr/c{i}.nii.gz"} for i in range(3)]
    nnunet = {"channel_names": {"0": "MR"}, "labels": {"a": 1}, "numTraining": 3, "file_ending": ".nii.gz"}
    content = {"training": pairs} if rng.random() < 0.5 else nnunet
    return "dataset.json", json.dumps(content, indent=int(rng.integers(0, 3))).encode()


def draw_csv(rng: np.random.Generator, folder: Path) -> tuple[str, bytes]:
    rows = [f"c{i},g{int(rng.integers(3))}" for i in range(int(rng.integers(1, 9)))]
    end = str(rng.choice(["\n", "\r\n"]))
    return "groups.csv", end.join(["id,group", *rows, ""]).encode(str(rng.choice(["utf-8", "utf-8-sig"])))


def check_image(path: Path, content: bytes) -> None:
    scan, values = format_of(path).read(path)
    assert values.shape == scan.shape == format_of(path).open(path).shape
    if path.suffix == ".jpg":
        check_jpeg(scan.size[:2], values, content)
        return
    reader = {".png": readers.png, ".tif": readers.tiff}.get(path.suffix, readers.nifti)
    try:
        found = reader(content)
    except readers.Damaged as error:
        raise AssertionError(f"read although a checksum is wrong: {error}") from error
    except Exception:  # noqa: BLE001 (it knows less than the package)
        return
    if isinstance(found, tuple):
        found, affine = found
        if affine is not None:
            assert np.allclose(scan.affine[:3], affine, equal_nan=True)
    assert np.array_equal(
        found.reshape(-1, order="F"), values.reshape(found.shape).reshape(-1, order="F"), equal_nan=True
    )


def check_jpeg(size: tuple[int, int], values: np.ndarray, content: bytes) -> None:
    """There is no small second decoder: the frame header's size, and Pillow's own way with an intact stream."""
    try:
        expected = readers.jpeg_size(content)
    except Exception:  # noqa: BLE001 (it knows less than the package)
        return
    assert sorted(size) == sorted(expected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(content), formats=["JPEG"]) as shown:
            assert np.array_equal(np.unique(np.asarray(shown)), np.unique(values))


def check_model(path: Path, content: bytes) -> None:
    model, cfg, _ = load_model(path)
    second = readers.safetensors(content)
    for name, tensor in model.state_dict().items():
        assert np.array_equal(tensor.numpy(), second[name])
    assert cfg == TINY  # its checksum has been compared


def check_recipe(path: Path, content: bytes) -> None:
    tree = config.to_dict(config.load_recipe(path))
    for section, entries in tomllib.loads(content.decode()).items():
        found = tree[section]
        assert (
            found == entries if not isinstance(entries, dict) else all(plain(found[k]) == v for k, v in entries.items())
        )


def plain(value):
    return [plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def check_json(path: Path, content: bytes) -> None:
    if path.name == "split.json":
        split, second = load_split(path), json.loads(content)
        assert [list(split.train), list(split.validation)] == [second["train"], second["validation"]]
        return
    cases, second = find_cases(path.parent), json.loads(content)
    named = {(path.parent / pair["image"], path.parent / pair["label"]) for pair in second.get("training", [])}
    assert not named or {(case.image, case.label) for case in cases} == named


def check_csv(path: Path, content: bytes) -> None:
    groups = find_groups(path.parent)
    try:
        rows = list(csv.reader(io.StringIO(content.decode("utf-8-sig"))))
    except csv.Error:  # a lone carriage return, say
        return
    place = {name.strip(): i for i, name in enumerate(rows[0])}
    for row in rows[1:]:
        if len(row) >= 2:
            assert groups[row[place["id"]].lstrip()] == row[place["group"]].lstrip()


KINDS: dict[str, tuple[Callable, Check]] = {
    "NIfTI": (draw_nifti, check_image),
    "PNG": (draw_png, check_image),
    "JPEG": (draw_jpeg, check_image),
    "TIFF": (draw_tiff, check_image),
    "safetensors": (draw_safetensors, check_model),
    "TOML": (draw_toml, check_recipe),
    "JSON": (draw_json, check_json),
    "CSV": (draw_csv, check_csv),
}


def change(content: bytes, rng: np.random.Generator) -> bytes:
    """One of the things that happen to files; sometimes nothing."""
    data, size = bytearray(content), len(content)
    place = int(rng.integers(0, size + 1))
    how = rng.choice(["nothing", "flip", "flips", "cut", "zeros", "repeat", "insert", "swap", "number"], p=PARTS)
    if how in ("flip", "flips") and size:
        for at in rng.integers(0, size, 1 if how == "flip" else 20):
            data[at] ^= 1 << int(rng.integers(8))
    elif how == "cut":
        del data[place:]
    elif how == "zeros":
        end = min(size, place + int(rng.integers(1, 64)))
        data[place:end] = bytes(end - place)
    elif how == "repeat":
        data[place:place] = data[place : place + int(rng.integers(1, 200))]
    elif how == "insert":
        data[place:place] = rng.integers(0, 256, int(rng.integers(1, 20)), dtype=np.uint8).tobytes()
    elif how == "swap" and size > 8:
        other = int(rng.integers(0, size - 4))
        here = min(place, size - 4)
        data[here : here + 4], data[other : other + 4] = data[other : other + 4], data[here : here + 4]
    elif how == "number":
        digits = [i for i, byte in enumerate(data) if 48 <= byte <= 57]
        at = digits[rng.integers(len(digits))] if digits else 0
        extremes = [b"99999999999", b"-1", b"1e400", b"nan", b"[]", b'"', b"true"]
        data[at : at + 1] = extremes[rng.integers(len(extremes))]
    return bytes(data)


PARTS = [0.15, 0.15, 0.1, 0.12, 0.1, 0.1, 0.1, 0.08, 0.1]


def run(count: int, seed: int) -> tuple[Counter, list[Finding], float]:
    """Try ``count`` files in turn of the kinds; what happened to how many, what must not be, and the longest in s."""
    tally: Counter = Counter()
    findings: list[Finding] = []
    longest = 0.0
    names = list(KINDS)
    before = signal.signal(signal.SIGALRM, _hang)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        for number in range(count):
            kind = names[number % len(names)]
            rng = np.random.default_rng((seed, number))
            draw, check = KINDS[kind]
            name, content = draw(rng, Path(folder))
            content = change(content, rng)
            path = Path(folder) / name
            path.write_bytes(content)
            began = time.perf_counter()
            what, detail = _try(check, path, content)
            longest = max(longest, time.perf_counter() - began)
            tally[kind, what] += 1
            if what not in ("read", "refused"):
                findings.append(Finding(what, kind, number, detail))
            path.unlink()
    signal.signal(signal.SIGALRM, before)
    return tally, findings, longest


def _try(check: Check, path: Path, content: bytes) -> tuple[str, str]:
    signal.alarm(HANG_S)
    try:
        check(path, content)
    except REFUSALS as error:
        return ("refused", "") if path.name in str(error) else ("nameless", repr(error)[:300])
    except AssertionError as error:
        return "wrong", repr(error)[:300]
    except Hang:
        return "hang", ""
    except Exception as error:  # noqa: BLE001 (that is what is looked for)
        return "crash", repr(error)[:300]
    finally:
        signal.alarm(0)
    return "read", ""


def _hang(*_: object) -> None:
    raise Hang


def main() -> int:
    given = [int(text) for text in sys.argv[1:3]]
    count, seed = (*given, *(2000, 0)[len(given) :])
    tally, findings, longest = run(count, seed)
    print(f"{'':<12}{'read':>8}{'refused':>9}{'crash':>7}{'hang':>6}{'wrong':>7}{'nameless':>10}")
    for kind in KINDS:
        numbers = [tally[kind, what] for what in ("read", "refused", "crash", "hang", "wrong", "nameless")]
        print(f"{kind:<12}{numbers[0]:>8}{numbers[1]:>9}{numbers[2]:>7}{numbers[3]:>6}{numbers[4]:>7}{numbers[5]:>10}")
    print(f"{count} files, seed {seed}; the longest took {longest:.2f} s")
    for finding in findings:
        print(*finding)
    return 1 if findings else 0


if __name__ == "__main__":
    raise SystemExit(main())
