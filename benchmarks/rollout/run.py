"""Measure cases x providers x modes, print the tables, and record the rows.

python -m benchmarks.rollout.run                        everything
python -m benchmarks.rollout.run --cases A B --providers eager kernel --seconds 5 --no-record
python -m benchmarks.rollout.run --parts speed          one part of what is measured

The speed of the providers of a case is measured by turns in one process; peak memory in a process for each figure.
"""

import argparse
import sys

import torch

from benchmarks.harness import measure, record
from benchmarks.harness.cases import Case, load_cases
from benchmarks.harness.peak import is_available
from benchmarks.harness.report import report
from benchmarks.rollout import flops
from benchmarks.rollout.peak import peak_bytes
from benchmarks.rollout.providers import PROVIDERS, make
from benchmarks.rollout.scaling import scaling_rows

MIB = 2**20
PARTS = ("speed", "peak", "scaling")


def speed_rows(case: Case, providers: list[str], *, seconds: float) -> list[dict]:
    """Time the providers by turns in each mode, then count the bytes that each keeps."""
    made = {name: (make(name, case), PROVIDERS[name].state(case)) for name in providers}
    rows: list[dict] = []
    for mode in measure.MODES:
        calls = {name: measure.make_call(module, state, mode) for name, (module, state) in made.items()}
        rows += record.timing_rows(case, mode, measure.time_interleaved(calls, seconds=seconds))
    counted = [name for name in providers if PROVIDERS[name].saves_in_torch]
    return rows + [record.saved_row(case, name, measure.saved_bytes(*made[name])) for name in counted]


def peak_rows(case: Case, providers: list[str]) -> list[dict]:
    """Measure the memory of each provider and mode, each in a process of its own; nothing where that is impossible."""
    if not is_available():
        print("peak memory is not measured: this needs Linux", file=sys.stderr)
        return []
    return [
        record.plain_row(case, name, mode, "peak", "MiB", size / MIB)
        for mode in measure.MODES
        for name in providers
        for size in [peak_bytes(case.name, name, mode, threads=torch.get_num_threads())]
    ]


def share_rows(case: Case, rows: list[dict], flop_per_s: float) -> list[dict]:
    """Relate the kernel's throughput in `rows` to the FMA peak: executed operations per second over that peak."""
    speeds = {mode: record.values(rows).get((case.name, mode, "throughput", "kernel")) for mode in measure.MODES}
    return [
        record.plain_row(
            case,
            "kernel",
            mode,
            "fma-share",
            "FLOP executed / peak",
            1e6 * speed * flops.flop_per_cell_step(case, mode) / flop_per_s,
        )
        | {"peak_gflops": flop_per_s / 1e9}
        for mode, speed in speeds.items()
        if speed is not None
    ]


def run_case(case: Case, wanted: list[str], *, parts: list[str], seconds: float) -> list[dict]:
    """Measure the chosen parts of one case on those of the wanted providers that suit it."""
    providers = [name for name in wanted if PROVIDERS[name].suits(case)]
    has_kernel = "kernel" in providers
    rows = []
    if "speed" in parts:
        rows += speed_rows(case, providers, seconds=seconds)
        # Right after, so that both are those of the same moment of the machine.
        if has_kernel:
            rows += share_rows(case, rows, flops.fma_peak(torch.get_num_threads()))
    if "peak" in parts:
        rows += peak_rows(case, providers)
    if "scaling" in parts and has_kernel:
        rows += scaling_rows(case, seconds=seconds)
    return rows


def main() -> None:
    cases = load_cases()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=cases, default=list(cases))
    parser.add_argument("--providers", nargs="+", choices=PROVIDERS, default=list(PROVIDERS))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seconds", type=float, default=3.0, help="time of each provider, case and mode (default: 3)")
    parser.add_argument("--no-record", action="store_true", help="print only")
    options = parser.parse_args()

    run = record.describe_run()
    rows = []
    for name in options.cases:
        print(f"measuring {cases[name]}", file=sys.stderr, flush=True)
        rows += run_case(cases[name], options.providers, parts=options.parts, seconds=options.seconds)
    print(report([run | row for row in rows]))
    if not options.no_record:
        print(f"\nrecorded in {record.write(rows, run)}")


if __name__ == "__main__":
    main()
