"""The table of measured volumes: numbers against the parts they come from, resume, maps."""

import dataclasses
import math
import os
import shutil

import nibabel as nib
import numpy as np
import pytest
from seg.tiny import tiny_config, tiny_model

from ncaseg.data.dataset import load_case
from ncaseg.ensemble import combine, nqm
from ncaseg.inference.case import answer, member_logits
from ncaseg.quality import table as measuring
from ncaseg.quality.artifacts import corrupt
from ncaseg.quality.table import Ensemble, Row, measure, read_table, write_table


@pytest.fixture
def ensemble():
    cfg = tiny_config()
    return Ensemble(tiny_model(cfg), cfg, samples=3, seed=5)


@pytest.fixture
def calls(monkeypatch):
    """Names the volumes that are really run."""
    seen = []

    def count(model, volume, *rest, **options):
        seen.append(volume.id)
        return answer(model, volume, *rest, **options)

    monkeypatch.setattr(measuring, "answer", count)
    return seen


def combined_of(ensemble, volume):
    members = member_logits(ensemble.model, volume, ensemble.cfg, 3, 5)
    return combine(map(volume.to_native, members), with_spread=True)


def test_row_is_nqm_and_dice_of_the_ensemble(ensemble, cases, tmp_path):
    (row,) = measure(ensemble, cases[:1], ("clean",), tmp_path / "t.csv")
    volume = load_case(cases[0], ensemble.cfg.data)
    combined = combined_of(ensemble, volume)
    assert row.nqm == nqm(combined.mean, combined.variance)
    found, truth = combined.probabilities[0] > 0.5, volume.label > 0
    assert row.hard_dice == pytest.approx(2 * (found & truth).sum() / (found.sum() + truth.sum()))
    p = combined.probabilities[0].astype(np.float64)
    assert row.soft_dice == pytest.approx(2 * p[truth].sum() / (p.sum() + truth.sum()))
    assert (row.id, row.artifact, row.image) == ("phantom_000", "clean", str(cases[0].image))


def test_artefact_is_applied_to_the_normalised_image(ensemble, cases, tmp_path):
    clean, spike = measure(ensemble, cases[:1], ("clean", "spike"), tmp_path / "t.csv")
    assert spike.artifact == "spike" and spike.nqm != clean.nqm
    volume = load_case(cases[0], ensemble.cfg.data)
    seen = dataclasses.replace(volume, image=corrupt(volume.image, "spike", seed=5, case="phantom_000"))
    combined = combined_of(ensemble, seen)
    assert spike.nqm == nqm(combined.mean, combined.variance)
    other = dataclasses.replace(ensemble, renormalise=True)
    assert measure(other, cases[:1], ("spike",), tmp_path / "u.csv")[0].nqm != spike.nqm


def test_finished_cases_are_not_run_again(ensemble, cases, tmp_path, calls):
    first = measure(ensemble, cases[:2], ("clean", "noise"), tmp_path / "t.csv")
    assert len(calls) == 4
    again = measure(ensemble, cases, ("clean", "noise"), tmp_path / "t.csv")
    assert calls[4:] == ["phantom_002"] * 2
    assert again[:4] == first  # also by way of the file
    assert len(read_table(tmp_path / "t.csv")) == 6


def test_replaced_files_and_rows_without_content_are_measured_anew(ensemble, cases, tmp_path, calls):
    image, label = (tmp_path / f"{name}.nii.gz" for name in ("phantom_000", "label"))
    shutil.copy(cases[0].image, image)
    shutil.copy(cases[0].label, label)
    case = dataclasses.replace(cases[0], image=image, label=label)

    def rows():
        return measure(ensemble, [case], ("clean", "noise"), tmp_path / "t.csv")

    first = rows()
    os.utime(image)  # the same content, at another time
    assert rows() == first and len(calls) == 2
    shutil.copy(cases[1].image, image)
    second = rows()
    assert len(calls) == 4 and all(a.nqm != b.nqm for a, b in zip(first, second, strict=True))
    shutil.copy(cases[1].label, label)
    third = rows()
    assert len(calls) == 6 and third[0].nqm == second[0].nqm and third[0].hard_dice != second[0].hard_dice
    lines = (tmp_path / "t.csv").read_text().splitlines()  # as versions without the column wrote it
    (tmp_path / "t.csv").write_text("".join(f"{line.rpartition(',')[0]}\n" for line in lines))
    assert read_table(tmp_path / "t.csv") == [dataclasses.replace(row, content="") for row in third]
    assert rows() == third == read_table(tmp_path / "t.csv") and len(calls) == 8


