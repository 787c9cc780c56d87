"""Formats: one class and one line; NIfTI says what is in it, whatever its name, or is refused with its name."""

import gzip
import os
import struct
import zlib

import nibabel as nib
import numpy as np
import pytest
from seg.tiny import tiny_config, tiny_model

from ncaseg.config import DataConfig
from ncaseg.data import formats
from ncaseg.data.dataset import load_case
from ncaseg.data.formats.base import Format, ReadError, Scan, reading
from ncaseg.data.formats.nifti import Nifti
from ncaseg.data.index import Case, find_cases
from ncaseg.inference.files import predict_path

SIZE = (7, 9, 6)
VOXELS = np.random.default_rng(0).integers(0, 900, SIZE).astype(np.int16)
OFFSETS = {  # of the header's fields
    "dim": (40, "<h"),
    "datatype": (70, "<h"),
    "pixdim": (76, "<f"),
    "vox_offset": (108, "<f"),
    "slope": (112, "<ff"),
    "units": (123, "<B"),
    "codes": (252, "<hh"),
    "quatern": (256, "<fff"),
    "srow": (280, "<f"),
}


class Raw(Format):
    """Numbers as numpy stores them."""

    name, suffixes, written = "numpy file", (".npy",), (".npy",)

    def open(self, path):
        return self.read(path)[0]

    def read(self, path):
        with reading(path, self.name):
            values = np.load(path)[..., None]
        header = nib.Nifti1Image(values[..., 0], np.eye(4)).header
        return Scan(path, values.shape, np.eye(4), header, (1.0, 1.0, 1.0), values.dtype), values

    def write(self, path, voxels, affine, header):
        np.save(path, voxels)


def test_a_new_format_is_one_class_and_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "FORMATS", (Raw(), *formats.FORMATS))
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    np.save(tmp_path / "images" / "a.npy", VOXELS)
    np.save(tmp_path / "labels" / "a.npy", (VOXELS > 500).astype(np.uint8))
    (case,) = find_cases(tmp_path)
    volume = load_case(case, DataConfig(clip_percentiles=(0.0, 100.0)))
    assert case.id == "a" and np.array_equal(volume.label, VOXELS > 500)
    low, high = VOXELS.min(), VOXELS.max()
    np.testing.assert_allclose(volume.image[0], (VOXELS - low) / (high - low), atol=1e-6)
    cfg = tiny_config()
    (written,) = predict_path((tiny_model(cfg), cfg), tmp_path / "images", tmp_path / "out")
    assert written.name == "a.npy" and np.load(written).shape == SIZE
    (tmp_path / "images" / "a.npy").write_bytes(b"damaged")
    with pytest.raises(ReadError, match=r"a\.npy must be a readable numpy file"):
        load_case(case, DataConfig())


