"""Which image belongs to which label: the layouts that are read, and the mistakes that are named."""

import json

import pytest

from ncaseg.data.index import case_id, find_cases, find_groups, write_pairs


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
    with pytest.raises(ValueError, match="labels needs images"):
        find_cases(tmp_path, labels=tmp_path)


def test_case_id_needs_the_name_of_an_image():
    assert case_id("x/y.z.nii.gz") == "y.z"
    assert case_id("x/ISIC_0000001_segmentation.PNG") == "ISIC_0000001"
    with pytest.raises(ValueError, match="NIfTI"):
        case_id("x.txt")


def nnunet(folder, *, channels=1, ending=".nii.gz", cases=("a", "b"), plain=False, **entries):
    names = [name if plain else f"{name}_{i:04d}" for name in cases for i in range(channels)]
    touch(folder / "imagesTr", *(f"{name}{ending}" for name in names))
    touch(folder / "labelsTr", *(f"{name}{ending}" for name in cases))
    content = {
        "channel_names": {str(i): f"c{i}" for i in range(channels)},
        "labels": {"background": 0, "organ": 1},
        "numTraining": len(cases),
        "file_ending": ending,
    }
    (folder / "dataset.json").write_text(json.dumps(content | entries))
    return folder


@pytest.mark.parametrize("ending", [".nii.gz", ".png"])
def test_layout_of_nnunet_2(tmp_path, ending):
    found = find_cases(nnunet(tmp_path, ending=ending))
    assert [(c.id, c.image.name, c.label.name, c.more) for c in found] == [
        (name, f"{name}_0000{ending}", f"{name}{ending}", ()) for name in "ab"
    ]


def test_channels_of_nnunet_2_belong_together(tmp_path):
    found = find_cases(nnunet(tmp_path, channels=3))
    assert [[path.name for path in case.files] for case in found] == [
        [f"{name}_000{i}.nii.gz" for i in range(3)] for name in "ab"
    ]
    (tmp_path / "imagesTr" / "b_0002.nii.gz").unlink()
    with pytest.raises(ValueError, match="names 3 channels; case b has 2 files"):
        find_cases(tmp_path)


def test_a_list_may_name_a_file_per_channel(tmp_path):
    nnunet(tmp_path, channels=2)
    pairs = [
        {"image": [f"imagesTr/{n}_000{i}.nii.gz" for i in range(2)], "label": f"labelsTr/{n}.nii.gz"} for n in "ab"
    ]
    (tmp_path / "dataset.json").write_text(json.dumps({"training": pairs}))
    assert [(case.id, [path.name for path in case.files]) for case in find_cases(tmp_path)] == [
        (name, [f"{name}_0000.nii.gz", f"{name}_0001.nii.gz"]) for name in "ab"
    ]


def test_nnunet_2_without_numbers_of_channels(tmp_path):
    assert [case.id for case in find_cases(nnunet(tmp_path, plain=True))] == ["a", "b"]


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"numTraining": 3}, "says that there are 3 cases .*imagesTr holds 2"),
        ({"file_ending": ".mha"}, '"file_ending"'),
        ({"channel_names": ["T1"]}, '"channel_names"'),
    ],
)
def test_nnunet_2_that_contradicts_its_folder_is_named(tmp_path, entries, words):
    with pytest.raises(ValueError, match=f"dataset.json.*{words}"):
        find_cases(nnunet(tmp_path, **entries))


def test_nnunet_2_needs_every_label(tmp_path):
    folder = nnunet(tmp_path, cases=("a", "b", "c"))
    (folder / "labelsTr" / "c.nii.gz").unlink()
    with pytest.raises(ValueError, match="case c(_0000)? has no label"):
        find_cases(folder)


def test_folders_named_as_nnunet_does(tmp_path):
    folder = nnunet(tmp_path)
    found = find_cases(images=folder / "imagesTr", labels=folder / "labelsTr")
    assert [(case.id, case.image.name) for case in found] == [("a", "a_0000.nii.gz"), ("b", "b_0000.nii.gz")]


