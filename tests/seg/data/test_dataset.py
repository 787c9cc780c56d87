"""Case to arrays: the normalisation by hand, the geometry, and every broken file by name."""

import gzip
import os
import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from ncaseg.config import DataConfig, load_recipe
from ncaseg.data.dataset import CaseStore, encode_label, grid_sizes, load_case, loading_bytes, pad_end
from ncaseg.data.index import Case, find_cases

AFFINE = np.array([[-1.0, 0.2, 0.0, 5.0], [0.1, 0.9, 0.0, -7.0], [0.0, 0.0, 1.2, 3.0], [0.0, 0.0, 0.0, 1.0]])
WIDE = DataConfig(labels=(1, 2), clip_percentiles=(0.0, 100.0))
SIZE = (5, 6, 7)


def write_case(folder, image, label=None, *, affine=AFFINE, label_affine=AFFINE):
    nib.save(nib.Nifti1Image(image, affine), folder / "image.nii.gz")
    if label is not None:
        nib.save(nib.Nifti1Image(label, label_affine), folder / "label.nii.gz")
    return Case("c", folder / "image.nii.gz", None if label is None else folder / "label.nii.gz")


@pytest.fixture
def image():
    return np.random.default_rng(0).normal(1000, 300, SIZE).astype(np.float32)


@pytest.fixture
def label():
    return np.random.default_rng(1).integers(0, 3, SIZE).astype(np.uint8)


def test_volume_carries_values_and_geometry(tmp_path, image, label):
    volume = load_case(write_case(tmp_path, image, label), WIDE)
    expected = (image - image.min()) / (image.max() - image.min())
    assert volume.image.dtype == np.float32 and volume.image.shape == (1, *SIZE)
    np.testing.assert_allclose(volume.image[0], expected, rtol=0, atol=1e-6)
    assert volume.label.dtype == np.int64
    np.testing.assert_array_equal(volume.label, label)
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-6)
    np.testing.assert_allclose(volume.spacing_mm, np.sqrt((AFFINE[:3, :3] ** 2).sum(0)), rtol=1e-6)
    assert volume.native_size == SIZE and volume.id == "c"


def test_percentiles_are_clipped(tmp_path, image):
    low, high = np.percentile(image, (10.0, 90.0))
    volume = load_case(write_case(tmp_path, image), DataConfig(clip_percentiles=(10.0, 90.0)))
    np.testing.assert_allclose(volume.image[0], (np.clip(image, low, high) - low) / (high - low), atol=1e-6)
    assert volume.image.min() == 0.0 and volume.image.max() == 1.0


def test_padding_is_zero_and_at_the_end_and_the_label_stays_native(tmp_path, image, label):
    case = write_case(tmp_path, image, label)
    padded = load_case(case, DataConfig(labels=(1, 2), clip_percentiles=(0.0, 100.0), size=(6, 6, 9)))
    assert padded.image.shape == (1, 6, 6, 9) and padded.label.shape == SIZE and padded.native_size == SIZE
    np.testing.assert_array_equal(padded.image[0, :5, :6, :7], load_case(case, WIDE).image[0])
    assert not padded.image[0, 5:].any() and not padded.image[0, :, :, 7:].any()


RESIZED = {"size": (40, 60, 0), "fit": "resize"}


@pytest.mark.parametrize(
    ("slope", "channels", "settings", "expected"),
    [
        (None, 1, {}, 8),  # bytes per voxel: the image and what its percentiles sort
        (0.37, 1, {}, 18),  # int16, and float64 twice
        (0.37, 3, {"modalities": (0, 2), "drop_channels": True}, 18 * 3),
        (None, 3, {"modalities": (0, 2), "drop_channels": True}, 16),
        (None, 1, {"mean": (0.5,), "std": (0.1,)}, 12),
        (None, 1, {"size": (50, 50, 50), "clip_again": True}, 12 * (50 / 48) ** 3),
        (None, 1, RESIZED, 24 * 60 / 48),
        (None, 1, RESIZED | {"resample": "area", "mean": (0.5,), "std": (0.1,)}, 24 * 60 / 48),
    ],
)
def test_memory_of_loading_is_known_from_the_header(tmp_path, slope, channels, settings, expected):
    cells = np.random.default_rng(0).integers(0, 1000, (48, 48, 48, channels)).astype(np.int16)
    file = nib.Nifti1Image(cells.squeeze() if slope is None else cells.squeeze() * slope + 1.0, AFFINE)
    file.set_data_dtype(np.int16)
    nib.save(file, tmp_path / "image.nii.gz")
    case, cfg = Case("c", tmp_path / "image.nii.gz", None), DataConfig(**settings)
    load_case(case, cfg)  # what is loaded once
    tracemalloc.start()
    load_case(case, cfg)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    found = loading_bytes(case, cfg)
    assert found == pytest.approx(expected * 48**3)
    assert 0.7 * found < peak < found + 150_000  # and slices


