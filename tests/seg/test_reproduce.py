"""Tables from printed numbers and finished runs; a tiny plan run for real, interrupted and repeated."""

import itertools
import json

import pytest

from ncaseg import reproduce, volume_tables
from ncaseg.cli import main
from ncaseg.config import load_recipe, to_toml
from ncaseg.data.phantom import write_phantoms
from ncaseg.data.split import make_split, save_split
from ncaseg.paper import load_paper
from ncaseg.runs import find_runs

TINY = ["model.channels=4", "model.hidden=8", "model.steps=[2]", "train.steps=1", "train.validate_every=0"]
OWN = {
    "m3d": ["m3d-hippocampus", "unet-hippocampus"],
    "medsegdiffnca": ["medsegdiff-small", "medsegdiff-small-oneshot"],
    "cdal": ["cdal-hippocampus-small"],
}


def write_run(folder, recipe="m3d-hippocampus", overrides=(), *, dice=0.9, single=0.88, quality=None, parameters=None):
    """A folder as a finished run leaves it, with given scores."""
    folder.mkdir(parents=True)
    cfg = load_recipe(recipe, overrides)
    (folder / "recipe.toml").write_text(to_toml(cfg))
    save_split(folder / "split.json", make_split("abcd", 0.25, seed=cfg.data.split_seed))
    scores = {"num_cases": 1, "samples": 10, "seed": 0, "parameters": parameters, "conditions": {}}
    for key, value in (("mean", dice), ("std", 0.02)):
        scores[key] = {"soft_dice": value, "hard_dice": value + 0.01, "iou": value}
    scores["comparison"] = {"samples": 1, "mean": {"soft_dice": single}, "std": {"soft_dice": 0.03}}
    scores["made"] = {"commit": "abc", "machine": "a CPU"}
    (folder / "scores.json").write_text(json.dumps(scores))
    if quality is not None:
        (folder / "qc.json").write_text(json.dumps(quality))
    return folder


@pytest.fixture
def m3d():
    return load_paper("m3d")


def test_without_runs_ours_is_a_dash(m3d, tmp_path):
    tables = volume_tables.make_tables(m3d, [])
    assert tables["comparison"][-1] == {"model": "**ours**", "hippocampus": None, "prostate": None}
    text = volume_tables.to_markdown(m3d, tables)
    assert "| M3D-NCA | 0.905 ± 0.024 | 8,768 | 0.829 ± 0.051 | 12,480 |" in text
    assert "| **ours** | - | - | - | - |" in text
    assert "| prostate, 2 levels | 0.829 ± 0.051 | - | 0.811 ± 0.045 | - | 0.824 ± 0.051 | - |" in text
    assert "| hippocampus | paper | 94.6 % | 4.6 % | - | - |" in text
    assert "No finished run was found." in text


def test_runs_stand_where_they_belong(m3d, tmp_path):
    counts = {"TP": 9, "FP": 1, "FN": 1, "TN": 9, "cases": 20}
    rates = {"detection_rate": 0.9, "false_negative_rate": 0.05, "missed_of_passed": 0.1, "false_alarm_rate": 0.1}
    detection = {"counts": {"all": counts | rates}, "failure": "soft_dice < 0.8", "flag": "NQM > 0.2"}
    write_run(tmp_path / "a", dice=0.90, quality={"detection": detection})
    write_run(tmp_path / "b", overrides=["train.seed=1", "data.split_seed=3"], dice=0.92, single=0.86)
    write_run(tmp_path / "c", overrides=["train.duplication=1"], dice=0.85)
    write_run(tmp_path / "d", overrides=["train.lr=0.1"], dice=0.5)
    tables = volume_tables.make_tables(m3d, find_runs([tmp_path]))

    ours = {row["model"]: row["hippocampus"] for row in tables["comparison"][11:]}
    assert ours["**ours**: m3d-hippocampus (train.lr: 0.0016 -> 0.1)"] == [0.5, 0.02, 8768]
    assert ours["**ours**: m3d-hippocampus (train.duplication: 2 -> 1)"] == [0.85, 0.02, 8768]
    (row,) = (row for row in tables["ablation"] if row["group"] == "hippocampus, 1 level")
    assert row["ours"]["standard"] == pytest.approx([0.91, 0.02])  # two seeds; not the run of another learning rate
    assert row["ours"]["no_duplication"] == pytest.approx([0.85, 0.02])
    assert row["ours"]["no_ensemble"] == pytest.approx([0.87, 0.03])
    text = volume_tables.to_markdown(m3d, tables)
    assert "| hippocampus | ours: a, soft_dice < 0.8, NQM > 0.2 | 90.0 % | 5.0 % | 10.0 % | 9/1/1/9 |" in text
    assert "| a | m3d-hippocampus | unknown | none | 8768 | 3 | 1 | 0 | 0 | 10 | 0 | abc | a CPU |" in text
    planned = [run.id for run in m3d.plan if run.task == "hippocampus"]
    found = {"hippocampus", "hippocampus-no-duplication"}
    missing = reproduce.missing_runs(m3d, tmp_path / "task04_hippocampus", find_runs([tmp_path]))
    assert missing == [id for id in planned if id not in found] != []


