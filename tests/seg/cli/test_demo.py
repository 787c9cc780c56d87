"""The demo leaves every file that it names, resumes, and fails loudly when the model did not learn."""

import json

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from ncaseg.cli.demo import run_demo

TINY = {
    "overrides": ["model.channels=4", "model.hidden=8", "model.steps=[2]", "train.steps=2", "train.validate_every=0"],
    "count": 5,
    "size": (12, 13, 14),
}


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    return out, run_demo(out, minimum_dice=0.0, **TINY)


def test_everything_is_written(demo):
    out, result = demo
    assert result.model == out / "run" / "model.safetensors"
    for name in ("overlay.png", "variance.png", "loss.png"):
        with Image.open(out / name) as picture:
            assert picture.width > 300
    (case,) = json.loads((out / "scores.json").read_text())["cases"]
    segmentation, scan = nib.load(out / f"{case['id']}_seg.nii.gz"), nib.load(result.image)
    assert segmentation.shape == scan.shape
    assert np.array_equal(segmentation.affine, scan.affine)


def test_score_is_that_of_a_case_training_never_saw(demo):
    out, result = demo
    scores = json.loads((out / "scores.json").read_text())
    split = json.loads((out / "run" / "split.json").read_text())
    assert [case["id"] for case in scores["cases"]] == split["validation"]
    assert not set(split["validation"]) & set(split["train"])
    assert result.hard_dice == scores["mean"]["hard_dice"]


def test_repeated_demo_gives_the_same_score(demo, capsys):
    out, result = demo
    assert run_demo(out, minimum_dice=0.0, **TINY).hard_dice == result.hard_dice
    printed = capsys.readouterr().out
    assert f"validation Dice (hard, mean of 1 volumes not trained on): {result.hard_dice:.4f}" in printed


def test_low_score_is_an_error(demo):
    out, _ = demo
    with pytest.raises(RuntimeError, match=r"validation Dice is .* expected at least 1\.01"):
        run_demo(out, minimum_dice=1.01, **TINY)
