"""Before the first step: broken cases are counted and named, differences between cases are said."""

import nibabel as nib
import numpy as np
import pytest

from ncaseg import config
from ncaseg.config import DataConfig
from ncaseg.data.dataset import CaseStore
from ncaseg.data.index import find_cases
from ncaseg.data.survey import survey
from ncaseg.training.loop import train

TINY = ["model.channels=4", "model.hidden=8", "model.steps=[2]", "train.steps=2"]


def write(folder, count=4, image=None, label=None, affine=None):
    for i in range(count):
        rng = np.random.default_rng(i)
        mask = np.zeros((6, 7, 8), np.uint8)
        mask[2:4, 2:5, 2 : 4 + i % 3] = 1
        grey = rng.integers(0, 60, mask.shape).astype(np.int16) + 60 * mask
        for kind, voxels, change in (("imagesTr", grey, image), ("labelsTr", mask, label)):
            voxels = voxels if change is None else change(i, voxels)
            (folder / kind).mkdir(parents=True, exist_ok=True)
            nib.save(
                nib.Nifti1Image(voxels, np.eye(4) if affine is None else affine(i)), folder / kind / f"c{i}.nii.gz"
            )
    return folder


def look(folder, **settings):
    cfg = DataConfig(**settings)
    cases = find_cases(folder)
    return survey(CaseStore(cases, cfg), [case.id for case in cases], cfg)


def test_equal_cases_need_no_word(tmp_path):
    assert look(write(tmp_path)) == []


def test_every_broken_case_is_counted(tmp_path):
    folder = write(tmp_path, label=lambda i, m: m + np.uint8(7) if i == 2 else m)
    (folder / "imagesTr" / "c1.nii.gz").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"2 of 4 cases cannot be used: .*c1\.nii\.gz must be.*c2\.nii\.gz must hold"):
        look(folder)


@pytest.mark.parametrize("more", [[], ["train.validate_every=0"]])
def test_a_broken_validation_case_ends_a_run_before_its_first_step(tmp_path, more):
    folder = write(tmp_path / "d", label=lambda i, m: m * np.uint8(5) if i == 3 else m)
    with pytest.raises(ValueError, match=r"c3\.nii\.gz must hold 0 and data.labels"):
        train(config.load_recipe("demo", [*TINY, *more]), folder, tmp_path / "run")
    # The recipe may need another word, so the folder is free for it.
    assert not (tmp_path / "run" / "recipe.toml").exists()


def test_empty_labels_are_refused_unless_asked_for(tmp_path):
    folder = write(tmp_path / "d", label=lambda i, m: m * 0)
    with pytest.raises(ValueError, match="all 4 labels are empty"):
        train(config.load_recipe("demo", TINY), folder, tmp_path / "run")
    assert train(config.load_recipe("demo", [*TINY, "data.allow_empty=true"]), folder, tmp_path / "run").exists()
    assert look(write(tmp_path / "one", label=lambda i, m: m * (i > 0))) == [
        "1 of 4 labels are empty; where the answer is empty as well, the Dice is 1 and says nothing"
    ]


def test_orientation_and_spacing_are_compared(tmp_path):
    turned = np.array([[0.0, 0, 1, 0], [0, 1, 0, 0], [-1, 0, 0, 0], [0, 0, 0, 1]])
    (line,) = look(write(tmp_path / "a", affine=lambda i: turned if i % 2 else np.eye(4)))
    assert "orientation differs: 2 RAS (e.g. c0), 2 IAR (e.g. c1)" in line
    (line,) = look(write(tmp_path / "b", affine=lambda i: np.diag([1.0, 1.0, 3.0 if i else 1.0, 1.0])))
    assert line.startswith("spacing differs: from 1x1x1 to 1x1x3 mm")


def test_a_run_says_what_differs(tmp_path, capsys):
    folder = write(tmp_path / "d", affine=lambda i: np.diag([1.0, 1.0, 3.0 if i else 1.0, 1.0]))
    train(config.load_recipe("demo", TINY), folder, tmp_path / "run")
    err = capsys.readouterr().err
    assert "note: spacing differs" in err and "note: data.labels [2] occur in no label" in err


def test_map_entries_that_match_nothing_are_errors(tmp_path):
    folder = write(tmp_path, label=lambda i, m: m * np.uint8(5))
    assert look(folder, label_map="5:1") == []
    with pytest.raises(ValueError, match="data.label_map has entries that no label uses: 6:1"):
        look(folder, label_map="5:1, 6:1")


def test_masks_that_differ_in_their_foreground_are_errors(tmp_path):
    folder = write(tmp_path, label=lambda i, m: m * np.uint8(200 if i % 2 else 255))
    with pytest.raises(
        ValueError, match=r"masks differ in what stands for foreground: 255 \(e.g. c0\), 200 \(e.g. c1\)"
    ):
        look(folder)
    assert look(folder, label_map="200..255:1") == []


def test_a_split_names_every_labelled_case(tmp_path):
    folder = write(tmp_path / "d", 3)
    cfg = config.load_recipe("demo", TINY)
    train(cfg, folder, tmp_path / "run")
    for kind in ("imagesTr", "labelsTr"):
        (folder / kind / "c9.nii.gz").write_bytes((folder / kind / "c0.nii.gz").read_bytes())
    with pytest.raises(ValueError, match=r"split.json leaves out 1 labelled cases of the data, e.g. c9"):
        train(cfg, folder, tmp_path / "run")
