"""The tables of cDAL: printed numbers, ours from files of runs alone, "not run" elsewhere; a tiny plan run for real."""

import json

import pytest
import torch

from ncaseg.cli.main import main
from ncaseg.config import load_recipe, to_toml
from ncaseg.data.lesions import write_lesions
from ncaseg.data.split import Split, save_split
from ncaseg.models.cdal.build import build_discriminator
from ncaseg.papers import cdal_tables, reproduce
from ncaseg.papers.paper import load_paper
from ncaseg.papers.runs import find_runs, of_paper

TINY = [
    "model.in_channels=3",
    "data.modalities=[0, 1, 2]",
    "data.mean=[]",
    "data.std=[]",
    "data.size=[16, 16, 1]",
    "cdal.width=8",
    "cdal.multipliers=[1, 2]",
    "cdal.blocks=1",
    "cdal.attention_levels=[]",
    "cdal.encoder_blocks=1",
    "cdal.latent=4",
    "cdal.latent_width=8",
    "cdal.discriminator=none",
    "cdal.attention=off",
    "train.epochs=0",
    "train.steps=1",
    "train.validate_every=0",
]


def write_run(folder, recipe, overrides=(), *, held="a", dice=0.8, seconds=None, classes=True):
    """A folder as a finished run of cDAL leaves it, with given scores."""
    folder.mkdir(parents=True)
    (folder / "recipe.toml").write_text(to_toml(load_recipe(recipe, overrides)))
    save_split(folder / "split.json", Split(("x", "y"), (held,), 0.5, 0))
    scores = {"num_cases": 1, "samples": 5, "seed": 0, "data": "Task04", "made": {"commit": "abc", "machine": "a CPU"}}
    scores |= {key: {"soft_dice": dice, "hard_dice": dice} for key in ("mean", "std")}
    if classes:
        entry = {"hard_dice": dice, "precision": dice + 0.01, "sensitivity": dice - 0.01}
        scores["classes"] = {"1": entry, "2": {name: value - 0.1 for name, value in entry.items()}}
    else:
        scores["protocols"] = {"E-CDAL": {"dice": dice, "iou": dice - 0.1}}
    if seconds is not None:
        scores["seconds_per_case"] = seconds
    (folder / "scores.json").write_text(json.dumps(scores))


@pytest.fixture(scope="module")
def paper():
    return load_paper("cdal")


def show(paper, folder):
    return cdal_tables.to_markdown(paper, cdal_tables.make_tables(paper, of_paper(paper, find_runs([folder]))))


def test_without_runs_the_tables_say_so(paper, tmp_path):
    text = show(paper, tmp_path)
    assert "| MoNuSeg | cDAL, T = 4 | 70.96 | 82.94 | 41,666,753 | not run | - | - |" in text
    assert "| CXR, 3 folds | cDAL, T = 2 | 93.04 (0.97) | 96.35 (0.54) | 8,843,777 | not run | - | - |" in text
    cdal = "| hippocampus, 4 folds | cDAL, T = 2 | 87.43 (1.50) | 86.72 (1.25) | 86.90 (0.13) | 3,682,275 | not run |"
    assert cdal in text.partition("## Table 3, hippocampus, posterior")[2]
    assert "| MoNuSeg | MedT | 66.17 | 79.55 | - | - | - | - |" in text
    assert "| latent z | removed | 35,328 | not run |" in text
    assert "| generator, same data | automata, slices | 69,184 | not run |" in text
    assert "| cdal-cxr | 8,843,777 | 27,736,705 | not run |" in text
    assert "No finished run was found." in text


def test_runs_stand_where_they_belong(paper, tmp_path):
    small = "cdal-nca-hippocampus"
    write_run(tmp_path / "a", small, dice=0.80, seconds=1.25)
    write_run(tmp_path / "b", small, ["train.seed=4"], dice=0.82, held="b")
    write_run(tmp_path / "c", small, ["train.steps=300"], dice=0.7)
    write_run(tmp_path / "d", small, ["cdal.attention=off"], dice=0.81)
    write_run(tmp_path / "e", small, ["train.lr=0.5"], dice=0.11)
    write_run(tmp_path / "f", "m3d-hippocampus", dice=0.9)
    text = show(paper, tmp_path)
    both = "69,184 | 81.00 (1.41) | 71.00 (1.41) | 81.00 (1.41) | - | a, b |"  # sd of 80 and 82, n - 1
    rows = ("attention | zero, no discriminator", "latent z | on", "T | 2", "generator, same data | automata, slices")
    for row in rows:
        assert f"| {row} | {both}" in text
    assert "| T | 2 (train.steps: 600 -> 300) | 69,184 | 70.00 | 60.00 | 70.00 | - | c |" in text
    assert "| attention | off, no discriminator | 69,184 | 81.00 | 71.00 | 81.00 | - | d |" in text
    other = "| e: cdal-nca-hippocampus (train.lr: 0.004 -> 0.5) | 69,184 | 11.00 | 1: 11.00, 2: 1.00 | - | - |"
    assert other in text and "f: m3d" not in text
    assert f"| {small} | 69,184 | 0 | 1.25, 5 samples (a CPU) |" in text
    assert "| c | cdal-nca-hippocampus | Task04 | train.steps: 600 -> 300 |" in text and "| 300 steps |" in text
    assert "| 600 steps | 1.25 |" in text


