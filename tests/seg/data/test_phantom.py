"""Synthetic cases: reproducible, readable by the loader, with the geometry and the two labels that they promise."""

import nibabel as nib
import numpy as np
import pytest

from ncaseg.config import DataConfig
from ncaseg.data.dataset import load_case
from ncaseg.data.index import find_cases
from ncaseg.data.phantom import make_phantom, write_phantoms


def test_folder_reads_back_as_a_dataset(tmp_path):
    assert write_phantoms(tmp_path / "p", 3, seed=1, size=(12, 14, 13)) == tmp_path / "p"
    cases = find_cases(tmp_path / "p")
    assert [case.id for case in cases] == ["phantom_000", "phantom_001", "phantom_002"]
    for number, case in enumerate(cases):
        volume = load_case(case, DataConfig(labels=(1, 2)))
        image, label = make_phantom(1, number, (12, 14, 13))
        np.testing.assert_array_equal(volume.label, label)
        assert np.corrcoef(volume.image.ravel(), image.ravel())[0, 1] > 0.99
        np.testing.assert_allclose(volume.spacing_mm, (1.0, 0.9, 1.2), rtol=1e-6)
        assert np.linalg.det(volume.affine[:3, :3]) < 0 and abs(volume.affine[0, 1]) > 0.05


def test_same_seed_same_bytes_and_another_seed_another_volume():
    first, again = make_phantom(5, 2, (12, 12, 12)), make_phantom(5, 2, (12, 12, 12))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], make_phantom(6, 2, (12, 12, 12))[0])
    assert not np.array_equal(first[0], make_phantom(5, 3, (12, 12, 12))[0])


@pytest.mark.parametrize("number", range(5))
def test_body_is_inside_and_brighter_than_its_surroundings(number):
    image, label = make_phantom(0, number, (24, 28, 24))
    assert set(np.unique(label)) == {0, 1, 2}
    border = np.ones(label.shape, bool)
    border[1:-1, 1:-1, 1:-1] = False
    assert not label[border].any()
    assert 0.02 < (label > 0).mean() < 0.15
    assert image[label > 0].mean() > 1.4 * image[label == 0].mean()
    positions = [np.argwhere(label == value)[:, 1].mean() for value in (1, 2)]
    assert positions[0] > positions[1] + 5  # anterior lies ahead of posterior along the second axis


def test_threshold_alone_does_not_solve_it():
    image, label = make_phantom(0, 0, (24, 28, 24))
    truth = label > 0
    scores = []
    for level in np.quantile(image, np.linspace(0.8, 0.99, 40)):
        found = image > level
        scores.append(2 * (found & truth).sum() / (found.sum() + truth.sum()))
    assert max(scores) < 0.95


def test_image_is_float32_and_label_uint8_on_disk(tmp_path):
    write_phantoms(tmp_path, 1, size=(12, 12, 12))
    assert nib.load(tmp_path / "imagesTr" / "phantom_000.nii.gz").get_data_dtype() == np.float32
    assert nib.load(tmp_path / "labelsTr" / "phantom_000.nii.gz").get_data_dtype() == np.uint8


def test_bad_arguments_are_named(tmp_path):
    with pytest.raises(ValueError, match="count must be at least 1"):
        write_phantoms(tmp_path, 0)
    with pytest.raises(ValueError, match="size must be at least 12"):
        write_phantoms(tmp_path, 1, size=(24, 24, 8))
