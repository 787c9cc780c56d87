"""Tables from printed numbers and finished runs; a tiny plan run for real, interrupted and repeated."""

import itertools
import json

import pytest

from ncaseg.cli.main import main
from ncaseg.config import load_recipe, to_toml
from ncaseg.data.phantom import write_phantoms
from ncaseg.data.split import make_split, save_split
from ncaseg.papers import m3d_tables, reproduce
from ncaseg.papers.paper import load_paper
from ncaseg.papers.runs import find_runs
from ncaseg.quality import control
from ncaseg.quality.threshold import Calibration, NoThreshold

TINY = ["model.channels=4", "model.hidden=8", "model.steps=[2]", "train.steps=1", "train.validate_every=0"]
OWN = {
    "m3d": ["m3d-hippocampus", "unet-hippocampus"],
    "medsegdiffnca": ["medsegdiff-small", "medsegdiff-small-oneshot"],
    "cdal": ["cdal-hippocampus-small"],
}


def write_run(
    folder, recipe="m3d-hippocampus", overrides=(), *, dice=0.9, single=0.88, quality=None, parameters=None, ids="abcd"
):
    """A folder as a finished run leaves it, with given scores."""
    folder.mkdir(parents=True)
    cfg = load_recipe(recipe, overrides)
    (folder / "recipe.toml").write_text(to_toml(cfg))
    save_split(folder / "split.json", make_split(ids, 0.25, seed=cfg.data.split_seed))
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
    tables = m3d_tables.make_tables(m3d, [])
    assert tables["comparison"][-1] == {"model": "**ours**", "hippocampus": None, "prostate": None}
    text = m3d_tables.to_markdown(m3d, tables)
    assert "| M3D-NCA | 0.905 ± 0.024 | 8,768 | 0.829 ± 0.051 | 12,480 |" in text
    assert "| **ours** | - | - | - | - |" in text
    assert "| prostate, 2 levels | 0.829 ± 0.051 | - | 0.811 ± 0.045 | - | 0.824 ± 0.051 | - |" in text
    assert "| hippocampus | paper | 94.6 % | 4.6 % | - | - |" in text
    assert "No finished run was found." in text


def found_failures(tp, fp, fn, tn, threshold):
    """A `qc.json` with these counts, and rates that follow from them."""
    counts = {"TP": tp, "FP": fp, "FN": fn, "TN": tn, "cases": tp + fp + fn + tn}
    rates = {"detection_rate": tp / (tp + fn) if tp + fn else None, "false_negative_rate": fn / counts["cases"]}
    rates |= {"missed_of_passed": fn / (fn + tn), "false_alarm_rate": fp / (fp + tn)}
    return {
        "detection": {
            "counts": {"all": counts | rates},
            "failure": "soft_dice < 0.8",
            "flag": f"NQM > {threshold}",
        }
    }


def test_runs_stand_where_they_belong(m3d, tmp_path):
    write_run(tmp_path / "a", dice=0.90, quality=found_failures(9, 1, 1, 9, 0.2))
    write_run(tmp_path / "b", overrides=["train.seed=1", "data.split_seed=3"], dice=0.92, single=0.86)
    write_run(tmp_path / "c", overrides=["train.duplication=1"], dice=0.85)
    write_run(tmp_path / "d", overrides=["train.lr=0.1"], dice=0.5)
    write_run(tmp_path / "e", "m3d-hippocampus-fast", ["train.steps=2000"], dice=0.8)
    write_run(tmp_path / "f", "m3d-hippocampus-fast", dice=0.89)
    tables = m3d_tables.make_tables(m3d, find_runs([tmp_path]))

    ours = {row["model"].removeprefix("**ours**: "): row["hippocampus"] for row in tables["comparison"][11:]}
    whole = load_recipe("m3d-hippocampus-fast").train.steps
    spread = 0.02 / 2**0.5  # of 0.90 and 0.92, n - 1; of a run alone 0.02 over cases
    assert ours == {
        "m3d-hippocampus": [pytest.approx(0.91), pytest.approx(spread), 8768, 2],
        "m3d-hippocampus (train.duplication: 2 -> 1)": [0.85, 0.02, 8768, 1],
        "m3d-hippocampus (train.lr: 0.0016 -> 0.1)": [0.5, 0.02, 8768, 1],
        f"m3d-hippocampus-fast (train.steps: {whole} -> 2000)": [0.8, 0.02, 3712, 1],
        "m3d-hippocampus-fast": [0.89, 0.02, 3712, 1],
    }
    (row,) = (row for row in tables["ablation"] if row["group"] == "hippocampus, 1 level")
    assert row["ours"]["standard"] == pytest.approx([0.91, spread, 2])  # not the run of another learning rate
    assert row["ours"]["no_duplication"] == pytest.approx([0.85, 0.02, 1])
    assert row["ours"]["no_ensemble"] == pytest.approx([0.87, spread, 2])
    text = m3d_tables.to_markdown(m3d, tables)
    assert "| **ours**: m3d-hippocampus | 0.910 ± 0.014 (n = 2) | 8,768 | - | - |" in text
    assert (
        "| hippocampus, 1 level | - | 0.910 ± 0.014 (n = 2) | - | 0.850 ± 0.020 | - | 0.870 ± 0.014 (n = 2) |" in text
    )
    assert "mean ± deviation (n - 1) between the runs" in text
    detected = "ours: m3d-hippocampus, soft_dice < 0.8, NQM > 0.2 | 90.0 % | 5.0 % | 10.0 % | 9/1/1/9 |"
    assert f"| hippocampus | {detected}" in text
    seeds_and_dice = {"a": ("0 | 0", "0.900 ± 0.020 | 0.910 ± 0.030"), "b": ("3 | 1", "0.920 ± 0.020 | 0.930 ± 0.030")}
    for run, (seeds, dice) in seeds_and_dice.items():  # each with its conditions
        row = f"| {run} | m3d-hippocampus | unknown | none | 8768 | 3 | 1 | {seeds} | 10 | 0 | abc | a CPU | {dice} |"
        assert row in text


