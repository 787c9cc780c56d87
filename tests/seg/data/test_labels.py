"""What the values of a label stand for: the labels, a map, or an unambiguous mask of two values; else an error."""

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from ncaseg.config import DataConfig, load_recipe
from ncaseg.config.settings.label_map import parse_label_map
from ncaseg.data.dataset import load_case
from ncaseg.data.formats.base import ReadError
from ncaseg.data.formats.picture import Picture
from ncaseg.data.index import Case
from ncaseg.data.labels import decode, find_meaning

MASK = np.zeros((6, 8), bool)
MASK[1:4, 2:7] = True


def write(path, coded, kind="picture"):
    """The same numbers as a picture or as a volume of one slice."""
    if kind == "picture":
        Image.fromarray(coded).save(path.with_suffix(".png" if coded.dtype == np.uint8 else ".tif"))
        return path.with_suffix(".png" if coded.dtype == np.uint8 else ".tif")
    nib.save(nib.Nifti1Image(coded[..., None], np.eye(4)), path.with_suffix(".nii"))
    return path.with_suffix(".nii")


def load(path, labels=(1,), label_map=""):
    """The labels ``[rows, columns]`` of a file, by way of a case."""
    image = path.with_name("image.nii" if path.suffix == ".nii" else "image.png")
    grey = (np.arange(MASK.size).reshape(MASK.shape) * 5).astype(np.uint8)
    if image.suffix == ".nii":
        nib.save(nib.Nifti1Image(grey[..., None], np.eye(4)), image)
    else:
        Image.fromarray(grey).save(image)
    cfg = DataConfig(labels=labels, label_map=label_map)
    return load_case(Case("c", image, path), cfg).label[..., 0]


@pytest.mark.parametrize("kind", ["picture", "volume"])
@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 255), (20, 220), (0, 128)])
def test_two_values_are_a_mask(tmp_path, kind, low, high):
    coded = np.where(MASK, high, low).astype(np.uint8)
    assert np.array_equal(load(write(tmp_path / "m", coded, kind)), MASK)


@pytest.mark.parametrize("kind", ["picture", "volume"])
@pytest.mark.parametrize(
    "values", [(0, 2), (0, 1, 2), (100, 127), (0, 127), (0, 128, 255), (0, 1, 255), (2, 2), (130, 200)]
)
def test_other_values_are_an_error_that_names_the_map(tmp_path, kind, values):
    coded = np.array(values, np.uint8)[np.arange(MASK.size).reshape(MASK.shape) % len(values)]
    path = write(tmp_path / "m", coded, kind)
    listed = ", ".join(str(v) for v in sorted(set(values)))
    with pytest.raises(
        ReadError, match=rf"{path.name} must hold 0 and data.labels \(1,\): label values \[{listed}\].*label_map"
    ):
        load(path)
    chosen = values[-1]
    found = load(path, label_map=", ".join(f"{v}:{int(v == chosen)}" for v in sorted(set(values))))
    assert np.array_equal(found, coded == chosen)


@pytest.mark.parametrize("kind", ["picture", "volume"])
def test_classes_keep_their_values_and_a_single_class_is_no_mask(tmp_path, kind):
    coded = (np.arange(MASK.size).reshape(MASK.shape) % 3).astype(np.uint8)
    assert np.array_equal(load(write(tmp_path / "m", coded, kind), (1, 2)), coded)
    with pytest.raises(ReadError, match=r"label values \[0, 255\]"):
        load(write(tmp_path / "m", (coded == 1) * np.uint8(255), kind), (1, 2))
    assert not load(write(tmp_path / "m", coded * np.uint8(0), kind), (1, 2)).any()


def test_values_one_rounding_off_are_whole(tmp_path):
    for value in (0.9999, 1.0000001):
        assert np.array_equal(load(write(tmp_path / "m", (MASK * value).astype(np.float32), "volume")), MASK)
    for value in (0.5, 0.99, np.nan):
        with pytest.raises(ReadError, match=r"m\.nii must hold"):
            load(write(tmp_path / "m", (MASK * value).astype(np.float32), "volume"))


def test_scaling_of_the_header_is_undone(tmp_path):
    path = write(tmp_path / "m", MASK * np.uint8(255), "volume")
    raw = bytearray(path.read_bytes())
    raw[112:120] = np.array([1 / 255, 0], "<f4").tobytes()  # slope and intercept
    path.write_bytes(raw)
    assert nib.load(path).get_fdata().max() != 1.0  # a little more
    assert np.array_equal(load(path, (1, 2)), MASK)


