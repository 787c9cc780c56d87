"""The parts of the GPU benchmarks that need no GPU: work counted by hand, tables, plots, settings that are put back."""

import os
import sys

import pytest
import torch

from benchmarks.gpu import kernels, margins
from benchmarks.gpu.cases import load_gpu_cases
from benchmarks.gpu.plots import points, write
from benchmarks.gpu.providers import GPU_PROVIDERS
from benchmarks.gpu.report import tables
from benchmarks.gpu.roofline import Ceilings, floor_ms, work
from benchmarks.gpu.tune import climb, neighbours
from benchmarks.harness.cases import load_cases
from benchmarks.harness.measure import Timing
from benchmarks.harness.record import failed_row, plain_row, timing_rows

CASES = load_gpu_cases()
CASE = CASES["A-256x256x256-n4"]
# Of round numbers: 1 GB/s, and 1 TFLOP/s of each kind.
CEILINGS = Ceilings(copy=1e9, fp32=1e12, tf32=1e12, bf16=1e12)
RUN = {
    "date": "2026-01-02T03:04:05+00:00",
    "commit": "0123456789",
    "dirty": True,
    "machine": {"gpu": "Some GPU"},
    "versions": {"torch": "2.11.0", "triton": "3.6.0", "cuda": "13.0"},
    "ceilings": {"copy": 4.25e12, "fp32": 5e13, "tf32": 4e14, "bf16": 8e14},
}


def test_gpu_cases_keep_the_problem_of_their_base():
    assert CASE.size == (256, 256, 256) and CASE.steps == 4 and CASE.norm == "batch"
    assert CASES["A-nonorm-40x40x40-n64"].norm == "none"
    assert CASES["C-1024x1024-n20"].hidden == load_cases()["C"].hidden
    assert all(case.mark == {} and name == case.name for name, case in CASES.items())


def test_work_of_a_cell_counted_by_hand():
    # A: 27 taps x 16 channels; 32 -> 64 on every cell for the statistics; 64 -> 16 on the half that fires.
    found = work(CASE, "forward", state_bytes=4)
    assert (found.bytes, found.vector_flop) == (3 * 64, 2 * 27 * 16)
    assert found.matrix_flop == 2 * 32 * 64 + 2 * 64 * 16 / 2
    assert work(CASE, "training", state_bytes=2).bytes == 8 * 32
    # C without norm: dense filters and both layers on the half that fires, all as matrix products.
    found = work(CASES["C-256x256-n64"], "forward", state_bytes=4)
    assert (found.bytes, found.vector_flop) == (2 * 256, 0)
    assert found.matrix_flop == 409_600 / 2


def test_floor_is_the_longest_of_the_three_times():
    floor = floor_ms(CASE, "forward", "tf32", CEILINGS, is_split=False)
    assert floor == pytest.approx(1e3 * CASE.cell_steps * 192 / 1e9)
    fast_memory = Ceilings(copy=1e15, fp32=1e12, tf32=1e12, bf16=1e12)
    dense = floor_ms(CASE, "forward", "tf32", fast_memory, is_split=False)
    assert dense == pytest.approx(1e3 * CASE.cell_steps * 5120 / 1e12)
    assert floor_ms(CASE, "forward", "fp32", fast_memory, is_split=True) == pytest.approx(3 * dense)


def test_settings_are_those_of_the_provider_and_put_back(monkeypatch):
    monkeypatch.delenv("NCAKERN_TRITON_PRECISION", raising=False)
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    with GPU_PROVIDERS["kernel-tf32"].settings():
        assert torch.backends.cuda.matmul.allow_tf32 and torch.backends.cudnn.allow_tf32
        assert os.environ["NCAKERN_TRITON_PRECISION"] == "tf32"
        with GPU_PROVIDERS["eager"].settings():
            assert not torch.backends.cuda.matmul.allow_tf32 and not torch.backends.cudnn.allow_tf32
            assert os.environ["NCAKERN_TRITON_PRECISION"] == "tf32x3"
        assert os.environ["NCAKERN_TRITON_PRECISION"] == "tf32"
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == before
    assert "NCAKERN_TRITON_PRECISION" not in os.environ