@pytest.mark.parametrize("name", OWN)
def test_a_paper_takes_runs_of_its_kinds_of_model_alone(name, tmp_path):
    for recipe in itertools.chain(*OWN.values()):
        write_run(tmp_path / "runs" / recipe, recipe, parameters=5)
    assert main(["reproduce", name, "-o", str(tmp_path)]) == 0
    text = (tmp_path / f"{name}.json").read_text()
    assert [row["recipe"] for row in json.loads(text)["runs"]] == OWN[name]
    assert not any(recipe in text for paper, recipes in OWN.items() if paper != name for recipe in recipes)


def test_tables_are_written_as_text_and_json(m3d, tmp_path):
    write_run(tmp_path / "a")
    markdown, data = reproduce.write_tables(m3d, find_runs([tmp_path]), tmp_path / "out", "m3d")
    assert markdown.read_text().startswith("# M3D-NCA")
    content = json.loads(data.read_text())
    assert {"written", "comparison", "ablation", "quality", "runs"} == set(content)


def test_unfinished_folders_are_no_runs(tmp_path):
    folder = write_run(tmp_path / "a")
    assert [run.folder.name for run in find_runs([tmp_path, folder])] == ["a"]  # once
    (folder / "scores.json").unlink()
    assert find_runs([tmp_path]) == []
    with pytest.raises(FileNotFoundError, match="runs must be a folder"):
        find_runs([tmp_path / "nowhere"])


def test_broken_run_is_named(tmp_path):
    folder = write_run(tmp_path / "a")
    (folder / "scores.json").write_text("{")
    with pytest.raises(ValueError, match="a must hold the files of a run"):
        find_runs([tmp_path])


def test_data_of_no_task_are_refused(m3d, tmp_path):
    with pytest.raises(ValueError, match=r"task with planned runs \(hippocampus, prostate\); got .*Task03_Liver"):
        reproduce.planned_for(m3d, tmp_path / "Task03_Liver")


@pytest.fixture
def tiny_paper(tmp_path):
    """A plan of one tiny run on synthetic volumes."""
    recipe = tmp_path / "phantom-tiny.toml"
    recipe.write_text(
        to_toml(load_recipe("demo", ["data.validation_fraction=0.4", *TINY])).replace("demo", "phantom-tiny")
    )
    (tmp_path / "tiny.toml").write_text(
        f"""
title = "A title"
citation = "Somebody"
metric = "soft_dice"
notes = ["a note"]
[comparison]
source = "table 1"
rows = [{{ model = "theirs", phantom = [0.9, 0.01, 5] }}]
[ablation]
source = "table 2"
rows = [{{ group = "one level" }}]
[quality]
source = "text"
target = 0.8
rows = [{{ task = "phantom", detection_rate = 0.5, false_negative_rate = 0.1 }}]
[[runs]]
id = "small"
task = "phantom"
recipe = "{recipe}"
group = "one level"
variant = "standard"
"""
    )
    return tmp_path / "tiny.toml"


def test_missing_runs_are_made_once(tiny_paper, tmp_path, monkeypatch, capsys):
    data = write_phantoms(tmp_path / "Phantoms", 5, seed=0, size=(12, 13, 14))
    paper = load_paper(tiny_paper)
    (folder,) = reproduce.run_missing(paper, data, tmp_path / "out")
    assert folder == tmp_path / "out" / "runs" / "small"
    scores = json.loads((folder / "scores.json").read_text())
    assert (scores["samples"], scores["num_cases"], scores["comparison"]["samples"]) == (10, 2, 1)
    quality = json.loads((folder / "qc.json").read_text())
    # A model of one step need not have a falling line; then the reason is said.
    assert "detection" in quality or "no quality control of small: " in capsys.readouterr().out

    def fail(*_, **__):
        raise AssertionError("trained again")

    monkeypatch.setattr(reproduce, "train", fail)
    reproduce.run_missing(paper, data, tmp_path / "out")
    tables = volume_tables.make_tables(paper, find_runs([tmp_path / "out" / "runs"]))
    assert tables["ablation"][0]["ours"]["standard"][0] == pytest.approx(scores["mean"]["soft_dice"])
    assert tables["runs"][0]["test_cases"] == 2
