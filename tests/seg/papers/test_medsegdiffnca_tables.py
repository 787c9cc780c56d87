"""The tables of MedSegDiffNCA: numbers from files of runs alone, "not run" elsewhere; a tiny plan run for real."""

import json

import pytest

from ncaseg.cli.main import main
from ncaseg.config import load_recipe, to_toml
from ncaseg.data.lesions import write_lesions
from ncaseg.data.split import make_split, save_split
from ncaseg.models import build_model
from ncaseg.papers import medsegdiffnca_tables, reproduce
from ncaseg.papers.paper import load_paper
from ncaseg.papers.runs import find_runs, of_paper

TINY = [
    "model.channels=8",
    "model.hidden=8",
    "model.steps=[1, 1]",
    "data.size=[16, 16, 1]",
    "data.validation_fraction=0.5",
    "diffusion.sample_steps=2",
    "train.steps=1",
    "train.validate_every=0",
]


def write_run(folder, recipe, overrides=(), *, dice, author=0.5):
    """A folder as a finished run of pictures leaves it, with given scores."""
    folder.mkdir(parents=True)
    (folder / "recipe.toml").write_text(to_toml(load_recipe(recipe, overrides)))
    save_split(folder / "split.json", make_split("abcd", 0.25, seed=0))
    scores = {"num_cases": 1, "samples": 10, "seed": 0, "data": "ISIC2018", "conditions": {"sampler": "a sampler"}}
    for key, value in (("mean", dice), ("std", 0.02)):
        scores[key] = {"soft_dice": value, "hard_dice": value, "iou": value - 0.01}
    scores["protocols"] = {"E-AUTHOR": {"dice": author, "iou": author - 0.1}}
    scores["floors"] = {"otsu": {"dice": 0.58, "iou": 0.47, "isic": 0.3}}
    scores["made"] = {"commit": "abc", "machine": "a CPU"}
    (folder / "scores.json").write_text(json.dumps(scores))


@pytest.fixture(scope="module")
def paper():
    return load_paper("medsegdiffnca")


def test_without_runs_the_table_says_so(paper):
    text = medsegdiffnca_tables.to_markdown(paper, medsegdiffnca_tables.make_tables(paper, []))
    assert "| MedSegDiff-v2 | 46M | 0.9320 | 0.8530 | - | - | - | - | - |" in text
    assert "| MedSegDiffNCA | 139k | 0.6373 | 0.5119 | 139,648 | not run | - | - | - |" in text
    assert "| MultiCBAM-MedSegDiffNCA | 412k | 0.8784 | 0.7886 | 412,236 | not run | - | - | - |" in text
    assert "| eps, linear, without L_RGB | 17,600 | not run | - | - | - |" in text
    assert "No finished run was found." in text


def test_printed_pairs_but_one_can_be_means_over_pictures(paper):
    impossible = [r["model"] for r in paper.comparison["rows"] if r["dice"] > 2 * r["iou"] / (1 + r["iou"])]
    assert impossible == ["MedSegDiff-v2"]


def test_runs_stand_where_they_belong(paper, tmp_path):
    write_run(tmp_path / "a", "medsegdiff-multicbam", ["train.seed=3"], dice=0.85)
    write_run(tmp_path / "b", "medsegdiff-ablation", ["diffusion.target=eps"], dice=0.61)
    write_run(tmp_path / "c", "medsegdiff-ablation", ["train.lr=0.5"], dice=0.11)
    write_run(tmp_path / "d", "m3d-hippocampus", dice=0.9)
    write_run(tmp_path / "e", "medsegdiff-ours", dice=0.7)
    tables = medsegdiffnca_tables.make_tables(paper, of_paper(paper, find_runs([tmp_path])))
    assert [row["run"] for row in tables["runs"]] == ["a", "b", "c", "e"]
    text = medsegdiffnca_tables.to_markdown(paper, tables)
    ours = "412,236 | 0.8500 ± 0.0200 | 0.8400 ± 0.0100 | 0.5000 | 0.4000 |"
    assert f"| MultiCBAM-MedSegDiffNCA | 412k | 0.8784 | 0.7886 | {ours}" in text
    assert "| eps, linear, with L_RGB | 17,600 | 0.6100 ± 0.0200 |" in text
    assert "| x0, linear, with L_RGB | 17,600 | not run |" in text
    assert "| c: medsegdiff-ablation (train.lr: 0.006 -> 0.5) | 17,600 | 0.1100 ± 0.0200 |" in text
    assert "| e: medsegdiff-ours | 412,236 | 0.7000 ± 0.0200 |" in text
    assert "| a | 0.5800 / 0.4700 |" in text and "| a | medsegdiff-multicbam | ISIC2018 | none |" in text