def test_quality_control_is_one_row_for_an_experiment(m3d, tmp_path):
    write_run(tmp_path / "a", quality=found_failures(8, 1, 2, 9, 0.2))
    write_run(tmp_path / "b", overrides=["train.seed=1"], quality=found_failures(6, 0, 4, 10, 0.25))
    write_run(tmp_path / "c", overrides=["train.seed=2"], quality=found_failures(0, 0, 0, 20, 0.2))  # nothing failed
    other = found_failures(5, 0, 5, 10, 0.3)
    other["detection"]["failure"] = "hard_dice < 0.8"
    write_run(tmp_path / "d", overrides=["train.seed=3"], quality=other)
    text = m3d_tables.to_markdown(m3d, m3d_tables.make_tables(m3d, find_runs([tmp_path])))
    rates = "70.0 % ± 14.1 % (n = 2) | 10.0 % ± 10.0 % (n = 3)"
    assert f"ours: m3d-hippocampus, soft_dice < 0.8, NQM > 0.2; NQM > 0.25 | {rates} |" in text
    assert "| 14/1/6/39 |" in text
    assert "ours: m3d-hippocampus, hard_dice < 0.8, NQM > 0.3 | 50.0 % | 25.0 % | 33.3 % | 5/0/5/10 |" in text


def test_phantoms_stand_apart(m3d, tmp_path):
    """Known by the names of their cases: in the split, or where others than those of the split were scored."""
    phantoms = [f"phantom_{number:03d}" for number in range(4)]
    write_run(tmp_path / "runs" / "a", "m3d-prostate", dice=0.99, ids=phantoms, quality=found_failures(9, 1, 1, 9, 0.2))
    scores = write_run(tmp_path / "runs" / "b", dice=0.98) / "scores.json"
    scores.write_text(json.dumps(json.loads(scores.read_text()) | {"cases": [{"id": phantoms[0]}]}))
    write_run(tmp_path / "runs" / "c", overrides=["train.seed=1"], dice=0.91)
    runs = find_runs([tmp_path / "runs"])
    markdown, data = reproduce.write_tables(m3d, runs, tmp_path / "out", "m3d")
    content = json.loads(data.read_text())
    assert [row["run"] for row in content["phantoms"]] == ["a", "b"]
    assert [row["run"] for row in content["runs"]] == ["c"]
    real, _, apart = markdown.read_text().partition("## Phantoms (no real data)")
    assert "| **ours**: m3d-hippocampus | 0.910 ± 0.020 | 8,768 | - | - |" in real
    assert "0.99" not in real and "0.98" not in real and "| prostate | ours | - |" in real
    assert "| a | m3d-prostate |" in apart and "| 0.990 ± 0.020 | 1.000 ± 0.030 |" in apart and "| c |" not in apart
    prostate = reproduce.missing_runs(m3d, tmp_path / "task05_prostate", runs)
    assert "prostate-2level" in [planned.id for planned in prostate]


