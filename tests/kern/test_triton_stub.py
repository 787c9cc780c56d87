"""What the triton backend would compile on a GPU, found in a process that believes in one (tests/gpu_stub.py)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="needs the package triton, to prepare kernels for a launch")

TESTS = Path(__file__).parents[1]
# For each rollout, over grids of several sizes: the kernels that a size launches and no size before it did.
SCRIPT = """
import json
import gpu_stub
gpu_stub.install()
from helpers import Case, make_inputs, run_with_gradients

found = {}
for name, sizes, options in [
    ("A", [(24, 32, 16), (33, 47, 29), (20, 64, 64)], {"channels": 16, "hidden": 64, "options": {"norm": "batch"}}),
    ("E", [(32, 64), (47, 33), (40, 80)], {"channels": 16, "hidden": 128, "num_filters": 2}),
    ("C", [(32, 64), (47, 33), (40, 80)], {"channels": 32, "hidden": 128, "options": {"perception": "dense"}}),
]:
    known, found[name] = set(), []
    for size in sizes:
        case = Case(size=size, steps=2, batch=1, **options)
        with gpu_stub.launches() as launched:
            run_with_gradients(case, make_inputs(case), backend="triton")
        found[name].append(sorted({kernel for kernel, key in launched if (kernel, key) not in known}))
        known |= set(launched)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def compiled() -> dict[str, list[list[str]]]:
    """What the script says. In this process Triton's interpreter has taken the place of its compiler."""
    own = {"PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path]), "TRITON_INTERPRET": "0"}
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT], env=os.environ | own, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", ["A", "E", "C"])
def test_a_grid_of_another_size_compiles_nothing(name: str, compiled: dict[str, list[list[str]]]) -> None:
    first, *others = compiled[name]
    assert any("fwd" in kernel for kernel in first) and any("bwd" in kernel for kernel in first)
    assert others == [[], []]
