"""The torture in short: each part runs and keeps its promise a few times; `make torture` runs it whole."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long


@pytest.mark.parametrize("part", ["kills-training", "kills-prediction", "soak"])
def test_a_part_keeps_its_promise(part):
    command = [sys.executable, str(Path(__file__).with_name("run.py")), part, "--short"]
    done = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"| {part} |" in done.stdout
