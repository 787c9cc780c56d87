"""Which folder of the benchmarks may import which: no circle, and the harness knows nobody."""

import ast

import pytest

from benchmarks.harness.record import ROOT

MAY_IMPORT = {
    "harness": {"harness"},
    "rollout": {"harness", "rollout"},
    "gpu": {"harness", "rollout", "segmentation", "gpu"},
    "segmentation": {"harness", "rollout", "segmentation"},
}


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_folder_imports_only_what_lies_below_it(folder):
    found = set()
    for path in (ROOT / "benchmarks" / folder).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("benchmarks"):
                found |= {node.module.split(".")[1]} if "." in node.module else {alias.name for alias in node.names}
    assert found <= MAY_IMPORT[folder]


def test_every_folder_has_its_line():
    packages = {path.parent.name for path in (ROOT / "benchmarks").glob("*/__init__.py")}
    assert packages == set(MAY_IMPORT)