def test_tables_show_figures_ratios_and_what_did_not_fit():
    rows = [
        *timing_rows(
            CASE, "training", {"kernel": Timing(9.0, 10.0, 11.0, 30), "eager": Timing(99.0, 100.0, 101.0, 20)}
        ),
        plain_row(CASE, "kernel", "training", "roofline", "floor / time", 0.25),
        plain_row(CASE, "kernel", "training", "peak", "MiB", 100.0),
        plain_row(CASE, "eager", "training", "peak", "MiB", 4000.0),
        failed_row(CASE, "compile", "training", "out of memory"),
    ]
    text = tables([RUN | row for row in rows])
    assert "Some GPU, torch 2.11.0, Triton 3.6.0, CUDA 13.0, commit 0123456789 with changes, 2026-01-02." in text
    assert "copy 4.25 TB/s" in text and "bf16 800 TFLOP/s" in text
    assert f"| {CASE.name} | training | 6711 (10.0x) | 671 | out of memory |" in text
    assert f"| {CASE.name} | training | 25% |  | out of memory |" in text
    assert f"| {CASE.name} | training | 100 (40.0x) | 4000 | out of memory |" in text


def _grids() -> list[dict]:
    """Rows of two grids of A, larger one first, and of one of C."""
    rows = [failed_row(CASE, "compile", "forward", "out of memory")]
    for name, value in (("A-256x256x256-n4", 4.0), ("A-40x40x40-n64", 8.0), ("C-256x256-n64", 2.0)):
        for provider, factor in (("kernel", 10.0), ("eager", 1.0)):
            rows.append(plain_row(CASES[name], provider, "forward", "throughput", "", factor * value))
            rows.append(plain_row(CASES[name], provider, "training", "peak", "MiB", value / factor))
    return [RUN | row for row in rows]


def test_plots_are_drawn_over_the_cells_of_a_grid():
    lines = [p for p in points(_grids()) if (p.metric, p.problem, p.provider) == ("throughput", "A", "kernel")]
    assert [(point.cells, point.steps, point.value) for point in lines] == [(40**3, 64, 80.0), (256**3, 4, 40.0)]


def test_numbers_are_written_without_matplotlib(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert [path.name for path in write(_grids(), tmp_path)] == ["tables.md", "series.csv"]
    assert "matplotlib is not installed" in capsys.readouterr().out
    lines = (tmp_path / "series.csv").read_text().splitlines()
    assert lines[0] == "metric,mode,problem,provider,cells,steps,value" and len(lines) == 1 + 12
    assert "peak,training,C,eager,65536,64,2.0" in lines
    assert "out of memory" in (tmp_path / "tables.md").read_text()


def test_pictures_are_written_with_matplotlib(tmp_path):
    pytest.importorskip("matplotlib")
    written = write(_grids(), tmp_path)
    assert [path.name for path in written[2:]] == ["peak-training.png", "throughput-forward.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written[2:])


def test_tuning_doubles_and_halves_within_the_ranges():
    tile = {"rows": 1, "columns": 16, "warps": 4}
    assert list(neighbours(tile)) == [tile | {"rows": 2}, tile | {"warps": 8}]


def test_tuning_moves_to_the_fastest_tile_that_runs():
    # Fastest at 8 rows; 16 would be faster still, but does not run.
    times = {1: 10.0, 2: 8.0, 4: 6.0, 8: 5.0, 16: None, 32: 1.0}
    assert climb({"rows": 1}, lambda tile: times[tile["rows"]]) == ({"rows": 8}, 5.0)
    assert climb({"rows": 1}, lambda tile: 10.0 - 0.1 * (tile["rows"] > 1)) == ({"rows": 1}, 10.0)


def test_margins_name_the_worst_case_of_every_output():
    rows = [
        {"test": "a", "name": "d_state", "error": 3e-6, "plain": 1e-6, "largest": 1.0},
        {"test": "b", "name": "d_state", "error": 2e-6, "plain": 2e-6, "largest": 1.0},
        {"test": "b", "name": "out", "error": 2.0**-23, "plain": 0.0, "largest": 1.0},
        {"test": "c", "name": "mask", "error": 0.0, "plain": 0.0, "largest": 0.0},
    ]
    lines = margins.table(rows).splitlines()[2:]
    assert lines[0] == "| d_state | 2 | 3.00 | 3.0e-06 | a |"
    assert lines[1].startswith("| out | 1 | 2.00 |") and lines[2].startswith("| mask | 1 | 0.00 |")


def test_the_time_of_a_call_is_that_of_its_kernels_and_the_rest():
    found = [kernels.Kernel("step", 3 * 4, 3 * 60.0), kernels.Kernel("fold", 3, 3 * 20.0)]
    lines = kernels.table("A", "kernel", "forward", found, 100.0).splitlines()
    assert lines[0] == "A, kernel, forward: 100 us"
    assert lines[4:] == [
        "| step | 4 | 15.0 | 60 | 60% |",
        "| fold | 1 | 20.0 | 20 | 20% |",
        "| not in a kernel | | | 20 | 20% |",
    ]
