"""Scores by hand-computed numbers, the empty rule, the shape of the result, and the choice of cases."""

import csv
import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from seg.tiny import tiny_config, tiny_model, write_scan

from ncaseg.data.dataset import load_case
from ncaseg.data.index import find_cases
from ncaseg.data.phantom import write_phantoms
from ncaseg.data.split import Split, make_split, save_split
from ncaseg.ensemble import RULES
from ncaseg.evaluation import metrics
from ncaseg.evaluation import scores as scores_module
from ncaseg.evaluation.cases import compare_samples, find_labelled_cases, restrict, score_cases
from ncaseg.evaluation.result import METRICS
from ncaseg.evaluation.scores import score_volume
from ncaseg.evaluation.text import format_table, write_csv, write_json
from ncaseg.inference.case import answer

PROBABILITIES = np.array([[0.9, 0.8, 0.6, 0.1]], np.float32)  # one channel, four cells
LABELS = np.array([1, 1, 1, 0], np.uint8)
TRUTH = SimpleNamespace(id="case", label=np.array([1, 2, 0, 2]))


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    return write_phantoms(tmp_path_factory.mktemp("data"), 3, seed=0, size=(12, 13, 14))


@pytest.fixture(scope="module")
def scores(phantoms):
    cfg = tiny_config()
    return score_cases(tiny_model(cfg), cfg, find_cases(phantoms), name="tiny", samples=2, seed=4)


def test_merged_scores_match_hand_computation():
    scores = score_volume(PROBABILITIES, LABELS, TRUTH, tiny_config(), "one")
    assert scores["hard_dice"] == pytest.approx(2 * 2 / (3 + 3))
    assert scores["iou"] == pytest.approx(2 / 4)
    assert scores["soft_dice"] == pytest.approx(2 * (0.9 + 0.8 + 0.1) / (2.4 + 3))
    assert scores["classes"] == {"1": {"recall": 1.0}, "2": {"recall": 0.5}}


def test_class_scores_match_hand_computation():
    cfg = tiny_config(out_channels=2)
    probabilities = np.array([[0.9, 0.2, 0.6, 0.1], [0.3, 0.8, 0.1, 0.4]], np.float32)
    labels = np.array([1, 2, 1, 0], np.uint8)
    scores = score_volume(probabilities, labels, TRUTH, cfg, "one")
    assert scores["hard_dice"] == pytest.approx(2 * 2 / (3 + 3))
    assert scores["soft_dice"] == pytest.approx(2 * (0.9 + 0.8 + 0.4) / (0.9 + 0.8 + 0.6 + 0.4 + 3))
    first, second = scores["classes"]["1"], scores["classes"]["2"]
    assert first["hard_dice"] == pytest.approx(2 * 1 / (2 + 1))
    assert first["iou"] == pytest.approx(1 / 2)
    assert first["soft_dice"] == pytest.approx(2 * 0.9 / (1.8 + 1))
    assert second["hard_dice"] == pytest.approx(2 * 1 / (1 + 2))
    assert second["soft_dice"] == pytest.approx(2 * (0.8 + 0.4) / (1.6 + 2))
    assert (first["precision"], first["sensitivity"]) == (0.5, 1.0)
    assert (second["precision"], second["sensitivity"]) == (1.0, 0.5)


@pytest.mark.parametrize(("empty", "expected"), [("one", 1.0), ("zero", 0.0), ("skip", None)])
def test_empty_rule(empty, expected):
    nothing = SimpleNamespace(label=np.zeros(4, int))
    scores = score_volume(np.zeros((1, 4), np.float32), np.zeros(4, np.uint8), nothing, tiny_config(), empty)
    assert [scores[name] for name in METRICS] == [expected] * 3
    assert scores["classes"] == {"1": {"recall": None}, "2": {"recall": None}}


def test_missed_cases_stand_beside_the_mean(scores):
    dice = [row["hard_dice"] for row in scores["cases"]]
    below, zero = sum(d < 0.3 for d in dice), sum(d == 0 for d in dice)
    assert scores["missed"] == {"of": 3, "below_0.3": below, "zero": zero}
    table = format_table({**scores, "missed": {"of": 200, "below_0.3": 14, "zero": 1}})
    assert "missed, of 200: hard_dice below 0.3 in 14 (7.0 %), 0 in 1 (0.5 %)" in table.splitlines()


