"""Pictures as volumes of one slice: layouts, masks, colours, sizes, and the synthetic lesions."""

import os
import struct
import tracemalloc
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from ncaseg import config
from ncaseg.config import DataConfig
from ncaseg.data import labels
from ncaseg.data.dataset import CaseStore, load_case
from ncaseg.data.formats.base import ReadError
from ncaseg.data.formats.picture import Picture
from ncaseg.data.index import Case, find_cases
from ncaseg.data.lesions import make_lesion, write_lesions
from ncaseg.data.resample import resize_image, resize_mask
from ncaseg.training.batches import load_batch

RECIPE = "medsegdiff-small"
STORED = "data.intensity=stored"
CFG = config.load_recipe(RECIPE, [STORED])


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels)).save(path)
    return path


def read_picture(path):
    """``[rows, columns, 1, colours]`` float32, 1 for white."""
    scan, values = Picture().read(path)
    return values.astype(np.float32) / np.float32(scan.white or 1)


def read_mask(path, values):
    """The labels ``[rows, columns, 1]`` of a mask."""
    return labels.decode(path, Picture().read_label(path)[1], DataConfig(labels=values))[0]


LAYOUTS = [
    ("imagesTr/{}.jpg", "masksTr/{}.png"),
    ("images/{}.png", "masks/{}.png"),
    ("ISIC2018_Task1-2_Training_Input/{}.jpg", "ISIC2018_Task1_Training_GroundTruth/{}_segmentation.png"),
    ("ISIC-2017_Training_Data/{}.jpg", "ISIC-2017_Training_Part1_GroundTruth/{}_Segmentation.png"),
    ("CXR_png/{}.png", "masks/{}_mask.png"),
]


@pytest.mark.parametrize(("image", "mask"), LAYOUTS)
def test_layouts_of_pictures_are_found(image, mask, tmp_path):
    for name in ("ISIC_0000001", "ISIC_0000000"):
        save(tmp_path / image.format(name), np.zeros((4, 4, 3), np.uint8))
        save(tmp_path / mask.format(name), np.zeros((4, 4), np.uint8))
    folder = (tmp_path / image).parent
    (folder / "LICENSE.txt").write_text("x")
    save(folder / "ISIC_0000000_superpixels.png", np.zeros((4, 4, 3), np.uint8))
    cases = find_cases(tmp_path)
    assert [(case.id, case.label.name) for case in cases] == [
        (name, mask.rpartition("/")[2].format(name)) for name in ("ISIC_0000000", "ISIC_0000001")
    ]
    pairs = find_cases(images=folder, labels=(tmp_path / mask).parent)
    assert pairs == cases


def test_pictures_beside_volumes_are_not_read(tmp_path):
    (tmp_path / "a.nii.gz").write_bytes(b"")
    save(tmp_path / "a_overlay.png", np.zeros((4, 4), np.uint8))
    assert [case.id for case in find_cases(images=tmp_path)] == ["a"]


def load(tmp_path, picture, mask, *overrides):
    cfg = config.load_recipe(RECIPE, [STORED, *overrides])
    case = Case("x", save(tmp_path / "x.png", picture), save(tmp_path / "m" / "x.png", mask))
    return load_case(case, cfg.data)


