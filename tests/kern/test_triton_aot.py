"""The committed tables of what the Triton kernels need, against the present kernels; and some kernels compiled here."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="needs the package triton, to compile kernels")

ROOT = Path(__file__).parents[2]
# A process of its own: in this one, Triton's interpreter has taken the place of its compiler.
SCRIPT = """
import json
from benchmarks.gpu import aot
expected = {target: aot.expected(target) for target in aot.TARGETS if aot.table_path(target).exists()}
wanted = [("_nca_norm_fwd_kernel__fold", "A fp32"), ("_nca_step_fwd_kernel__small", "A-nonorm bf16"),
          ("_nca_perceive_fwd_kernel__cells", "D fp32")]
compiled = []
for launch, needed_by in aot.expected("sm_90").values():
    if any(launch.name == name and problem in needed_by for name, problem in wanted):
        compiled.append({"kernel": launch.name} | aot.compile_launch(launch, "sm_90"))
print(json.dumps({
    "expected": {t: {key: needed_by for key, (_, needed_by) in found.items()} for t, found in expected.items()},
    "tables": {target: list(aot.read_table(target).values()) for target in expected},
    "compiled": compiled,
}))
"""
TARGET = "sm_90"
# Kernels that form no matrix product; perception and its gradients form one only with dense filters.
NO_PRODUCT = ("_nca_draw", "_nca_work_list", "_nca_norm", "__depthwise")
DENSE_PRODUCT = (
    "_nca_perceive_fwd_kernel__cells",
    "_nca_perceive_bwd_kernel__gather",
    "_nca_weights_bwd_kernel__filters",
)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the script says, with an empty cache, so that it compiles."""
    own = {"PYTHONPATH": os.pathsep.join([*sys.path, str(ROOT)]), "TRITON_INTERPRET": "0"}
    own["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT]
    run = subprocess.run(command, env=os.environ | own, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    said = json.loads(run.stdout.splitlines()[-1])
    if TARGET not in said["tables"]:
        pytest.skip("no table was made with this version of Triton")
    return said


def has_product(row: dict[str, Any]) -> bool:
    if any(part in row["kernel"] for part in NO_PRODUCT):
        return False
    return row["kernel"] not in DENSE_PRODUCT or "DENSE=True" in row["constants"]


def test_tables_are_up_to_date(found: dict[str, Any]) -> None:
    for target, rows in found["tables"].items():
        expected, present = set(found["expected"][target]), {row["key"] for row in rows}
        assert present == expected, f"{target}: kernels or tiles have changed: run python -m benchmarks.gpu.aot"
        assert [row["kernel"] for row in rows if "error" in row] == []


def test_no_kernel_spills_on_hopper(found: dict[str, Any]) -> None:
    spilling = [(row["kernel"], row["needed_by"], row["spills"]) for row in found["tables"][TARGET] if row["spills"]]
    assert spilling == []


def test_matrix_products_run_on_tensor_cores(found: dict[str, Any]) -> None:
    rows = found["tables"][TARGET]
    assert [row["kernel"] for row in rows if has_product(row) and "MMA" not in row["matrix"]] == []
    assert sum(map(has_product, rows)) > len(rows) / 2


def test_kernels_compile_here_without_spills(found: dict[str, Any]) -> None:
    compiled = found["compiled"]
    assert len(compiled) == 3, [row["kernel"] for row in compiled]
    for row in compiled:
        assert "error" not in row and row["spills"] == 0, row
        assert ("MMA" in row["matrix"]) != ("_nca_norm" in row["kernel"]), row
