"""A kept run says what the run said: numbers, split, times, and the rows of the log that curves are drawn from."""

import csv
import json

import pytest

from benchmarks.harness.record import ROOT
from benchmarks.segmentation.keep_run import TOTAL, keep, lines, thin
from ncaseg.data.split import load_split, make_split, save_split
from ncaseg.papers.runs import find_runs

SPLIT = make_split([f"case_{i}" for i in range(6)], 0.5, seed=0)
SCORES = {
    "model": "x",
    "mean": {"hard_dice": 1 / 3},
    "classes": {},
    "num_cases": 2,
    "cases": [{"id": "a"}, {"id": "b"}],
}


def log(steps):
    rows = [f"{step},0.5,2.0,{0.9 if step == 7 else ''}" for step in range(1, steps + 1)]
    return "\n".join(["step,loss,seconds,val_dice", *rows]) + "\n"


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "runs" / "some-run"
    folder.mkdir(parents=True)
    (folder / "recipe.toml").write_bytes((ROOT / "python_api/ncaseg/recipes/demo.toml").read_bytes())
    (folder / "scores.json").write_text(json.dumps(SCORES))
    (folder / "log.csv").write_text(log(120))
    (folder / "loss.png").write_bytes(b"picture")
    save_split(folder / "split.json", SPLIT)
    return folder


def test_a_log_keeps_its_ends_every_fiftieth_row_and_validation():
    rows = list(csv.DictReader(thin(log(120)).splitlines()))
    assert [row["step"] for row in rows] == ["1", "7", "50", "100", "120"]
    assert [row[TOTAL] for row in rows] == ["2.0", "14.0", "100.0", "200.0", "240.0"]
    assert thin(thin(log(120))) == thin(log(120))
    assert thin("step,loss,seconds,val_dice\n") == "step,loss,seconds,val_dice\n"


def test_json_has_a_line_per_entry_and_per_case():
    text = lines(SCORES)
    assert json.loads(text) == SCORES
    assert text.splitlines()[-4:] == ['  {"id": "a"},', '  {"id": "b"}', " ]", "}"]
    assert len(text.splitlines()) == 2 + 4 + 4


def test_a_kept_run_is_found_with_all_its_numbers(run, tmp_path):
    out = keep(run, tmp_path / "records")
    (found,) = find_runs([out.parent])
    assert (found.folder, found.scores, found.split) == (out, SCORES, SPLIT)
    assert (out / "loss.png").read_bytes() == b"picture" and not (out / "qc.json").exists()
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert keep(out, tmp_path / "records") == out
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_runs_share_the_file_of_their_split(run, tmp_path):
    records = tmp_path / "records"
    keep(run, records)
    other = run.rename(run.with_name("another-run"))
    keep(other, records)
    assert [path.name for path in (records / "splits").iterdir()] == ["some-run.json"]
    assert load_split(records / "training" / "another-run" / "split.json") == SPLIT
    save_split(other / "split.json", make_split(["a", "b"], 0.5, seed=0))
    keep(other, records)
    assert len(list((records / "splits").iterdir())) == 2


def test_every_run_of_the_record_is_whole():
    folders = sorted(path for path in (ROOT / "benchmarks/records/training").iterdir() if path.is_dir())
    assert [run.folder for run in find_runs([folders[0].parent])] == folders
    assert all(thin(text) == text for text in ((folder / "log.csv").read_text() for folder in folders))