def test_colours_and_masks_keep_their_place(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    mask = np.zeros((6, 9), np.uint8)
    mask[1, 7] = 255
    volume = load(tmp_path, picture, mask, "data.size=[]")
    assert volume.image.shape == (3, 6, 9, 1) and volume.native_size == (6, 9, 1)
    np.testing.assert_array_equal(volume.image[..., 0], picture.transpose(2, 0, 1).astype(np.float32) / 255)
    assert volume.label.dtype == np.uint8 and np.argwhere(volume.label).tolist() == [[1, 7, 0]]


def test_resizing_averages_pictures_and_takes_the_centre_of_masks(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (128, 192, 3), dtype=np.uint8)
    rows = np.arange(128)[:, None] + np.zeros((1, 192), int)
    volume = load(tmp_path, picture, ((rows >= 51) * 255).astype(np.uint8))
    assert volume.image.shape == (3, 64, 64, 1) and volume.label.shape == (128, 192, 1)
    assert volume.image.std() < 0.5 * (picture / 255).std()  # noise is averaged, not picked from
    small = volume.to_content(volume.label[None].astype(np.float32))
    # Cell i covers rows 2 i and 2 i + 1; its centre lies at the start of the second.
    assert small.shape == (1, 64, 64, 1) and np.flatnonzero(small[0, :, 0, 0])[0] == 25
    back = volume.to_native(np.ones((1, 1, 64, 64, 1), np.float32))
    assert back.shape == (1, 1, 128, 192, 1)


def test_area_rule_is_the_mean_where_the_factor_is_whole():
    ramp = np.linspace(0, 1, 64, dtype=np.float32)[None, :, None, None] * np.ones((1, 64, 8, 1), np.float32)
    small = resize_image(ramp, (16, 8, 1), "area")
    expected = ramp.reshape(1, 16, 4, 8, 1).mean(2)
    np.testing.assert_allclose(small[:, 1:-1], expected[:, 1:-1], atol=1e-6)
    mask = (np.arange(9) >= 4).astype(np.float32)[None, :, None, None]
    assert resize_mask(mask, (3, 1, 1), "centre").ravel().tolist() == [0, 1, 1]
    assert resize_mask(mask, (3, 1, 1)).ravel().tolist() == [0, 0, 1]


def test_masks_of_any_coding(tmp_path):
    values = np.array([[0, 1], [1, 0]], np.uint8)
    for stored in (values, values * 255, values.astype(bool), values * 200 + 20):
        mask = read_mask(save(tmp_path / "m.png", stored), (1,))
        assert mask[..., 0].tolist() == values.tolist()
    two = save(tmp_path / "two.png", values * 2)
    assert read_mask(two, (1, 2)).max() == 2
    with pytest.raises(ValueError, match=r"two.png must hold 0 and data.labels \(1, 3\)"):
        read_mask(two, (1, 3))


def test_what_is_no_picture_is_named(tmp_path):
    path = tmp_path / "broken.png"
    path.write_bytes(b"no picture")
    with pytest.raises(ValueError, match="broken.png must be a readable picture"):
        read_picture(path)
    with pytest.raises(FileNotFoundError):
        read_picture(tmp_path / "none.png")
    with pytest.raises(ValueError, match="m.jpg"):
        Picture().write(tmp_path / "m.jpg", np.zeros((2, 2, 1)), np.eye(4), nib.Nifti1Header())
    with pytest.raises(ValueError, match="labels must have shape"):
        Picture().write(tmp_path / "m.png", np.zeros((2, 2, 3)), np.eye(4), nib.Nifti1Header())


def test_grey_and_palette_pictures(tmp_path):
    grey = read_picture(save(tmp_path / "g.png", np.full((3, 4), 51, np.uint8)))
    assert grey.shape == (3, 4, 1, 1) and grey.max() == np.float32(0.2)
    Image.fromarray(np.full((3, 4, 3), 51, np.uint8)).convert("P").save(tmp_path / "p.png")
    assert read_picture(tmp_path / "p.png").shape == (3, 4, 1, 3)


def test_lesions_are_reproducible_and_visible(tmp_path):
    folder = write_lesions(tmp_path, 3, seed=1, size=(40, 48))
    cases = find_cases(folder)
    assert [case.id for case in cases] == ["lesion_0000", "lesion_0001", "lesion_0002"]
    picture, mask = make_lesion(1, 2, (40, 48))
    again, _ = make_lesion(1, 2, (40, 48))
    assert np.array_equal(picture, again) and picture.shape == (40, 48, 3)
    volume = load_case(cases[2], CFG.data)
    assert np.array_equal(volume.label[..., 0], mask) and 0.02 < mask.mean() < 0.9
    assert picture[mask == 1].mean() < picture[mask == 0].mean() - 20
    with pytest.raises(ValueError, match="count must be at least 1"):
        write_lesions(tmp_path, 0)
    with pytest.raises(ValueError, match="size must be at least 16"):
        write_lesions(tmp_path, 1, size=(15, 64))


def test_batches_of_pictures_are_augmented_together(tmp_path):
    cases = find_cases(write_lesions(tmp_path, 2, size=(64, 64)))
    cfg = config.load_recipe(RECIPE, ["augment.flip=[1.0, 0.0, 0.0]", "train.batch_size=2"])
    store = CaseStore(cases, cfg.data)
    image, target = load_batch(store, tuple(case.id for case in cases), cfg, 0, 0)
    assert image.shape == (2, 3, 64, 64, 1) and target.shape == (2, 1, 64, 64, 1)
    volume = store[cases[1].id]
    assert np.array_equal(image[1].numpy(), volume.image[:, ::-1])
    assert np.array_equal(target[1, 0].numpy(), volume.label[::-1])


def test_the_first_steps_may_work_on_fewer_cells(tmp_path):
    cases = find_cases(write_lesions(tmp_path, 2, size=(64, 64)))
    cfg = config.load_recipe(RECIPE, ["train.small_steps=3", "train.small_size=[32, 16, 0]"])
    store, ids = CaseStore(cases, cfg.data), tuple(case.id for case in cases)
    image, target = load_batch(store, ids, cfg, 2, 0)
    assert image.shape == (2, 3, 32, 16, 1) and target.shape == (2, 1, 32, 16, 1)
    full, mask = load_batch(store, ids, cfg, 3, 0)
    assert full.shape == (2, 3, 64, 64, 1)
    assert image.mean().item() == pytest.approx(full.mean().item(), abs=0.01)
    assert set(target.unique().tolist()) == {0, 1}
    assert target.mean().item() == pytest.approx(mask.mean().item(), abs=0.02)
    for wrong in (["train.small_steps=3"], ["train.small_size=[8, 8, 1]"]):
        with pytest.raises(ValueError, match=r"train.small_size must be three sizes with train.small_steps"):
            config.load_recipe(RECIPE, wrong)


@pytest.mark.data
def test_isic_is_found_and_read():
    folder = Path(os.environ["NCASEG_DATA"]) / "ISIC2017"
    if not folder.is_dir():
        pytest.skip(f"needs {folder}")
    cases = find_cases(folder)
    assert len(cases) == 2000 and all(case.label is not None for case in cases)
    for case in cases[::500]:
        volume = load_case(case, CFG.data)
        assert volume.image.shape == (3, 64, 64, 1) and 0 < volume.label.mean() < 1
        assert 0.05 < volume.image.mean() < 0.95 and volume.image.min() >= 0 and volume.image.max() <= 1


def test_a_picture_is_loaded_with_its_light_corrected(tmp_path):
    picture = np.random.default_rng(1).integers(20, 120, (8, 6, 3)).astype(np.uint8)
    dim = np.round(picture * (0.9, 0.5, 0.7)).astype(np.uint8)
    cfg = config.load_recipe(RECIPE, ["data.intensity=shades_of_gray", "data.size=[]"]).data
    full, faint = (
        load_case(Case(n, save(tmp_path / f"{n}.png", p), None), cfg) for n, p in (("a", picture), ("b", dim))
    )
    np.testing.assert_allclose(full.image, faint.image, atol=0.02)  # 8 bits
    assert full.image.max() <= 1 and full.image.mean() > picture.mean() / 255


def test_the_intensity_of_the_file_needs_no_second_clipping():
    with pytest.raises(ValueError, match="data.clip_again must be false"):
        config.load_recipe(RECIPE, [STORED, "data.clip_again=true"])
    with pytest.raises(ValueError, match="data.resample must be one of"):
        config.load_recipe(RECIPE, ["data.resample=lanczos"])
    with pytest.raises(ValueError, match="data.intensity must be one of"):
        config.load_recipe(RECIPE, ["data.intensity=raw"])


def values_of(path):
    """What a picture is read as ``[rows, columns]`` or ``[rows, columns, colours]``, 1 for white."""
    return read_picture(path).squeeze(2).squeeze()


def test_sixteen_bits_and_fractions_keep_every_level(tmp_path):
    levels = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) * 16
    for name in ("x.png", "x.tif"):
        np.testing.assert_array_equal(values_of(save(tmp_path / name, levels)), (levels / 65535).astype(np.float32))
    shares = levels.astype(np.float32) / 65535
    np.testing.assert_array_equal(values_of(save(tmp_path / "f.tif", shares)), shares)
    grey = (levels // 256).astype(np.uint8)
    wide = load_case(Case("w", save(tmp_path / "w.png", grey.astype(np.uint16) * 257), None), grey_config())
    narrow = load_case(Case("n", save(tmp_path / "n.png", grey), None), grey_config())
    np.testing.assert_allclose(wide.image, narrow.image, atol=1e-6)


def grey_config(*, intensity="stored", **settings):
    return config.DataConfig(intensity=intensity, **settings)


def test_white_is_asked_for_where_the_file_does_not_say_it(tmp_path):
    twelve = Case("x", save(tmp_path / "x.png", np.arange(4096, dtype=np.uint16).reshape(64, 64)), None)
    with pytest.raises(
        ValueError, match=r"x.png must say what is white.*\[0, 4095\] of 16 bits. Set data.white, to 4095"
    ):
        load_case(twelve, grey_config())
    assert load_case(twelve, grey_config(white=4095.0)).image.max() == 1.0
    assert load_case(twelve, grey_config(intensity="percentiles")).image.max() == 1.0
    large = Case("f", save(tmp_path / "f.tif", np.linspace(-5, 300, 12).reshape(3, 4).astype(np.float32)), None)
    with pytest.raises(ValueError, match=r"f.tif must say what is white"):
        load_case(large, grey_config())
    assert load_case(large, grey_config(white=300.0)).image.max() == 1.0


def test_grey_stands_for_three_colours_and_colours_for_one_where_they_are_equal(tmp_path):
    grey = np.random.default_rng(0).integers(0, 256, (5, 6), dtype=np.uint8)
    volume = load_case(Case("g", save(tmp_path / "g.png", grey), None), grey_config(modalities=(0, 1, 2)))
    assert volume.image.shape[0] == 3 and (volume.image == volume.image[:1]).all()
    three = save(tmp_path / "t.png", np.stack([grey] * 3, -1))
    np.testing.assert_array_equal(load_case(Case("t", three, None), grey_config()).image, volume.image[:1])
    colours = save(tmp_path / "c.png", np.stack([grey, grey, grey // 2], -1))
    with pytest.raises(ValueError, match=r"c.png has 3 channels .*data.drop_channels=true"):
        load_case(Case("c", colours, None), grey_config())
    assert load_case(Case("c", colours, None), grey_config(drop_channels=True)).image.shape[0] == 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_a_picture_is_what_a_viewer_shows(tmp_path, orientation, suffix):
    stored = np.zeros((32, 48), np.uint8)
    stored[:8, :16] = 255  # whole blocks of JPEG
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / f"x.{suffix}", exif=exif.tobytes())
    # The standard's table: where the first row and the first column of the file belong.
    upright = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.T,
        6: stored.T[:, ::-1],
        7: stored.T[::-1, ::-1],
        8: stored.T[::-1],
    }[orientation]
    shown = values_of(tmp_path / f"x.{suffix}")
    np.testing.assert_allclose(shown, upright / 255, atol=0.02)
    assert Picture().open(tmp_path / f"x.{suffix}").size == (*upright.shape, 1)
    (tmp_path / "m").mkdir()
    Image.fromarray(stored).save(tmp_path / "m" / "x.png", exif=exif.tobytes())
    mask = read_mask(tmp_path / "m" / "x.png", (1,))
    np.testing.assert_array_equal(mask[..., 0], upright > 127)


def test_what_would_be_lost_is_refused(tmp_path):
    grey = np.random.default_rng(0).integers(0, 256, (5, 6), dtype=np.uint8)
    pages = [Image.fromarray(grey), Image.fromarray(grey // 2)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    pages[0].save(tmp_path / "film.png", save_all=True, append_images=pages[1:])
    for name in ("pages.tif", "film.png"):
        with pytest.raises(ValueError, match=f"{name} must hold one picture; it holds 2 pages"):
            read_picture(tmp_path / name)
    glass = Image.fromarray(np.stack([grey] * 3 + [grey], -1))
    glass.save(tmp_path / "glass.png")
    with pytest.raises(ValueError, match=r"glass.png is transparent in"):
        read_picture(tmp_path / "glass.png")
    opaque = Image.fromarray(np.stack([grey] * 3 + [grey * 0 + 255], -1))
    opaque.save(tmp_path / "opaque.png")
    np.testing.assert_array_equal(values_of(tmp_path / "opaque.png")[..., 0], (grey / 255).astype(np.float32))


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def test_sixteen_bits_per_colour_are_refused(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 65536, (4, 5, 3), dtype=np.uint16).astype(">u2")
    lines = b"".join(b"\0" + row.tobytes() for row in pixels)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 5, 4, 16, 2, 0, 0, 0))
    whole = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    (tmp_path / "x.png").write_bytes(whole)
    with pytest.raises(ValueError, match=r"x.png has 16 bits per colour, of which only 8 are read"):
        read_picture(tmp_path / "x.png")


def test_damaged_and_foreign_pictures_are_named(tmp_path):
    path = save(tmp_path / "x.png", np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8))
    whole = path.read_bytes()
    place = whole.index(b"IDAT") + 40
    for content in (
        whole[:place],
        whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :],
        whole[:20],
        b"",
        b"BM",
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"x.png must be a readable picture"):
            read_picture(path)
    # Encapsulated PostScript: Pillow would start Ghostscript on it.
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    with pytest.raises(ValueError, match=r"x.png must be a readable picture: PNG, JPEG, BMP or TIFF by its content"):
        read_picture(path)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "g.gif")
    (tmp_path / "g.gif").rename(tmp_path / "g.png")
    with pytest.raises(ValueError, match=r"g.png must be a readable picture: PNG"):
        read_picture(tmp_path / "g.png")