def test_marks_and_encodings_of_text_files(tmp_path):
    touch(tmp_path / "imagesTr", "a.nii.gz")
    touch(tmp_path / "labelsTr", "a.nii.gz")
    pair = {"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz"}
    text = json.dumps({"description": "Universität", "training": [pair]}, ensure_ascii=False)
    (tmp_path / "dataset.json").write_bytes(text.encode("utf-8-sig"))
    assert [case.id for case in find_cases(tmp_path)] == ["a"]
    (tmp_path / "dataset.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"dataset.json must be a text in UTF-8; it is not: byte 0xe4"):
        find_cases(tmp_path)
    for damaged in ("", "{", "[" * 100_000, '"text"', "null", '{"training": [{"image": "a\\u0000b", "label": "c"}]}'):
        (tmp_path / "dataset.json").write_text(damaged)
        with pytest.raises((ValueError, FileNotFoundError), match=r"dataset.json"):
            find_cases(tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("id,group\na,1\nb,1\nz,2\n", "names cases that the data lack: 1, e.g. 'z'"),
        ("id,group\na,1\n", "lacks cases: 1, e.g. 'b'"),
        ("id,group\na,1\nb,1\na,2\n", "puts a into two groups, 1 and 2"),
        ("id,group\na,1\nb,\n", "line 3 lacks one"),
        ("id,group\na,1\nb\n", "line 3 lacks one"),
        ("name,group\na,1\n", "must have the columns id and group"),
        ("", "must have the columns id and group"),
        ("id,group\na,1\nb,1\0\n", None),
    ],
)
def test_groups_must_match_the_cases(tmp_path, text, words):
    (tmp_path / "groups.csv").write_text(text)
    if words is None:  # a zero is a character of the group's name
        assert find_groups(tmp_path, ["a", "b"])["b"] == "1\0"
        return
    with pytest.raises(ValueError, match=f"groups.csv.*{words}"):
        find_groups(tmp_path, ["a", "b"])


@pytest.mark.parametrize(
    "content",
    [
        "id,group\na,1\nb,2\n".encode("utf-8-sig"),
        b"id;group\r\na;1\r\nb;2\r\n",
        b"id, group\na.nii.gz, 1\nb.nii.gz, 2\n",
        b'"group","id"\n"1","a"\n"2","b"\n',
    ],
)
def test_groups_as_spreadsheets_write_them(tmp_path, content):
    (tmp_path / "groups.csv").write_bytes(content)
    assert find_groups(tmp_path, ["a", "b"]) == {"a": "1", "b": "2"}


def test_two_folders_become_a_list(tmp_path):
    images, labels = (
        touch(tmp_path / "i", "a_0000.nii", "a_0001.nii", "b_0000.nii", "b_0001.nii"),
        touch(tmp_path / "l", "a.nii"),
    )
    assert write_pairs(images, labels, tmp_path / "run") == ["b"]
    (case,) = find_cases(tmp_path / "run")
    assert (case.id, [path.name for path in case.files], case.label) == (
        "a",
        ["a_0000.nii", "a_0001.nii"],
        labels / "a.nii",
    )


def test_spaces_do_not_make_another_patient(tmp_path):
    (tmp_path / "groups.csv").write_text("id,group\na,one \nb , one\nc,\t\n")
    with pytest.raises(ValueError, match="line 4 lacks one"):
        find_groups(tmp_path)
    (tmp_path / "groups.csv").write_text("id,group\na,one \nb , one\n")
    assert find_groups(tmp_path, {"a", "b"}) == {"a": "one", "b": "one"}


def test_an_image_of_no_file_is_named(tmp_path):
    (tmp_path / "label.nii").write_bytes(b"")
    (tmp_path / "dataset.json").write_text('{"training": [{"image": [], "label": "label.nii"}]}')
    with pytest.raises(ValueError, match=r'dataset.json must be JSON .* an "image" is an empty list'):
        find_cases(tmp_path)