def test_missing_is_what_no_run_has_up_to_seeds(m3d, tmp_path):
    write_run(tmp_path / "a", "m3d-hippocampus-fast", ["train.seed=1"])
    write_run(tmp_path / "b", "m3d-hippocampus-native", ["train.steps=10"])
    planned = [run.id for run in m3d.plan if run.task == "hippocampus"]
    missing = reproduce.missing_runs(m3d, tmp_path / "task04_hippocampus", find_runs([tmp_path]))
    assert [run.id for run in missing] == [id for id in planned if id != "hippocampus-fast"]


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
    assert {"written", "comparison", "ablation", "quality", "runs", "phantoms"} == set(content)


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
[[runs]]
id = "large"
task = "phantom"
recipe = "{recipe}"
overrides = ["train.steps=1000000"]
trained = false
"""
    )
    return tmp_path / "tiny.toml"


@pytest.fixture
def phantoms(tmp_path):
    return write_phantoms(tmp_path / "Phantoms", 5, seed=0, size=(12, 13, 14))


def fail(*_, **__):
    raise AssertionError("trained again")


def test_missing_runs_are_made_once(tiny_paper, phantoms, tmp_path, monkeypatch):
    # A model of one step has no line that falls for certain.
    monkeypatch.setattr(
        control, "calibrate", lambda *_, **__: Calibration(0.8, 0.0035, 1.0, -57.0, -0.9, 6, 0, "Dice on NQM")
    )
    paper, out = load_paper(tiny_paper), tmp_path / "out"
    assert reproduce.run_missing(paper, phantoms, out) == [out / "runs" / "small"]
    folder = out / "runs" / "small"
    scores = json.loads((folder / "scores.json").read_text())
    assert (scores["samples"], scores["num_cases"], scores["comparison"]["samples"]) == (10, 2, 1)
    assert json.loads((folder / "qc.json").read_text())["detection"]["counts"]["all"]["cases"] == 2 * 4

    monkeypatch.setattr(reproduce, "train", fail)
    runs = reproduce.finished_runs(paper, out)
    assert reproduce.run_missing(paper, phantoms, out, runs) == []
    assert [planned.id for planned in reproduce.missing_runs(paper, phantoms, runs)] == ["large"]
    _, data = reproduce.write_tables(paper, runs, out, "tiny")
    content = json.loads(data.read_text())
    assert content["phantoms"][0]["soft_dice"][0] == pytest.approx(scores["mean"]["soft_dice"])
    assert content["ablation"][0]["ours"] == {}  # the paper's data are real

    # Found under --runs it is not trained either, and nothing is written beside it.
    (folder / "qc.json").unlink()
    command = ["reproduce", str(tiny_paper), "--data", str(phantoms), "--train", "--runs", str(out / "runs")]
    assert main([*command, "-o", str(tmp_path / "other")]) == 0
    assert not (tmp_path / "other" / "runs").exists() and not (folder / "qc.json").exists()


def test_no_threshold_is_said_and_other_errors_are_errors(tiny_paper, phantoms, tmp_path, monkeypatch, capsys):
    def refuse(error):
        def calibrate(*_, **__):
            raise error

        monkeypatch.setattr(control, "calibrate", calibrate)

    paper, out = load_paper(tiny_paper), tmp_path / "out"
    refuse(NoThreshold("Dice must fall with NQM"))
    reproduce.run_missing(paper, phantoms, out)
    assert "no quality control of small: Dice must fall with NQM" in capsys.readouterr().out
    refuse(ValueError("phantom_001 cannot be read"))
    with pytest.raises(ValueError, match="phantom_001 cannot be read"):
        reproduce.run_missing(paper, phantoms, out, reproduce.finished_runs(paper, out))


def test_a_folder_of_another_recipe_is_named_before_anything_is_trained(tiny_paper, phantoms, tmp_path, monkeypatch):
    paper, out = load_paper(tiny_paper), tmp_path / "out"
    write_run(out / "runs" / "small", paper.plan[0].recipe, ["train.lr=0.5"])
    monkeypatch.setattr(reproduce, "train", fail)
    runs = reproduce.finished_runs(paper, out)
    assert [planned.id for planned in reproduce.missing_runs(paper, phantoms, runs)] == ["small", "large"]
    with pytest.raises(
        ValueError, match=r"small must hold a run of the planned recipe.*Move it.*train.lr: 0.5 -> 0.0032"
    ):
        reproduce.run_missing(paper, phantoms, out, runs)
