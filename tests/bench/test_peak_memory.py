"""Training on a whole volume of the prostate's size, without patches, stays within four gigabytes."""

import json
import resource
import subprocess
import sys

import pytest

from benchmarks.harness.peak import ROOT
from benchmarks.segmentation import peak_memory

ADDRESS_SPACE_BYTES = 8 * 10**9  # torch and its libraries map more than they touch


def limit_memory() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES, ADDRESS_SPACE_BYTES))


@pytest.mark.slow
def test_training_step_on_320x320x24_cells_takes_less_than_4_gigabytes() -> None:
    command = [sys.executable, "-m", peak_memory.__name__, "--only", "prostate-1level", "training", "kernel"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, preexec_fn=limit_memory)
    assert result.returncode == 0, result.stderr
    row = json.loads(result.stdout)
    kept_bytes = 4 * 16 * 320 * 320 * 24 * (20 // 4 - 1)
    assert kept_bytes < row["peak_bytes"] < 4e9


def test_eager_problem_that_does_not_fit_is_not_tried() -> None:
    row = peak_memory.measure("prostate-1level", "training", "eager")
    assert row["needs_bytes"] == 320 * 320 * 24 * 20 * peak_memory.EAGER_BYTES
    assert peak_memory.show(row) == "does not fit: 51 GB"


def test_levels_count_with_their_own_sizes() -> None:
    assert peak_memory.PROBLEMS["prostate-2level"].cell_steps() == 80 * 80 * 6 * 20 + 320 * 320 * 24 * 40


def test_eager_layers_take_the_place_of_the_rollout() -> None:
    row = peak_memory.run("hippocampus", "prediction", "eager")
    assert row["peak_bytes"] > 0 and row["steps"] == (2,)
