"""Counts, peak memory, threads and plots: what stands beside the times."""

from dataclasses import replace

import pytest
import torch

from benchmarks.harness.cases import load_cases
from benchmarks.harness.measure import MODES
from benchmarks.harness.peak import is_available
from benchmarks.harness.record import plain_row
from benchmarks.rollout.flops import backward_flop, flop_per_cell_step, fma_peak, forward_flop
from benchmarks.rollout.peak import peak_bytes
from benchmarks.rollout.run import share_rows
from benchmarks.rollout.scaling import scaling_rows, thread_counts, torch_threads

CASES = load_cases()


def test_executed_operations_of_a_depthwise_case():
    case = CASES["A"]  # 16 channels, 27 taps, perception of 32, hidden 64, half of the cells
    forward = 2 * 27 * 16 + 32 * 33 + 0.5 * (2 * 64 * 32 + 2 * 64 * 16)
    assert forward_flop(case) == forward == 4992
    again = 2 * 27 * 16 + 0.5 * 2 * 64 * 32
    products = 0.5 * (4 * 64 * 32 + 4 * 64 * 16)
    assert backward_flop(case) == again + products + 2 * 32 * 32 + 2 * (2 * 27 * 16)
    assert flop_per_cell_step(case, "training") == forward_flop(case) + backward_flop(case)


def test_executed_operations_of_a_dense_case():
    case = CASES["D"]  # 32 channels, 2 filters of 9 taps, hidden 128, half of the cells and no norm
    convolution, layers = 2 * 9 * 32 * 64, 2 * 128 * (96 + 32)
    assert forward_flop(case) == 0.5 * (convolution + layers)
    assert backward_flop(case) == 0.5 * (convolution + 2 * 128 * 96 + 2 * layers + 2 * convolution)


def test_fma_peak_is_measured():
    assert fma_peak(1) > 1e9  # slower than any CPU with vectors


def test_share_is_executed_over_peak():
    case = CASES["A"]
    speed = plain_row(case, "kernel", "forward", "throughput", "", 10.0)
    (row,) = share_rows(case, [speed], 100e9)
    assert row["value"] == pytest.approx(10e6 * 4992 / 100e9)


@pytest.mark.skipif(not is_available(), reason="a process resets its high-water mark on Linux only")
def test_peak_of_a_fresh_process_holds_result_and_kept_states():
    case = CASES["A-hippocampus"]
    state_bytes = 4 * case.channels * case.cell_steps // case.steps
    size = peak_bytes(case.name, "kernel", "training", threads=1)
    # At least the result, its gradient's copy and a state per step but the first; eager PyTorch takes some 80 states.
    assert (case.steps + 1) * state_bytes < size < 40 * state_bytes


@pytest.mark.skipif(not is_available(), reason="a process resets its high-water mark on Linux only")
def test_peak_says_why_a_process_failed():
    with pytest.raises(RuntimeError, match="invalid choice"):
        peak_bytes("A", "kernel", "sideways", threads=1)


def test_threads_double_up_to_all():
    assert thread_counts(1) == [1]
    assert thread_counts(2) == [1, 2]
    assert thread_counts(6) == [1, 2, 4, 6]


def test_scaling_rows_name_the_threads_and_leave_them_as_they_were():
    before = torch.get_num_threads()
    with torch_threads(2):
        rows = scaling_rows(replace(CASES["A"], size=(9, 8, 7)), seconds=0)
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == before
    assert [(row["mode"], row["metric"]) for row in rows] == [
        (mode, f"throughput-{count}threads") for mode in MODES for count in (1, 2)
    ]
    assert all(row["provider"] == "kernel" and row["value"] > 0 for row in rows)
