"""The whole of quality control: threshold from calibration, flags, counts, and files that belong together."""

import csv
import json

import pytest
from PIL import Image
from seg.tiny import tiny_config, tiny_model

from ncaseg.cli.main import main
from ncaseg.config import with_reading
from ncaseg.data.phantom import write_phantoms
from ncaseg.quality import control
from ncaseg.quality.table import Ensemble, Row, read_table


@pytest.fixture
def ensemble():
    cfg = tiny_config()
    return Ensemble(tiny_model(cfg), cfg, samples=2, seed=0)


@pytest.fixture
def scores(monkeypatch):
    """Replaces the measuring: NQM rises with the number of the case and the artefact, and Dice falls with it."""
    offsets = {"clean": 0.0, "noise": 0.1, "spike": 0.2, "ghosting": 0.3}

    def fake(ensemble, cases, kinds, table, *, maps=None, png=False):
        rows = []
        for case in cases:
            for kind in kinds:
                value = 0.05 * int(case.id[-1]) + offsets[kind] + 0.05
                rows.append(Row(case.id, kind, value, 1 - value, 0.9 - value, str(case.image)))
        control.write_table(table, rows)
        return rows

    monkeypatch.setattr(control, "measure", fake)


def test_threshold_of_the_calibration_flags(ensemble, cases, tmp_path, scores):
    result = control.run_qc(ensemble, tmp_path / "q.csv", cases=cases, calibration_cases=cases[:2], target=0.88)
    assert result.threshold == pytest.approx(0.12)  # Dice = 1 - NQM
    assert [row.id for row in result.flagged] == ["phantom_002"]  # 0.05, 0.10 and 0.15
    report = json.loads((tmp_path / "q.json").read_text())
    assert report == result.report
    assert report["threshold_from"] == "calibration"
    assert report["calibration"]["points"] == 4
    assert [row.artifact for row in read_table(tmp_path / "q.calibration.csv")] == ["clean", "spike"] * 2
    text = (tmp_path / "q.csv").read_text()
    assert text.count(",no,") == 2 and text.count(",yes,") == 1
    with Image.open(tmp_path / "q.calibration.png") as picture:
        assert picture.format == "PNG"


def test_soft_dice_gives_its_own_threshold(ensemble, cases, tmp_path, scores):
    options = {"calibration_cases": cases, "target": 0.8, "metric": "soft_dice"}
    assert control.run_qc(ensemble, tmp_path / "q.csv", **options).threshold == pytest.approx(0.1)
    with pytest.raises(ValueError, match="metric must be one of hard_dice, soft_dice; got 'dice'"):
        control.run_qc(ensemble, tmp_path / "q.csv", **options | {"metric": "dice"})


def test_failures_are_counted_per_artefact(ensemble, cases, tmp_path, scores):
    """NQM: clean 0.05 to 0.15, noise to 0.25, spike to 0.35, ghosting to 0.45; failed above 0.2, flagged above 0.32."""
    result = control.run_qc(ensemble, tmp_path / "q.csv", evaluation_cases=cases, threshold=0.32)
    counts = result.report["detection"]["counts"]
    assert list(counts) == ["clean", "noise", "spike", "ghosting", "all"]
    found = {kind: [entry[name] for name in ("TP", "FP", "FN", "TN")] for kind, entry in counts.items()}
    assert found["clean"] == [0, 0, 0, 3]
    assert found["spike"] == [1, 0, 2, 0]
    assert found["ghosting"] == [3, 0, 0, 0]
    assert [sum(values) for values in zip(*(found[kind] for kind in list(counts)[:-1]), strict=True)] == found["all"]
    table = control.format_detection(result.report["detection"])
    assert "spike          3     1     0     2     0          33.3 %" in table
    assert "detection_rate = TP / (TP + FN), of the failures" in table
    assert result.report["threshold_from"] == "argument"
    assert (tmp_path / "q.detection.png").exists()
    assert (tmp_path / "q.detection.csv").read_text().count(",yes,") == 4


def test_detection_without_threshold_is_refused(ensemble, cases, tmp_path, scores):
    with pytest.raises(ValueError, match="needs a threshold: give --threshold, or --calibrate"):
        control.run_qc(ensemble, tmp_path / "q.csv", evaluation_cases=cases)


