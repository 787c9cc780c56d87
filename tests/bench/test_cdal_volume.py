"""What is measured is one sample of the volume, in as many windows as the rows say; the page is that of the records."""

from math import prod

import pytest
import torch

from benchmarks.harness import peak, record
from benchmarks.segmentation import cdal_volume
from benchmarks.segmentation.cdal_volume import HIPPOCAMPUS, LARGE, Case

TINY = (9, 8, 7)


@pytest.mark.parametrize("network", cdal_volume.NETWORKS)
def test_a_call_samples_the_volume_once(network):
    found = cdal_volume.sampling_call(Case(network, "whole", TINY))()
    assert found.shape == (1, 3, *TINY) and found.min() >= 0 and found.max() <= 1
    assert not torch.equal(found[..., 0], found[..., 1])


@pytest.mark.parametrize(
    ("way", "size", "count"),
    [
        ("whole", HIPPOCAMPUS, 1),
        ("windows, 1/2", HIPPOCAMPUS, 2 * 3 * 2),
        ("windows, 3/4", HIPPOCAMPUS, 2 * 4 * 2),
        ("windows, 1/2", LARGE, 7 * 7 * 3),
    ],
)
def test_a_row_counts_windows_and_their_cells(way, size, count):
    row = cdal_volume.row(Case("automata 3D", way, size), "time", "s", 1.0)
    cells = prod(size) if way == "whole" else 32**3
    assert row["windows"] == count and row["redundancy"] == count * cells / prod(size)
    assert (row["parameters"], row["timesteps"]) == (71_488, 2)


def test_windows_and_whole_are_samples_of_their_own(monkeypatch):
    """The way decides what is sampled: with a window shorter than the volume, the values are others."""
    monkeypatch.setitem(cdal_volume.WAYS, "small", ("cdal.window=[4,4,4]", "cdal.overlap=0.5"))
    whole, parts = (cdal_volume.sampling_call(Case("automata 3D", way, TINY))() for way in ("whole", "small"))
    assert whole.shape == parts.shape and not torch.allclose(whole, parts)


@pytest.mark.skipif(not peak.is_available(), reason="the high-water mark of a process is Linux's")
def test_a_peak_holds_the_states_at_least():
    (row,) = cdal_volume.peak_rows([Case("automata 3D", "whole", (32, 32, 32))])
    state_bytes = 4 * 32 * 32**3
    assert state_bytes < row["value"] < 100 * state_bytes


def test_times_of_a_size_are_taken_by_turns():
    cases = cdal_volume.choose(["automata 3D", "automata 2D"], [9, 8, 7])
    assert cases == [Case(f"automata {n}D", way, TINY) for n in (3, 2) for way in ("whole", "windows, 1/2")]
    rows = list(cdal_volume.time_rows(cases, seconds=0.0))
    assert [(row["network"], row["way"], row["rounds"]) for row in rows] == [(*case[:2], 3) for case in cases]
    assert all(0 < row["value_p20"] <= row["value"] <= row["value_p80"] for row in rows)


def test_the_page_compares_with_the_whole_and_leaves_out_what_is_missing():
    run = {"commit": "c0ffee", "dirty": False, "date": "2026-01-01", "machine": {"cpu": "cpu", "torch_threads": 1}}
    whole, parts = (Case("automata 2D", way, HIPPOCAMPUS) for way in ("whole", "windows, 1/2"))
    figures = [(whole, "time", 2.0), (parts, "time", 3.0), (parts, "peak", 5e6)]
    text = cdal_volume.page([run | cdal_volume.row(case, metric, "", value) for case, metric, value in figures])
    assert "| automata 2D | whole | 69,184 | 1 | 1.00 | 2.00 | 1.00 | - | - |" in text
    assert "| automata 2D | windows, 1/2 | 69,184 | 12 | 4.39 | 3.00 | 1.50 | 5 | - |" in text
    assert "128x128x64" not in text and "NCSN++ |" not in text


def test_a_page_needs_records(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(cdal_volume, "RECORDS", tmp_path)
    monkeypatch.setattr("sys.argv", ["cdal_volume.py", "table"])
    with pytest.raises(SystemExit):
        cdal_volume.main()
    assert "table needs a record" in capsys.readouterr().err


def test_the_page_is_that_of_the_records():
    rows = record.read_all(cdal_volume.RECORDS)
    written = cdal_volume.PAGE.read_text() if cdal_volume.PAGE.exists() else None
    assert written == (cdal_volume.page(rows) if rows else None)
    assert not any(row["dirty"] for row in rows)