def test_second_clip_sees_the_padding(tmp_path, image):
    settings = {"clip_percentiles": (0.5, 90.0), "size": (10, 10, 10)}
    once = load_case(write_case(tmp_path, image), DataConfig(**settings)).image
    twice = load_case(write_case(tmp_path, image), DataConfig(**settings, clip_again=True)).image
    low, high = np.percentile(once, (0.5, 90.0))
    assert high < 1.0
    np.testing.assert_allclose(twice, (np.clip(once, low, high) - low) / (high - low), atol=1e-6)


def test_modalities_lie_on_the_fourth_axis(tmp_path, image):
    both = np.stack([image, image[::-1]], axis=-1)
    volume = load_case(write_case(tmp_path, both), DataConfig(modalities=(1, 0), clip_percentiles=(0.0, 100.0)))
    assert volume.image.shape == (2, *SIZE)
    np.testing.assert_array_equal(volume.image[0], volume.image[1][::-1])
    with pytest.raises(ValueError, match=r"image.nii.gz has 1 modalities; data.modalities asks for \(1,\)"):
        load_case(write_case(tmp_path, image), DataConfig(modalities=(1,)))


def test_whole_float_labels_are_accepted(tmp_path, image, label):
    volume = load_case(write_case(tmp_path, image, label.astype(np.float32)), WIDE)
    np.testing.assert_array_equal(volume.label, label)


def test_not_finite_image_is_named_with_its_count(tmp_path, image):
    image[0, 0, :2] = np.nan, np.inf
    with pytest.raises(ValueError, match=r"image.nii.gz must be finite; 2 of 210 voxels"):
        load_case(write_case(tmp_path, image), WIDE)


def test_constant_image_is_named(tmp_path):
    with pytest.raises(ValueError, match="image.nii.gz is constant"):
        load_case(write_case(tmp_path, np.full(SIZE, 3.0, np.float32)), WIDE)


def test_image_larger_than_the_grid_is_named(tmp_path, image):
    with pytest.raises(ValueError, match=r"size \(5, 6, 7\) is larger than data.size \(9, 5, 9\) on axis Y"):
        load_case(write_case(tmp_path, image), DataConfig(size=(9, 5, 9)))


def test_flat_image_is_named(tmp_path):
    with pytest.raises(ValueError, match="must have 3 axes"):
        load_case(write_case(tmp_path, np.ones((4, 5), np.float32)), WIDE)


def test_label_of_another_size_prints_both_sizes(tmp_path, image, label):
    with pytest.raises(ValueError, match=r"c: image size \(5, 6, 7\), label size \(5, 6, 6\)"):
        load_case(write_case(tmp_path, image, label[..., 1:]), WIDE)


def test_label_of_another_affine_prints_both_affines(tmp_path, image, label):
    moved = AFFINE.copy()
    moved[1, 3] = -8.5
    with pytest.raises(ValueError, match=r"image affine .*-7\.0.* label affine .*-8\.5"):
        load_case(write_case(tmp_path, image, label, label_affine=moved), WIDE)


def test_unexpected_label_values_print_found_and_expected(tmp_path, image, label):
    label[0, 0, 0] = 3
    with pytest.raises(ValueError, match=r"values \[0, 1, 2, 3\], expected \[0, 1, 2\]"):
        load_case(write_case(tmp_path, image, label), WIDE)
    fractions = label.clip(0, 2).astype(np.float32)
    fractions[0, 0, 0] = 0.5
    with pytest.raises(ValueError, match=r"0\.5"):
        load_case(write_case(tmp_path, image, fractions), WIDE)


def test_resized_volume_comes_back_to_its_native_grid(tmp_path, image, label):
    label[:] = 0
    label[1:4, 2:5, 1:6] = 1
    cfg = DataConfig(labels=(1, 2), clip_percentiles=(0.0, 100.0), size=(10, 12, 14), fit="resize")
    volume = load_case(write_case(tmp_path, image, label), cfg)
    assert volume.image.shape == (1, 10, 12, 14) and volume.is_resized and volume.content_size == (10, 12, 14)
    assert volume.image.min() == 0.0 and volume.image.max() == 1.0  # the cubic's overshoot is cut
    assert volume.label.shape == volume.native_size == SIZE
    target = volume.to_content(encode_label(volume.label, (1, 2), 1))
    np.testing.assert_array_equal(target[0], label.repeat(2, 0).repeat(2, 1).repeat(2, 2))
    back = volume.to_native(target - 0.5)[0]
    np.testing.assert_array_equal(back > 0, label > 0)


