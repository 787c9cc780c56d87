"""Which image belongs to which label: the layouts that are read, and the mistakes that are named."""

import json

import pytest

from ncaseg.data.index import case_id, find_cases


def touch(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"")
    return folder


def write_index(folder, pairs):
    entries = [{"image": f"./imagesTr/{image}", "label": f"./labelsTr/{label}"} for image, label in pairs]
    (folder / "dataset.json").write_text(json.dumps({"training": entries, "test": ["./imagesTs/t.nii.gz"]}))


def test_dataset_json_decides_and_companions_are_not_read(tmp_path):
    touch(tmp_path / "imagesTr", "b.nii.gz", "a.nii.gz", "c.nii.gz", "._a.nii.gz")
    touch(tmp_path / "labelsTr", "b.nii.gz", "a.nii.gz")
    write_index(tmp_path, [("b.nii.gz", "b.nii.gz"), ("a.nii.gz", "a.nii.gz")])
    cases = find_cases(tmp_path)
    assert [case.id for case in cases] == ["a", "b"]
    assert cases[0].image == tmp_path / "imagesTr" / "a.nii.gz"
    assert cases[0].label == tmp_path / "labelsTr" / "a.nii.gz"


@pytest.mark.parametrize("names", [("imagesTr", "labelsTr"), ("images", "labels")])
def test_folder_without_index_is_paired_by_name(tmp_path, names):
    touch(tmp_path / names[0], "a.nii.gz", "b.nii")
    touch(tmp_path / names[1], "a.nii", "b.nii", ".DS_Store")
    assert [(c.id, c.label.name) for c in find_cases(tmp_path)] == [("a", "a.nii"), ("b", "b.nii")]


def test_folder_pair_ignores_dot_files_and_other_files(tmp_path):
    images = touch(tmp_path / "i", "a.nii.gz", "._a.nii.gz", ".DS_Store", "notes.txt", "b.nii")
    labels = touch(tmp_path / "l", "a.nii.gz", "._b.nii")
    cases = find_cases(images=images, labels=labels)
    assert [(c.id, c.label is None) for c in cases] == [("a", False), ("b", True)]
    assert [c.label for c in find_cases(images=images)] == [None, None]


def test_label_without_image_is_an_error(tmp_path):
    images, labels = touch(tmp_path / "i", "a.nii.gz"), touch(tmp_path / "l", "a.nii.gz", "z.nii.gz")
    with pytest.raises(ValueError, match="1 labels in .* have no image of that name in .* z.nii.gz"):
        find_cases(images=images, labels=labels)


def test_two_files_of_one_id_are_an_error(tmp_path):
    with pytest.raises(ValueError, match="one file per case"):
        find_cases(images=touch(tmp_path, "a.nii.gz", "a.nii"))


def test_listed_file_that_does_not_exist_is_named(tmp_path):
    touch(tmp_path / "imagesTr", "a.nii.gz")
    write_index(tmp_path, [("a.nii.gz", "a.nii.gz")])
    with pytest.raises(FileNotFoundError, match="labelsTr/a.nii.gz"):
        find_cases(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"training": [3]}', '{"training": [{"image": "a"}]}', '{"training": []}'])
def test_index_that_cannot_be_understood_is_named(tmp_path, text):
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(ValueError, match="dataset.json"):
        find_cases(tmp_path)


def test_wrong_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        find_cases(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="holds none of these"):
        find_cases(tmp_path)
    with pytest.raises(FileNotFoundError, match="images must hold files"):
        find_cases(images=tmp_path)
    with pytest.raises(FileNotFoundError, match="labels must be a folder"):
        find_cases(images=touch(tmp_path / "i", "a.nii"), labels=tmp_path / "none")
    with pytest.raises(ValueError, match="both or neither"):
        find_cases()
    with pytest.raises(ValueError, match="both or neither"):
        find_cases(tmp_path, images=tmp_path)
    with pytest.raises(ValueError, match="labels goes with images"):
        find_cases(tmp_path, labels=tmp_path)


def test_case_id_needs_the_name_of_an_image():
    assert case_id("x/y.z.nii.gz") == "y.z"
    assert case_id("x/ISIC_0000001_segmentation.PNG") == "ISIC_0000001"
    with pytest.raises(ValueError, match="NIfTI"):
        case_id("x.txt")