def test_ablation_changes_what_its_rows_say(paper):
    words = {"target": ("x0", "v", "eps"), "schedule": ("linear", "cosine")}
    rows = [run for run in paper.plan if run.group == "ablation"]
    assert len({run.overrides for run in rows}) == len(rows) == 7
    for run in rows:
        how = load_recipe(run.recipe, run.overrides).diffusion
        target, schedule, loss = run.variant.split(", ")
        assert target in words["target"] and schedule in words["schedule"]
        assert (how.target, how.schedule, how.image_weight > 0) == (target, schedule, loss == "with L_RGB")


def test_published_rows_are_planned_with_their_parameters(paper):
    found = {}
    for run in paper.plan:
        if run.group == "table 1":
            found[run.variant] = sum(p.numel() for p in build_model(load_recipe(run.recipe).model).parameters())
    printed = {row["model"]: row["parameters"] for row in paper.comparison["rows"] if row["model"] in found}
    assert {model: f"{count // 1000}k" for model, count in found.items()} == printed


def test_a_tiny_plan_is_run_scored_and_drawn(tmp_path, capsys):
    data = write_lesions(tmp_path / "lesions", 4, seed=0, size=(20, 20))
    text = to_toml(load_recipe("medsegdiff-small", TINY)).replace('"medsegdiff-small"', '"lesions-tiny"')
    (tmp_path / "lesions-tiny.toml").write_text(text)
    (tmp_path / "tiny.toml").write_text(
        f"""
form = "masks"
title = "A title"
citation = "Somebody"
metric = "hard_dice"
notes = []
[comparison]
source = "table 1"
rows = [{{ model = "theirs", dice = 0.9, iou = 0.85, parameters = "5k" }}]
[ablation]
source = "none"
[[runs]]
id = "tiny"
task = "lesions"
recipe = "{tmp_path / "lesions-tiny.toml"}"
group = "table 1"
variant = "theirs"
"""
    )
    out = tmp_path / "out"
    command = ["reproduce", str(tmp_path / "tiny.toml"), "-o", str(out), "--data", str(data)]
    assert main([*command, "--train"]) == 0, capsys.readouterr().err
    scores = json.loads((out / "runs" / "tiny" / "scores.json").read_text())
    assert scores["data"] == "lesions" and set(scores["floors"]) == {"everything", "otsu", "constant"}
    table = json.loads((out / "tiny.json").read_text())
    assert table["comparison"][0]["ours"]["dice"][0] == pytest.approx(scores["mean"]["hard_dice"])
    pictures = sorted(path.name for path in (out / "pictures").iterdir())
    assert len(pictures) == 2 and all(f"](pictures/{name})" in (out / "tiny.md").read_text() for name in pictures)
    before = {path: path.stat().st_mtime_ns for path in (out / "pictures").iterdir()}
    assert main(command) == 0  # nothing is trained or drawn again
    assert {path: path.stat().st_mtime_ns for path in (out / "pictures").iterdir()} == before
    assert reproduce.missing_runs(load_paper(tmp_path / "tiny.toml"), data, find_runs([out / "runs"])) == []