def picture(path, bands):
    Image.merge({1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[len(bands)], [Image.fromarray(b) for b in bands]).save(path)
    return path


def test_colours_on_black_are_a_mask(tmp_path):
    on, off = (MASK * 255).astype(np.uint8), np.zeros(MASK.shape, np.uint8)
    for bands in (
        (on, off, off),
        (off, on, off),
        (off, off, on),
        (on, on, off),
        (on, on, on),
        (on, off, off, off + 255),
    ):
        assert np.array_equal(load(picture(tmp_path / "m.png", bands)), MASK)
    with pytest.raises(ReadError, match=r"label values \[#0000ff, #ff0000\].*label_map"):
        load(picture(tmp_path / "m.png", (on, off, 255 - on)))
    two = picture(tmp_path / "m.png", (on, off, np.roll(on, 3, 0)))
    with pytest.raises(ReadError, match=r"#000000, #0000ff, #ff0000"):
        load(two)
    found = load(two, (1, 2), "#ff0000:1, #0000FF:2, #ff00ff:1")
    assert np.array_equal(found, np.where(MASK, 1, np.where(np.roll(MASK, 3, 0), 2, 0)))


def test_what_is_visible_is_a_mask(tmp_path):
    on, off = (MASK * 255).astype(np.uint8), np.zeros(MASK.shape, np.uint8)
    for bands in ((off, off, off, on), (on, on, on, on), (on, off, off, on), (off, on)):
        assert np.array_equal(load(picture(tmp_path / "m.png", bands)), MASK)
    with pytest.raises(ReadError, match="transparent"):  # white and black, both visible
        load(picture(tmp_path / "m.png", (np.roll(on, 1), off, off, on)))
    with pytest.raises(ReadError, match="#00000080"):
        load(picture(tmp_path / "m.png", (off, off, off, on // 2 + 1)))


def palette(path, indices, colours):
    image = Image.new("P", MASK.shape[::-1])
    image.putdata(indices.astype(np.uint8).ravel().tolist())
    image.putpalette([part for colour in colours for part in colour])
    image.save(path)
    return path


def test_palettes_are_colours_unless_the_map_names_numbers(tmp_path):
    path = tmp_path / "m.png"
    assert np.array_equal(load(palette(path, MASK, [(0, 0, 0), (255, 0, 0)])), MASK)
    assert np.array_equal(load(palette(path, ~MASK, [(255, 255, 255), (0, 0, 0)])), MASK)  # white is number 0
    assert np.array_equal(load(palette(path, MASK, [(0, 0, 0), (255, 255, 255)])), MASK)
    classes = np.arange(MASK.size).reshape(MASK.shape) % 3
    palette(path, classes, [(0, 0, 0), (128, 0, 0), (0, 128, 0)])
    with pytest.raises(ReadError, match=r"\[#000000, #008000, #800000\]"):
        load(path, (1, 2))
    assert np.array_equal(load(path, (1, 2), "0:0, 1:1, 2:2"), classes)
    assert np.array_equal(load(path, (1, 2), "#800000:2, #008000:1"), np.array([0, 2, 1])[classes])


@pytest.mark.parametrize(("bits", "most"), [(1, 1), (2, 3), (4, 15)])
def test_few_bits_are_the_numbers_of_the_file(tmp_path, bits, most):
    """Pillow stretches them to 255; the PNG is written here by hand."""
    import struct
    import zlib

    rows, columns = MASK.shape
    values = MASK * most
    per_byte = 8 // bits
    lines = b""
    for row in values:
        cells = list(row) + [0] * (-columns % per_byte)
        groups = [cells[i : i + per_byte] for i in range(0, len(cells), per_byte)]
        lines += b"\0" + bytes(sum(int(v) << (8 - bits * (k + 1)) for k, v in enumerate(g)) for g in groups)

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", columns, rows, bits, 0, 0, 0, 0))
    path = tmp_path / "m.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b""))
    assert np.array_equal(load(path, (most,), f"{most}:{most}"), values)


def test_maps_are_read_and_slips_in_them_named():
    entries = parse_label_map("2:1, 128..255:2,#FF0000:1, transparent:0")
    assert [str(e) for e in entries] == ["2:1", "128..255:2", "#ff0000:1", "transparent:0"]
    assert find_meaning([0, 2, 200, "#ff0000"], (1, 2), entries) == {0: 0, 2: 1, 200: 2, "#ff0000": 1}
    assert find_meaning([0, 3], (1, 2), entries) is None
    for text in ("2", "a:1", "2:x", "1:1, 1:2", "1..5:1, 3:0", "#ff:1"):
        with pytest.raises(ValueError, match="data.label_map"):
            parse_label_map(text)
    with pytest.raises(ValueError, match=r"data.label_map must map to 0 and data.labels \(1, 2\)"):
        load_recipe("demo", ["data.label_map=7:3"])
    assert load_recipe("demo", ["data.label_map=#ff0000:1"]).data.label_map == "#ff0000:1"


def test_a_mask_in_a_picture_and_in_a_volume_are_one(tmp_path):
    coded = np.where(MASK, 255, 0).astype(np.uint8)
    _, stored = Picture().read_label(write(tmp_path / "m", coded))
    found, meaning = decode(tmp_path / "m.png", stored, DataConfig())
    assert meaning == {0: 0, 255: 1} and np.array_equal(found[..., 0], MASK)


def test_what_a_picture_stores_and_does_not_show_is_refused(tmp_path):
    path = palette(tmp_path / "m.png", MASK, [(0, 0, 0), (0, 0, 0)])
    with pytest.raises(ReadError, match=r"m.png has a palette that shows several of its values \[0, 1\] in one colour"):
        load(path)
    assert np.array_equal(load(path, (1,), "0:0, 1:1"), MASK)
    on, off = (MASK * 255).astype(np.uint8), np.zeros(MASK.shape, np.uint8)
    with pytest.raises(ReadError, match="m.png is transparent everywhere, and holds 2 colours"):
        load(picture(path, (on, on, on, off)))
    assert not load(picture(path, (off, off, off, off))).any()