def test_flips_are_among_the_conditions(phantoms):
    cfg = tiny_config()
    cfg = dataclasses.replace(cfg, predict=dataclasses.replace(cfg.predict, flips="xy"))
    found = score_cases(tiny_model(cfg), cfg, find_cases(phantoms)[:1], name="tiny", samples=4)
    assert found["conditions"]["flips"] == "members see the image mirrored along xy"


def test_case_without_label_cannot_be_scored():
    with pytest.raises(ValueError, match="case must have a label"):
        score_volume(PROBABILITIES, LABELS, SimpleNamespace(id="case", label=None), tiny_config(), "one")


def test_skipped_cases_are_left_out_of_the_mean(tmp_path, monkeypatch):
    rows = iter([{"hard_dice": 0.5, "iou": 0.4, "soft_dice": 0.6}, dict.fromkeys(METRICS)])
    monkeypatch.setattr(scores_module, "score_volume", lambda *_: {**next(rows), "classes": {}})
    write_scan(tmp_path / "a.nii")
    write_scan(tmp_path / "b.nii")
    cfg = tiny_config()
    scores = score_cases(tiny_model(cfg), cfg, find_cases(images=tmp_path), name="m", samples=1, empty="skip")
    assert scores["mean"] == {"hard_dice": 0.5, "iou": 0.4, "soft_dice": 0.6}
    assert scores["cases"][1]["hard_dice"] is None
    assert " - " in format_table(scores).splitlines()[2]


def test_result_has_the_documented_shape(scores, tmp_path):
    write_json(scores, tmp_path / "scores.json")
    read = json.loads((tmp_path / "scores.json").read_text())
    assert read == scores
    assert (read["model"], read["samples"], read["seed"], read["num_cases"]) == ("tiny", 2, 4, 3)
    assert [case["id"] for case in read["cases"]] == ["phantom_000", "phantom_001", "phantom_002"]
    for case in read["cases"]:
        assert set(case) == {"id", "seconds", "classes", *METRICS} and case["seconds"] > 0
        assert set(case["classes"]) == {"1", "2"}
    assert set(read["conditions"]) == {"foreground", "threshold", "averaging", "grid", "empty", "soft_dice"}


def test_mean_and_deviation_are_over_cases(scores):
    for metric in METRICS:
        values = [case[metric] for case in scores["cases"]]
        assert np.ptp(values) > 0
        assert scores["mean"][metric] == pytest.approx(np.mean(values))
        assert scores["std"][metric] == pytest.approx(np.std(values))
    recalls = [case["classes"]["2"]["recall"] for case in scores["cases"]]
    assert scores["classes"]["2"]["recall"] == pytest.approx(np.mean(recalls))


def test_table_names_every_case_and_the_mean(scores):
    lines = format_table(scores).splitlines()
    assert [line.split()[0] for line in lines[1:6]] == ["phantom_000", "phantom_001", "phantom_002", "mean", "std"]
    assert f"{scores['mean']['hard_dice']:.4f}" in lines[4]