def save(path, voxels=VOXELS, **fields):
    """A NIfTI file of which some fields of the header are then overwritten; its voxels by an independent route."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, np.diag([1.0, 2.0, 3.0, 1.0])), path)
    if fields:
        is_gzip = path.name.lower().endswith(".gz")
        raw = bytearray(gzip.decompress(path.read_bytes()) if is_gzip else path.read_bytes())
        for name, values in fields.items():
            offset, form = OFFSETS[name.rstrip("0123456789")]
            place = offset + struct.calcsize(form) * int(name[-1]) if name[-1].isdigit() else offset
            struct.pack_into(form, raw, place, *values)
        path.write_bytes(gzip.compress(bytes(raw)) if is_gzip else bytes(raw))
    return path


def read(path):
    scan, values = Nifti().read(path)
    assert Nifti().open(path).shape == scan.shape == values.shape and Nifti().open(path).dtype == values.dtype
    return values[..., 0]


def test_content_decides_not_the_name(tmp_path):
    plain, packed = save(tmp_path / "a.nii"), save(tmp_path / "a.nii.gz")
    (tmp_path / "b.nii").write_bytes(packed.read_bytes())
    (tmp_path / "b.nii.gz").write_bytes(plain.read_bytes())
    (tmp_path / "C.NII.GZ").write_bytes(packed.read_bytes())
    for name in ("a.nii", "a.nii.gz", "b.nii", "b.nii.gz", "C.NII.GZ"):
        assert np.array_equal(read(tmp_path / name), VOXELS), name


def test_upper_case_is_found_and_written(tmp_path):
    save(tmp_path / "in" / "a.nii.gz")
    (tmp_path / "in" / "B.NII.GZ").write_bytes(save(tmp_path / "b.nii.gz").read_bytes())
    cfg = tiny_config()
    written = predict_path((tiny_model(cfg), cfg), tmp_path / "in", tmp_path / "out")
    assert [path.name for path in written] == ["B.NII.GZ", "a.nii.gz"]
    raw = gzip.decompress((tmp_path / "out" / "B.NII.GZ").read_bytes())
    assert nib.Nifti1Image.from_bytes(raw).shape == SIZE


def test_checksum_of_gzip_is_compared(tmp_path):
    path = save(tmp_path / "a.nii.gz")
    raw = path.read_bytes()
    path.write_bytes(raw[:-8] + struct.pack("<I", zlib.crc32(b"other")) + raw[-4:])
    Nifti().open(path)  # the header alone is not the whole file
    with pytest.raises(ReadError, match=r"a\.nii\.gz must be a readable NIfTI file.*CRC"):
        read(path)


@pytest.mark.parametrize("dtype", ["i1", "u1", "<i2", ">i2", "u2", "i4", "u4", "i8", "u8", "f4", ">f8"])
def test_every_real_type_is_read(tmp_path, dtype):
    voxels = (VOXELS % 100).astype(dtype)
    image = nib.Nifti1Image(voxels, np.eye(4), dtype=voxels.dtype)
    nib.save(image, tmp_path / "a.nii.gz")
    assert np.array_equal(read(tmp_path / "a.nii.gz"), VOXELS % 100)


def test_scaling_is_that_of_the_header(tmp_path):
    path = save(tmp_path / "a.nii.gz", slope=(0.5, -3.0))
    np.testing.assert_array_equal(read(path), VOXELS * 0.5 - 3.0)


def test_offset_0_is_behind_the_header(tmp_path):
    assert np.array_equal(read(save(tmp_path / "a.nii", vox_offset=(0.0,))), VOXELS)
    assert np.array_equal(read(save(tmp_path / "a.nii.gz", vox_offset=(0.0,))), VOXELS)
    path = tmp_path / "a.nii"
    path.write_bytes(save(path, vox_offset=(0.0,)).read_bytes() + b"more")
    with pytest.raises(ReadError, match=r"a\.nii must say where its voxels begin"):
        read(path)


def test_length_one_axes_mean_nothing(tmp_path):
    for shape in ((*SIZE, 1), (*SIZE, 1, 1)):
        assert np.array_equal(read(save(tmp_path / "a.nii", VOXELS.reshape(shape))), VOXELS)
    both = np.stack([VOXELS, VOXELS[::-1]], -1)
    for shape in ((*SIZE, 2), (*SIZE, 1, 2)):
        assert np.array_equal(Nifti().read(save(tmp_path / "a.nii", both.reshape(shape)))[1], both)
    with pytest.raises(ReadError, match="must have 3 axes"):
        read(save(tmp_path / "a.nii", np.zeros((3, 3, 3, 2, 2), np.uint8)))


BROKEN = [
    ({"datatype": (999,)}, "999"),
    ({"datatype": (0,)}, "data code 0"),
    ({"slope": (2.0, float("nan"))}, "intercept"),
    ({"slope": (float("inf"), 0.0)}, "finite scl_slope"),
    ({"dim0": (8,)}, "axes"),
    ({"dim1": (-16,)}, "at least one cell"),
    ({"dim2": (0,)}, "at least one cell"),
    ({"dim1": (70,)}, "Expected|expected"),
    ({"pixdim1": (float("nan"),)}, "pixdim"),
    ({"pixdim2": (0.0,)}, "pixdim"),
    ({"pixdim2": (5.0,)}, "contradicts itself"),
    ({"codes": (9, 2)}, "qform_code from 0 to 5"),
    ({"codes": (0, -1)}, "sform_code from 0 to 5"),
    ({"codes": (1, 0), "quatern": (1.5, 0.0, 0.0)}, "w2"),
    ({"codes": (1, 1), "quatern": (1.0, 0.0, 0.0)}, "contradicts itself: its axes are RAS by its sform"),
    ({"srow0": (float("nan"),)}, "affine that can be inverted"),
    ({"srow0": (0.0,)}, "affine that can be inverted"),
    ({"units": (7,)}, "xyzt_units"),
    ({"vox_offset": (1e9,)}, "Expected|expected"),
]


@pytest.mark.parametrize(("fields", "words"), BROKEN)
def test_headers_that_mean_nothing_are_named(tmp_path, fields, words):
    path = save(tmp_path / "scan.nii", **fields)
    with pytest.raises(ReadError, match=rf"scan\.nii.*({words})"):
        read(path)


def test_what_is_no_real_number_is_named(tmp_path):
    nib.save(nib.Nifti1Image(VOXELS.astype(np.complex64), np.eye(4)), tmp_path / "c.nii")
    with pytest.raises(ReadError, match=r"c\.nii must hold real numbers; it holds complex numbers"):
        read(tmp_path / "c.nii")
    colours = np.zeros(SIZE, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(colours, np.eye(4)), tmp_path / "r.nii")
    with pytest.raises(ReadError, match=r"r\.nii must hold real numbers; it holds records"):
        read(tmp_path / "r.nii")


def test_more_voxels_than_the_header_names_are_noticed(tmp_path):
    path = save(tmp_path / "a.nii.gz", np.stack([VOXELS] * 2, -1), dim0=(3,))
    with pytest.raises(ReadError, match=r"a\.nii\.gz must hold as many cells as its header says"):
        read(path)


def test_spacing_is_in_millimetres(tmp_path):
    for code, factor in ((0, 1.0), (2, 1.0), (1, 1000.0), (3, 0.001)):
        scan = Nifti().open(save(tmp_path / "a.nii", units=(code,)))
        np.testing.assert_allclose(scan.spacing_mm, np.array([1.0, 2.0, 3.0]) * factor, rtol=1e-6)


def test_cell_sizes_of_an_affine_that_stretches_may_differ(tmp_path):
    Nifti().open(save(tmp_path / "a.nii", codes=(0, 4), pixdim1=(1.3,)))  # to a template, by twelve parameters


def test_other_content_is_named(tmp_path):
    for name, content in (("empty.nii", b""), ("text.nii.gz", b"not an image"), ("cut.nii.gz", b"\x1f\x8b\x08")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ReadError, match=f"{name} must be"):
            read(tmp_path / name)
    (tmp_path / "p.nii").write_bytes(b"\x89PNG\r\n\x1a\n" * 99)  # read as a header, it announces extensions
    with pytest.raises(ReadError, match=r"p\.nii must be NIfTI in one file; its magic is"):
        read(tmp_path / "p.nii")
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none.nii")
    with pytest.raises(ValueError, match=r"a\.mha must be a NIfTI file or a picture, ending in \.nii\.gz, \.nii"):
        load_case(Case("a", tmp_path / "a.mha", None), DataConfig())


@pytest.mark.parametrize("name", ["pipe.nii", "pipe.png"])
def test_a_pipe_is_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(ReadError, match=f"{name} must be a file; it is a device or a pipe"):
        formats.format_of(name).open(tmp_path / name)
    (tmp_path / "loop.nii").symlink_to(tmp_path / "loop.nii")
    with pytest.raises((ReadError, OSError), match=r"loop\.nii"):
        Nifti().open(tmp_path / "loop.nii")


def test_a_tilted_gantry_is_no_contradiction(tmp_path):
    path = save(tmp_path / "a.nii", codes=(0, 1))
    raw = bytearray(path.read_bytes())
    struct.pack_into("<4f", raw, 296, 0.0, 2.0, 3 * np.tan(np.radians(20)), 0.0)  # the second row of the sform
    path.write_bytes(raw)
    assert np.array_equal(read(path), VOXELS)