def test_zero_keeps_the_native_size_of_an_axis(tmp_path, image):
    cfg = DataConfig(size=(10, 6, 0), fit="resize")
    volume = load_case(write_case(tmp_path, image), cfg)
    assert volume.image.shape == (1, 10, 6, 7) and volume.is_resized
    same = load_case(write_case(tmp_path, image), DataConfig(size=(5, 0, 7), fit="resize"))
    np.testing.assert_array_equal(same.image, load_case(write_case(tmp_path, image), DataConfig()).image)
    assert not same.is_resized
    padded = load_case(write_case(tmp_path, image), DataConfig(size=(8, 0, 0)))
    assert padded.image.shape == (1, 8, 6, 7) and padded.content_size == SIZE


def test_resizing_may_shrink(tmp_path, image):
    volume = load_case(write_case(tmp_path, image), DataConfig(size=(3, 4, 5), fit="resize", clip_again=True))
    assert volume.image.shape == (1, 3, 4, 5)
    assert volume.to_native(np.zeros((2, 3, 3, 4, 5), np.float32)).shape == (2, 3, *SIZE)


def test_sizes_come_from_headers_alone(tmp_path, image):
    case = write_case(tmp_path, image)
    whole = case.image.read_bytes()
    case.image.write_bytes(whole[: len(whole) - 100])  # the header is there, the last voxels are not
    assert grid_sizes([case], DataConfig()) == {"c": SIZE}
    assert grid_sizes([case], DataConfig(size=(0, 9, 0))) == {"c": (5, 9, 7)}
    case.image.unlink()
    assert grid_sizes([case], DataConfig(size=(8, 9, 7))) == {"c": (8, 9, 7)}
    with pytest.raises(ValueError, match="image.nii.gz must have 3 axes"):
        grid_sizes([write_case(tmp_path, np.ones((4, 5), np.float32))], DataConfig())


def test_encode_label_merges_or_separates():
    label = np.array([[0, 1], [2, 1]])
    np.testing.assert_array_equal(encode_label(label, (1, 2), 1), [[[0, 1], [1, 1]]])
    np.testing.assert_array_equal(encode_label(label, (2, 1), 2), [[[0, 0], [1, 0]], [[0, 1], [0, 1]]])
    assert encode_label(label, (1, 2), 1).dtype == np.float32


def test_pad_end_leaves_leading_axes():
    padded = pad_end(np.ones((2, 3, 4)), (5, 4))
    assert padded.shape == (2, 5, 4) and padded.sum() == 24 and padded[:, :3].all()


@pytest.mark.parametrize("cache", [True, False])
def test_store_keeps_volumes_when_told(tmp_path, image, cache):
    store = CaseStore([write_case(tmp_path, image)], DataConfig(cache=cache))
    first = store["c"]
    assert (store["c"] is first) == cache
    np.testing.assert_array_equal(store["c"].image, first.image)


def test_case_without_label_is_named(tmp_path, image):
    with pytest.raises(ValueError, match="case c must have a label"):
        load_case(write_case(tmp_path, image), WIDE).require_label()