def test_a_picture_that_takes_too_much_memory_is_refused_by_its_header(tmp_path):
    Image.new("1", (14000, 14000)).save(tmp_path / "big.png")
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"big.png would take .* GB of memory .*data.max_read_gb allows 4"):
        load_case(Case("b", tmp_path / "big.png", None), grey_config(modalities=(0, 1, 2)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5e6


def test_a_picture_that_lacks_rows_is_refused(tmp_path):
    """Pillow leaves them black: nine rows a strip, and one strip for eleven rows."""
    path = save(tmp_path / "x.tif", np.random.default_rng(0).integers(1, 256, (11, 7), dtype=np.uint8))
    assert values_of(path).min() > 0
    raw = bytearray(path.read_bytes())
    place = raw.index(struct.pack("<HHI", 278, 4, 1)) + 8  # rows per strip
    raw[place : place + 4] = struct.pack("<I", 9)
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=r"x\.tif lacks rows"):
        read_picture(path)


@pytest.mark.parametrize("form", ["u", "i"])
def test_thirty_two_bits_have_the_sign_of_the_file(tmp_path, form):
    values = np.array([[0, 1, 2**31 - 1], [7, 5, 3]], "i4") - (5 if form == "i" else 0)
    expected = values.astype(np.int64)
    Image.fromarray(values).save(tmp_path / "x.tif", tiffinfo={339: 2})
    raw = bytearray((tmp_path / "x.tif").read_bytes())
    if form == "u":
        place = raw.index(struct.pack("<HHI", 339, 3, 1)) + 8
        raw[place : place + 2] = struct.pack("<H", 1)
        at = raw.index(values.tobytes())
        raw[at : at + 4] = struct.pack("<I", 2**32 - 2)
        expected[0, 0] = 2**32 - 2
    (tmp_path / "x.tif").write_bytes(raw)
    scan, found = Picture().read(tmp_path / "x.tif")
    assert found.dtype == scan.dtype == np.dtype(f"{form}4")
    np.testing.assert_array_equal(found[..., 0, 0], expected)


def png(rows: bytes, interlaced: int = 0) -> bytes:
    """A grey picture of 8 columns and 8 rows whose compressed stream holds these bytes, all sums right."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")

    header = (8).to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, interlaced])
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize(("interlaced", "whole"), [(0, 8 * 9), (1, 64 + 15)], ids=["rows", "interlaced"])
def test_a_stream_that_ends_before_the_last_row_is_refused(tmp_path, interlaced, whole):
    """Its sums are right, so Pillow shows black rows. An interlaced picture of 8x8 has 15 rows in seven passes."""
    path = tmp_path / "x.png"
    path.write_bytes(png(bytes(whole), interlaced))
    assert Picture().read(path)[1].shape[:2] == (8, 8)
    path.write_bytes(png(bytes(whole - 1), interlaced))
    with pytest.raises(ReadError, match=r"x\.png.*end before its last row"):
        Picture().read(path)