def test_interruption_keeps_what_was_measured(ensemble, cases, tmp_path, monkeypatch):
    def interrupt(model, volume, *rest, **options):
        if volume.id == "phantom_001":
            raise KeyboardInterrupt
        return answer(model, volume, *rest, **options)

    monkeypatch.setattr(measuring, "answer", interrupt)
    with pytest.raises(KeyboardInterrupt):
        measure(ensemble, cases, ("clean",), tmp_path / "t.csv")
    assert [row.id for row in read_table(tmp_path / "t.csv")] == ["phantom_000"]
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]


def test_cases_without_label_have_an_nqm_only(ensemble, cases, tmp_path):
    unlabelled = [dataclasses.replace(cases[0], label=None)]
    (row,) = measure(ensemble, unlabelled, ("clean",), tmp_path / "t.csv")
    assert row.nqm > 0 and row.hard_dice is None and row.soft_dice is None
    assert read_table(tmp_path / "t.csv") == [row]


def test_maps_are_the_variance_in_the_geometry_of_the_scan(ensemble, cases, tmp_path, calls):
    measure(ensemble, cases[:1], ("clean", "noise"), tmp_path / "t.csv")
    measure(ensemble, cases[:1], ("clean", "noise"), tmp_path / "t.csv", maps=tmp_path / "maps", png=True)
    assert len(calls) == 3  # the clean volume once more, for its map
    written = nib.load(tmp_path / "maps" / "phantom_000_variance.nii.gz")
    volume = load_case(cases[0], ensemble.cfg.data)
    variance = answer(ensemble.model, volume, ensemble.cfg, 3, 5, with_spread=True).variance
    assert written.get_data_dtype() == np.float32
    np.testing.assert_array_equal(np.asarray(written.dataobj), variance)
    assert np.array_equal(written.affine, nib.load(cases[0].image).affine)
    names = {path.name for path in (tmp_path / "maps").iterdir()}
    assert names == {f"phantom_000_{part}" for part in ("variance.nii.gz", "overlay.png", "variance.png")}
    measure(ensemble, cases[:1], ("clean",), tmp_path / "t.csv", maps=tmp_path / "maps")
    assert len(calls) == 3


def test_table_comes_back(tmp_path):
    rows = [Row("a", "clean", 0.1, 0.9, 0.8, "x/a.nii", "0f"), Row("b", "clean", math.inf, None, None, "x/b,c.nii")]
    write_table(tmp_path / "t.csv", rows, threshold=0.5)
    assert read_table(tmp_path / "t.csv") == rows
    lines = (tmp_path / "t.csv").read_text().splitlines()
    assert lines[0] == "id,artifact,nqm,hard_dice,soft_dice,flagged,image,content"
    assert [line.split(",")[5] for line in lines[1:]] == ["no", "yes"]


def test_foreign_table_is_refused(tmp_path):
    (tmp_path / "t.csv").write_text("id,score\na,1\n")
    with pytest.raises(ValueError, match="must be a table of this command"):
        read_table(tmp_path / "t.csv")


def test_conditions_tell_ensembles_apart(ensemble):
    cfg = ensemble.cfg
    others = [
        dataclasses.replace(ensemble, samples=4),
        dataclasses.replace(ensemble, seed=6),
        dataclasses.replace(ensemble, rule="median"),
        dataclasses.replace(ensemble, renormalise=True),
        dataclasses.replace(ensemble, model=tiny_model(cfg)),
    ]
    others[-1].model.levels[0].out_weight.data[0, 0] += 1e-6
    assert all(other.conditions() != ensemble.conditions() for other in others)
    assert dataclasses.replace(ensemble, model=tiny_model(cfg)).conditions() == ensemble.conditions()