def test_unreadable_files_are_named(tmp_path, image, label):
    case = write_case(tmp_path, image, label)
    whole = case.label.read_bytes()
    for content in (whole[: len(whole) // 2], b"not an image", whole[:200] + bytes(100) + whole[300:]):
        case.label.write_bytes(content)
        with pytest.raises(ValueError, match="label.nii.gz must be a readable NIfTI file"):
            load_case(case, WIDE)
    case.label.unlink()
    with pytest.raises(FileNotFoundError, match="label.nii.gz"):
        load_case(case, WIDE)


@pytest.mark.parametrize("offset", [2**24, 10**9, 2**40, -(2**50)])
@pytest.mark.parametrize("dtype", [np.int64, np.float64])
def test_differences_beside_a_large_offset_are_kept(tmp_path, offset, dtype):
    small = np.random.default_rng(0).integers(0, 100, SIZE)
    plain = load_case(write_case(tmp_path, small.astype(np.int16)), WIDE).image
    moved = (small + offset).astype(dtype)
    nib.save(nib.Nifti1Image(moved, AFFINE, dtype=moved.dtype), tmp_path / "image.nii.gz")
    np.testing.assert_array_equal(load_case(Case("c", tmp_path / "image.nii.gz", None), WIDE).image, plain)
    stored = DataConfig(intensity="stored")
    with pytest.raises(
        ValueError, match=r'image.nii.gz has differences that float32 loses; set data.intensity="percent'
    ):
        load_case(Case("c", tmp_path / "image.nii.gz", None), stored)


def test_an_outlier_does_not_hide_the_differences(tmp_path):
    small = np.random.default_rng(0).integers(0, 100, SIZE)
    moved = (small + 10**9).astype(np.int32)
    moved[0, 0, 0] = 0
    volume = load_case(write_case(tmp_path, moved), DataConfig(clip_percentiles=(5.0, 95.0))).image[0]
    low, high = np.percentile(moved.astype(np.float64), (5.0, 95.0))
    np.testing.assert_allclose(volume, (np.clip(moved, low, high) - low) / (high - low), atol=1e-6)


def test_further_volumes_are_left_out_only_when_told(tmp_path, image):
    series = np.stack([image, image + 1, image[::-1]], axis=-1)
    with pytest.raises(ValueError, match=r"image.nii.gz has 3 channels .*volumes of a series.*data.drop_channels=true"):
        load_case(write_case(tmp_path, series), WIDE)
    assert load_case(write_case(tmp_path, series), DataConfig(drop_channels=True)).image.shape == (1, *SIZE)
    same = np.stack([image, image], axis=-1)
    assert load_case(write_case(tmp_path, same), WIDE).image.shape == (1, *SIZE)


def test_channels_in_files_of_their_own(tmp_path, image):
    paths = [tmp_path / f"c_000{i}.nii.gz" for i in range(2)]
    for path, voxels in zip(paths, (image, image[::-1]), strict=True):
        nib.save(nib.Nifti1Image(voxels, AFFINE), path)
    both = DataConfig(modalities=(0, 1), clip_percentiles=(0.0, 100.0))
    volume = load_case(Case("c", paths[0], None, (paths[1],)), both)
    np.testing.assert_array_equal(
        volume.image, load_case(write_case(tmp_path, np.stack([image, image[::-1]], -1)), both).image
    )
    nib.save(nib.Nifti1Image(image[1:], AFFINE), paths[1])
    with pytest.raises(ValueError, match=r"c_0001.nii.gz must have the cells of .*c_0000.nii.gz"):
        load_case(Case("c", paths[0], None, (paths[1],)), both)


def test_label_without_geometry_is_not_to_be_resampled(tmp_path, image, label):
    case = write_case(tmp_path, image, label)
    raw = bytearray(gzip.decompress(case.label.read_bytes()))
    raw[252:256] = bytes(4)  # the codes of qform and sform
    case.label.write_bytes(gzip.compress(bytes(raw)))
    with pytest.raises(
        ValueError, match=r"label.nii.gz has no geometry.*copy that one's header into it; do not resample"
    ):
        load_case(case, WIDE)


@pytest.mark.parametrize("label_too", [False, True])
def test_memory_is_bounded_by_the_header(tmp_path, image, label_too):
    """A file of a few kB that holds gigabytes of zeros."""
    sizes = (1500, 1500, 1500)
    header = nib.Nifti1Header()
    header.set_data_shape(sizes)
    header.set_data_dtype(np.int16)
    header["magic"], header["vox_offset"] = b"n+1", 352
    case = write_case(tmp_path, image, image.astype(np.uint8) * 0)
    target = case.label if label_too else case.image
    target.write_bytes(gzip.compress(header.binaryblock + bytes(4) + bytes(10**6)))
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"would take .* GB of memory to read .*data.max_read_gb allows 4"):
        load_case(case, WIDE)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5e6
    fine = write_case(tmp_path, image, np.zeros(SIZE, np.uint8))
    with pytest.raises(ValueError, match="data.max_read_gb allows 1e-06"):
        load_case(fine, DataConfig(max_read_gb=1e-6))


@pytest.mark.data
@pytest.mark.skipif("NCASEG_DATA" not in os.environ, reason="needs NCASEG_DATA, the folder of Task04_Hippocampus")
def test_hippocampus_volumes_load_with_their_labels():
    cases = find_cases(Path(os.environ["NCASEG_DATA"]) / "Task04_Hippocampus")
    assert len(cases) >= 100
    for case in cases[:: len(cases) // 20]:
        native = load_case(case, load_recipe("m3d-hippocampus-fast").data)
        padded = load_case(case, load_recipe("m3d-hippocampus").data)
        assert native.image.shape[1:] == native.native_size == native.label.shape
        assert native.image.min() == 0.0 and native.image.max() == 1.0
        assert padded.image.shape == (1, 64, 64, 52) and padded.native_size == native.native_size
        assert set(np.unique(native.label)) == {0, 1, 2}
        assert native.spacing_mm == (1.0, 1.0, 1.0)