def test_without_threshold_nothing_is_flagged(ensemble, cases, tmp_path, scores):
    result = control.run_qc(ensemble, tmp_path / "q.csv", cases=cases)
    assert result.threshold is None and result.flagged == []
    assert (tmp_path / "q.csv").read_text().count(",,") == 3
    assert control.format_result(result).splitlines()[1] == "phantom_000    0.0500  -"


def test_calibration_of_an_earlier_call_is_kept(ensemble, cases, tmp_path, scores):
    first = control.run_qc(ensemble, tmp_path / "q.csv", calibration_cases=cases, target=0.9)
    second = control.run_qc(ensemble, tmp_path / "q.csv", cases=cases)
    assert second.threshold == first.threshold
    assert second.report["calibration"] == first.report["calibration"]


def test_threshold_of_the_checkpoint(ensemble, cases, tmp_path, scores):
    report = control.run_qc(ensemble, tmp_path / "a.csv", calibration_cases=cases, target=0.9).report
    stored = json.loads(json.dumps(control.to_store(report)))
    result = control.run_qc(ensemble, tmp_path / "b.csv", cases=cases, stored=stored)
    assert result.threshold == report["threshold"]
    assert result.report["threshold_from"] == "checkpoint"
    with pytest.raises(ValueError, match=r"threshold is for samples and rule \(10, 'mean-logit'\); got \(2, "):
        control.run_qc(ensemble, tmp_path / "c.csv", cases=cases, stored=stored | {"samples": 10})


def test_other_conditions_are_not_mixed(ensemble, cases, tmp_path, scores):
    control.run_qc(ensemble, tmp_path / "q.csv", cases=cases)
    other = Ensemble(ensemble.model, ensemble.cfg, samples=5, seed=0)
    with pytest.raises(
        ValueError, match="q.json holds results of other conditions; choose another file. samples: 2 -> 5"
    ):
        control.run_qc(other, tmp_path / "q.csv", cases=cases)


def test_files_read_in_another_way_are_other_conditions(ensemble, cases, tmp_path, scores):
    white = Ensemble(ensemble.model, with_reading(ensemble.cfg, ["data.white=4095"]), samples=2, seed=0)
    for number, (first, second) in enumerate(((ensemble, white), (white, ensemble))):
        table = tmp_path / f"{number}.csv"
        control.run_qc(first, table, cases=cases)
        control.run_qc(first, table, cases=cases)
        with pytest.raises(ValueError, match=r"holds results of other conditions.* data\.white: (None|4095)"):
            control.run_qc(second, table, cases=cases)


def test_foreign_files_are_refused(ensemble, tmp_path):
    with pytest.raises(ValueError, match="out must be a file ending in .csv"):
        control.run_qc(ensemble, tmp_path / "q.txt")
    (tmp_path / "q.json").write_text("[]")
    with pytest.raises(ValueError, match="q.json must be a report of this command"):
        control.run_qc(ensemble, tmp_path / "q.csv")


def test_tables_hold_the_real_measurements(ensemble, cases, tmp_path):
    """No stand-in for the measuring."""
    expected = control.measure(ensemble, cases, control.EVALUATION_KINDS, tmp_path / "expected.csv")
    middle = sorted(row.nqm for row in expected)[len(expected) // 2]
    result = control.run_qc(ensemble, tmp_path / "q.csv", cases=cases[:1], evaluation_cases=cases, threshold=middle)
    assert read_table(tmp_path / "q.detection.csv") == expected
    assert result.rows == expected[:1]
    counts = result.report["detection"]["counts"]["all"]
    assert counts["TP"] + counts["FP"] == sum(row.nqm > middle for row in expected) > 0
    assert counts["TP"] + counts["FN"] == sum(row.hard_dice < 0.8 for row in expected) > 0


@pytest.mark.parametrize("name", ["m3d-hippocampus-native", "m3d-hippocampus-2level-native"])
def test_trained_models_bring_their_threshold(tmp_path, name):
    images = write_phantoms(tmp_path, 1, seed=0, size=(16, 18, 16)) / "imagesTr"
    code = main(["qc", name, str(images), "-o", str(tmp_path / "qc.csv")])
    (row,) = csv.DictReader((tmp_path / "qc.csv").read_text().splitlines())
    assert row["flagged"] == ("yes" if code == 3 else "no")
    report = json.loads((tmp_path / "qc.json").read_text())
    assert report["threshold_from"] == "checkpoint" and 0 < report["threshold"] < 1