def test_table_1_takes_runs_tested_on_montgomery_alone(paper, tmp_path):
    write_run(tmp_path / "a", "cdal-cxr", held="MCUCXR_0001_0", dice=0.9, classes=False)
    write_run(tmp_path / "b", "cdal-cxr", held="CHNCXR_0001_0", dice=0.8, classes=False)
    text = show(paper, tmp_path)
    assert "| CXR, fold 0 | cDAL, attention 16 | 94.00 | 96.87 | 8,843,777 | 80.00 | 90.00 | a |" in text
    assert "| 96.35 (0.54) | 8,843,777 | 75.00 (7.07) | 85.00 (7.07) | a, b |" in text


def test_printed_pairs_can_be_means_over_pictures(paper):
    pairs = [row["printed"] for table in paper.tables[:2] for row in table["rows"] if "printed" in row]
    assert len(pairs) == 10 + 11
    for pair in pairs:
        overlap, dice = (value[0] if isinstance(value, list) else value for value in pair)
        assert dice <= 200 * overlap / (100 + overlap) + 0.01


def test_rows_and_plan_refer_to_each_other(paper):
    named = {row["run"] for table in paper.tables for row in table["rows"] if "run" in row}
    assert named == {run.id for run in paper.plan} and len({run.id for run in paper.plan}) == len(paper.plan)
    recipes = [load_recipe(run.recipe, run.overrides) for run in paper.plan]
    assert len({to_toml(cfg) for cfg in recipes}) == len(recipes)
    assert all(run.task in run.recipe for run in paper.plan)
    small = {run.recipe for run in paper.plan if run.trained}
    cpu = {"cdal-nca-hippocampus", "cdal-nca-hippocampus-3d", "cdal-nca-cxr", "cdal-nca-monuseg"}
    assert small == {"cdal-hippocampus-small"} | cpu  # what --train trains suits a CPU


def test_attention_sizes_are_those_of_the_features(paper):
    cfg = load_recipe("cdal-monuseg")
    with torch.device("meta"):
        net = build_discriminator(cfg.model, cfg.cdal)
        label = torch.empty(1, 1, 256, 256)
        features = net.features(label, torch.zeros(1), label)
    planned = {run.id: run for run in paper.plan}
    for row in paper.tables[0]["rows"]:
        _, line, cells = row["model"].partition("attention ")
        if line and cells.isdigit():
            run = planned[row["run"]]
            assert features[load_recipe(run.recipe, run.overrides).cdal.attention_index].shape[-1] == int(cells)


def test_a_tiny_plan_is_run_and_scored(tmp_path, capsys):
    data = write_lesions(tmp_path / "lesions", 4, seed=0, size=(20, 20))
    text = to_toml(load_recipe("cdal-cxr", TINY)).replace('"cdal-cxr"', '"lesions-tiny"')
    (tmp_path / "lesions-tiny.toml").write_text(text)
    (tmp_path / "tiny.toml").write_text(
        f"""
form = "labels"
title = "A title"
citation = "Somebody"
metric = "hard_dice"
notes = []
[[tables]]
title = "table 1"
source = "page 1"
columns = [{{ name = "Dice", score = ["mean", "hard_dice"] }}]
rows = [{{ data = "lesions", model = "theirs", printed = [90.0], run = "tiny" }}]
[effort]
source = "nowhere"
rows = []
[[runs]]
id = "tiny"
task = "lesions"
recipe = "{tmp_path / "lesions-tiny.toml"}"
[[runs]]
id = "huge"
task = "lesions"
recipe = "{tmp_path / "lesions-tiny.toml"}"
overrides = ["train.steps=1000000"]
trained = false
"""
    )
    out = tmp_path / "out"
    assert main(["reproduce", str(tmp_path / "tiny.toml"), "-o", str(out), "--data", str(data), "--train"]) == 0
    assert "not run yet, and left out by --train: huge" in capsys.readouterr().out
    scores = json.loads((out / "runs" / "tiny" / "scores.json").read_text())
    assert scores["samples"] == 5 and scores["comparison"]["samples"] == 1
    (row,) = json.loads((out / "tiny.json").read_text())["tables"][0]["rows"]
    assert row["ours"]["scores"] == [[pytest.approx(100 * scores["mean"]["hard_dice"]), None]]
    (missing,) = reproduce.missing_runs(load_paper(tmp_path / "tiny.toml"), data, find_runs([out / "runs"]))
    assert missing.id == "huge"