def test_csv_has_one_row_per_case(scores, tmp_path):
    write_csv(scores, tmp_path / "scores.csv")
    with open(tmp_path / "scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["id", *METRICS, "label_1_recall", "label_2_recall"]
    assert [float(row["hard_dice"]) for row in rows] == [case["hard_dice"] for case in scores["cases"]]


def test_split_restricts_the_cases(phantoms, tmp_path):
    cases = find_cases(phantoms)
    split = make_split([case.id for case in cases], 0.34, seed=0)
    save_split(tmp_path / "split.json", split)
    for subset in ("validation", "train"):
        chosen = restrict(cases, tmp_path / "split.json", subset)
        assert tuple(case.id for case in chosen) == getattr(split, subset)


def test_split_of_other_data_is_refused(phantoms, tmp_path):
    foreign = Split(train=("phantom_000",), validation=("elsewhere",), fraction=0.5, seed=0)
    save_split(tmp_path / "split.json", foreign)
    with pytest.raises(ValueError, match="1 validation ids that the data lacks, e.g. 'elsewhere'"):
        restrict(find_cases(phantoms), tmp_path / "split.json", "validation")


def test_empty_subset_is_refused(phantoms, tmp_path):
    save_split(tmp_path / "split.json", make_split(["phantom_000"], 0.0, seed=0))
    with pytest.raises(ValueError, match="has no validation ids"):
        restrict(find_cases(phantoms), tmp_path / "split.json", "validation")


def test_images_without_label_are_left_out_and_counted(phantoms, tmp_path, capsys):
    labels = tmp_path / "labels"
    labels.mkdir()
    with pytest.raises(FileNotFoundError):
        find_labelled_cases(images=phantoms / "imagesTr", labels=labels)
    (labels / "phantom_001.nii.gz").write_bytes((phantoms / "labelsTr" / "phantom_001.nii.gz").read_bytes())
    assert [c.id for c in find_labelled_cases(images=phantoms / "imagesTr", labels=labels)] == ["phantom_001"]
    assert "scoring 1 of 3 images" in capsys.readouterr().out


def test_images_alone_cannot_be_scored(phantoms):
    with pytest.raises(ValueError, match="nothing to score"):
        find_labelled_cases(images=phantoms / "imagesTr")


def test_gain_of_an_ensemble_matches_hand_computation():
    def result(samples, values):
        rows = [{"id": name} | dict.fromkeys(METRICS, value) for name, value in values.items()]
        return {"samples": samples, "cases": rows, "mean": {}, "std": {}}

    # "d" failed in one of the two, and "e" in the other.
    many, one = {"a": 0.9, "b": 0.84, "c": None, "d": 0.1}, {"e": 0.2, "a": 0.88, "b": 0.83, "c": 0.5}
    comparison = compare_samples(result(10, many), result(1, one))
    assert comparison["samples"] == 1
    assert comparison["gain"]["hard_dice"] == pytest.approx({"mean": 1.5, "std": 0.5})  # points: 2 and 1


def test_gain_is_none_where_no_case_counts():
    rows = [{"id": "a"} | dict.fromkeys(METRICS)]
    result = {"samples": 1, "cases": rows, "mean": {}, "std": {}}
    assert compare_samples(result, result)["gain"] == dict.fromkeys(METRICS)


def test_rule_reaches_the_prediction_and_the_conditions(phantoms):
    cfg = tiny_config()
    cases = find_cases(phantoms)[:1]
    by_rule = {r: score_cases(tiny_model(cfg), cfg, cases, name="m", samples=3, rule=r) for r in RULES}
    assert len({scores["mean"]["soft_dice"] for scores in by_rule.values()}) == len(RULES)
    assert by_rule["median"]["conditions"]["threshold"] == "p = sigmoid(median logit) > 0.5"
    own = dataclasses.replace(cfg, predict=dataclasses.replace(cfg.predict, rule="median"))
    recipe = score_cases(tiny_model(cfg), own, cases, name="m", samples=3)
    assert recipe["mean"] == by_rule["median"]["mean"] and recipe["conditions"] == by_rule["median"]["conditions"]


@pytest.mark.parametrize("fit", ["pad", "resize"])
def test_the_published_scores_are_those_of_the_grid_of_the_network(phantoms, fit):
    cfg = tiny_config(size=[16, 16, 16], fit=fit)
    model, cases = tiny_model(cfg), find_cases(phantoms)[:2]
    scores = score_cases(model, cfg, cases, name="m", samples=3, seed=4)
    for case, row in zip(cases, scores["cases"], strict=True):
        volume = load_case(case, cfg.data)
        images = torch.from_numpy(volume.image)[None].expand(3, -1, -1, -1, -1)
        with torch.no_grad():
            logits = [model(image[None], seed=4, first_sample=i)[0, 0].numpy() for i, image in enumerate(images)]
        p = 1 / (1 + np.exp(-np.mean(logits, axis=0)))
        truth = np.zeros((16, 16, 16), bool)
        if fit == "pad":
            truth[:12, :13, :14] = volume.label > 0
        else:
            truth = volume.label[np.ix_(*(np.arange(16) * n // 16 for n in (12, 13, 14)))] > 0
        soft = 2 * p[truth].sum() / (p.sum() + truth.sum())
        hard = 2 * (p > 0.5)[truth].sum() / ((p > 0.5).sum() + truth.sum())
        assert row["protocols"]["E-M3D"] == pytest.approx({"soft_dice": soft, "hard_dice": hard}, rel=1e-5)
        assert row["soft_dice"] != pytest.approx(soft, rel=1e-3)
        native = answer(model, volume, cfg, 3, 4).probabilities
        assert row["soft_dice"] == metrics.soft_dice(native[0], volume.label > 0)
    assert "network's grid" in scores["conditions"]["E-M3D"] and "E-M3D  soft_dice" in format_table(scores)
