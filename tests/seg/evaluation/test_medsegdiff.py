"""From the command line: train, evaluate and predict for models that sample masks of pictures."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image

from ncaseg import config
from ncaseg.checkpoint.model import save_model
from ncaseg.cli.main import main
from ncaseg.data.dataset import load_case
from ncaseg.data.index import find_cases
from ncaseg.data.lesions import write_lesions
from ncaseg.data.phantom import write_phantoms
from ncaseg.evaluation import baselines, medsegdiff, protocols
from ncaseg.evaluation.cases import score_cases
from ncaseg.evaluation.scores import grid_truth
from ncaseg.evaluation.text import format_table
from ncaseg.inference.case import answer
from ncaseg.models import build_model
from ncaseg.sampling.medsegdiff import sample_volume

SMALL = [
    "model.channels=8",
    "model.hidden=8",
    "model.steps=[1, 1]",
    "model.attention=true",
    "data.size=[16, 16, 1]",
    "diffusion.sample_steps=2",
    "diffusion.validate_steps=2",
    "train.steps=1",
    "train.ema_decay=0.0",
    "predict.samples=2",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_lesions(tmp_path_factory.mktemp("lesions"), 4, seed=0, size=(20, 26))


def model_of(*overrides):
    cfg = config.load_recipe("medsegdiff-small", [*SMALL, *overrides])
    torch.manual_seed(3)
    model = build_model(cfg.model)
    for level in model.levels:
        torch.nn.init.normal_(level.out_weight, std=0.2)
    return model, cfg


def test_a_case_is_the_mean_of_its_clipped_samples(data):
    model, cfg = model_of("diffusion.mask=unit")
    volume = load_case(find_cases(data)[0], cfg.data)
    coded = sample_volume(model, volume, cfg, 3, 5)
    expected = volume.to_native(coded.clamp(0, 1).numpy()).mean(0)
    found = answer(model, volume, cfg, 3, 5, with_spread=True)
    probabilities, labels, variance = found.probabilities, found.labels, found.variance
    np.testing.assert_allclose(probabilities, expected, atol=1e-6)
    assert probabilities.shape == (1, 20, 26, 1) and labels.shape == variance.shape == (20, 26, 1)
    assert np.array_equal(labels, (probabilities[0] > 0.5).astype(np.uint8))


def test_both_protocols_are_reported(data):
    model, cfg = model_of()
    cases = find_cases(data)
    scores = score_cases(model, cfg, cases, name="m", samples=2)
    assert set(scores["protocols"]) == {"E-CLEAN native", "E-CLEAN grid", "E-AUTHOR"}
    dice = np.mean([row["hard_dice"] for row in scores["cases"]])
    assert scores["mean"]["hard_dice"] == pytest.approx(dice) == scores["protocols"]["E-CLEAN native"]["dice"]
    volume = load_case(cases[1], cfg.data)
    labels = answer(model, volume, cfg, 2, 0).labels
    by_hand = protocols.e_clean(labels.astype(float), volume.label > 0)
    assert scores["cases"][1]["protocols"]["E-CLEAN native"] == by_hand
    assert "ddim, 2 of 100 steps" in scores["conditions"]["sampler"]
    assert "E-AUTHOR" in format_table(scores)
    json.dumps(scores, allow_nan=False)


def test_baselines(data):
    _, cfg = model_of()
    cases = find_cases(data)
    scores = baselines.score_baselines(cfg, cases[:2], cases[2:])
    assert set(scores) == {"everything", "otsu", "constant"}
    shares = [(grid_truth(load_case(case, cfg.data)) > 0.5).mean() for case in cases[:2]]
    assert scores["everything"]["iou"] == pytest.approx(np.mean(shares))
    assert scores["otsu"]["dice"] > scores["everything"]["dice"]  # synthetic lesions are dark
    assert "constant" not in baselines.score_baselines(cfg, cases)


def test_a_constant_mask_leaves_out_what_cannot_be_read_and_needs_one_size(data, tmp_path, capsys):
    _, cfg = model_of()
    cases = find_cases(data)
    broken = dataclasses.replace(cases[3], image=tmp_path / "gone.png")
    assert "constant" in baselines.score_baselines(cfg, cases[:2], [cases[2], broken])
    assert "left out of the constant mask" in capsys.readouterr().err
    native = dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, size=()))
    small = tmp_path / "small.png"
    for name, source in (("image", cases[2].image), ("label", cases[2].label)):
        Image.open(source).resize((31, 22), Image.Resampling.NEAREST).save(small.with_stem(name))
    other = dataclasses.replace(cases[2], image=tmp_path / "image.png", label=tmp_path / "label.png")
    assert "constant" not in baselines.score_baselines(native, cases[:1], [cases[1], other])
    assert "differ in size" in capsys.readouterr().err


@pytest.mark.parametrize("recipe", ["medsegdiff-small", "medsegdiff-small-oneshot"])
def test_train_evaluate_predict_from_the_command_line(recipe, data, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["train", recipe, "--data", str(data), "-o", str(run), *SMALL]) == 0
    model = str(run / "model.safetensors")
    found = tmp_path / "scores.json"
    split = ["--split", str(run / "split.json"), "--baselines"]
    command = ["evaluate", model, "--data", str(data), "--samples", "2", "--json", str(found), *split]
    assert main([*command, "--csv", str(tmp_path / "scores.csv")]) == 0
    scores = json.loads(found.read_text())
    assert ("protocols" in scores) == (recipe == "medsegdiff-small") and "constant" in scores["floors"]
    out = tmp_path / "masks"
    assert main(["predict", model, str(data / "imagesTr"), "-o", str(out), "--png"]) == 0, capsys.readouterr().err
    masks = sorted(path.name for path in out.iterdir() if path.stem.count("_") == 1)
    assert masks == [f"lesion_000{i}.png" for i in range(4)]
    with Image.open(out / "lesion_0000.png") as mask:
        assert mask.size == (26, 20) and set(np.unique(np.asarray(mask))) <= {0, 255}
    assert (out / "lesion_0000_overlay.png").exists()
    assert (out / "lesion_0000_sampling.png").exists() == (recipe == "medsegdiff-small")
    one = tmp_path / "one.jpg"
    assert main(["predict", model, str(data / "imagesTr" / "lesion_0000.png"), "-o", str(one)]) == 3
    assert "out must end in .png" in capsys.readouterr().err


def test_what_sampled_masks_do_not_support_is_said(data, tmp_path, capsys):
    model, cfg = model_of()
    saved, picture = tmp_path / "m.safetensors", str(data / "imagesTr" / "lesion_0000.png")
    save_model(saved, model, cfg)
    predict = ["predict", str(saved), picture, "-o", str(tmp_path / "out.png"), "--samples", "1"]
    score = ["evaluate", str(saved), "--data", str(data), "--samples", "1"]
    for command, code, message in (
        ([*predict, "--no-torch"], 2, "model.kind must be 'm3d' without torch"),
        ([*predict, "--memory", "1GB"], 2, "model.kind must be 'm3d' without torch or with a memory budget"),
        ([*predict, "--rule", "median"], 3, 'rule must be "mean-probability"'),
        ([*score, "--rule", "median"], 3, 'rule must be "mean-probability"'),
        ([*score, "--empty", "skip"], 3, 'empty must be "one"'),
        (["qc", str(saved), picture, "-o", str(tmp_path / "qc.csv")], 3, "model.kind must not be 'medsegdiff'"),
    ):
        assert main(command) == code, command
        assert message in capsys.readouterr().err
    assert main([*predict, "--rule", "mean-probability"]) == 0
    assert main([*score, "--compare", "2"]) == 0 and "over 2, points" in capsys.readouterr().out


def test_a_volume_can_be_denoised_too(tmp_path):
    cfg = config.load_recipe(
        "medsegdiff-small",
        [
            *SMALL,
            "model.ndim=3",
            "model.in_channels=1",
            "data.modalities=[0]",
            "model.scales=[[2, 2, 2]]",
            "data.size=[]",
        ],
    )
    volume = load_case(find_cases(write_phantoms(tmp_path, 1, size=(12, 13, 12)))[0], config.DataConfig(labels=(1, 2)))
    found = answer(build_model(cfg.model), volume, cfg, 2, 0, with_spread=True, with_grid=True)
    scores = medsegdiff.MaskScoring().score(found, volume, cfg, "one")
    assert set(scores["protocols"]) == {"E-CLEAN native", "E-CLEAN grid"}
    save_model(tmp_path / "m.safetensors", build_model(cfg.model), cfg)
