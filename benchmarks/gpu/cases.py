"""cases.toml beside this file: the cases of the harness at the sizes of an accelerator."""

import os
import tomllib
from dataclasses import replace
from pathlib import Path

from benchmarks.harness.cases import Case, load_cases

TINY = "NCAKERN_BENCH_TINY"
TINY_SIZES = {2: (24, 24), 3: (16, 16, 8)}


def load_gpu_cases() -> dict[str, Case]:
    """Read the runs, named like "A-256x256x256-n4"; their marks are not those of the base case.

    With NCAKERN_BENCH_TINY set, which a stand-in for a card does, they keep their names on grids of some cells.
    """
    bases = load_cases()
    cases = {}
    for name, entry in tomllib.loads(Path(__file__).with_name("cases.toml").read_text()).items():
        base, runs = bases[entry.pop("base", name)], entry.pop("runs")
        for run in runs:
            size, steps = run.split(" n")
            case_name = f"{name}-{size}-n{steps}"
            cells, count = tuple(map(int, size.split("x"))), int(steps)
            if os.environ.get(TINY):
                cells, count = TINY_SIZES[len(cells)], 2
            cases[case_name] = replace(base, name=case_name, size=cells, steps=count, mark={}, **entry)
    return cases
