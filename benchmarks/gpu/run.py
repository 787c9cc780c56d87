"""Time the cases of cases.toml on an accelerator. Stops in time, and goes on where it stopped when called again.

    python -m benchmarks.gpu.run --seconds 480                       results/<card>/<commit>.jsonl
    python -m benchmarks.gpu.run --cases A-256x256x256-n4 --providers kernel eager --seconds 100
    python -m benchmarks.gpu.run --report FILE                       its tables

Exit code 3: time is up, call again.
"""

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path

import torch

from benchmarks.gpu.cases import load_gpu_cases
from benchmarks.gpu.providers import GPU_PROVIDERS, GpuProvider
from benchmarks.gpu.report import tables
from benchmarks.gpu.roofline import Ceilings, floor_ms, measure_ceilings
from benchmarks.harness import measure, record
from benchmarks.harness.cases import Case

UNFINISHED = 3
MIB = 2**20


def run_one(case: Case, name: str, provider: GpuProvider, ceilings: Ceilings) -> list[dict]:
    """Time and peak memory of one provider on one case, forward and training; a mode that does not fit says so."""
    torch.manual_seed(0)
    state = torch.rand(1, *case.size, case.channels, device="cuda").to(provider.dtype)
    module, rows = provider.make(case), []
    for mode in measure.MODES:
        with provider.settings():
            call = measure.make_call(module, state, mode)
            try:
                peak, timing = measure.peak_bytes(call), measure.time_on_device(call)
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
                rows.append(record.failed_row(case, name, mode, "out of memory"))
                continue
        is_split = name.startswith("kernel") and provider.arithmetic == "fp32"
        floor = floor_ms(case, mode, provider.arithmetic, ceilings, is_split=is_split)
        rows += record.timing_rows(case, mode, {name: timing})
        rows.append(record.plain_row(case, name, mode, "peak", "MiB", peak / MIB))
        rows.append(record.plain_row(case, name, mode, "roofline", "floor / time", floor / timing.p50_ms))
    return rows


def main() -> None:
    cases = load_gpu_cases()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=cases, default=list(cases))
    parser.add_argument("--providers", nargs="+", choices=GPU_PROVIDERS, default=list(GPU_PROVIDERS))
    parser.add_argument("--seconds", type=float, default=480, help="start nothing new after this time (default: 480)")
    parser.add_argument("--out", type=Path, help="file of rows, to begin or to go on with")
    parser.add_argument("--page", type=Path, help="also write the tables here")
    parser.add_argument("--report", type=Path, help="measure nothing; print the tables of this file")
    options = parser.parse_args()
    if options.report:
        print(tables(record.read(options.report)))
        return
    deadline = time.monotonic() + options.seconds
    run = record.describe_run()
    path = options.out or record.RESULTS / record.slug(run["machine"]["gpu"]) / f"{run['commit']}.jsonl"
    rows = record.read(path) if path.exists() else []
    run |= {"ceilings": rows[0]["ceilings"] if rows else dataclasses.asdict(measure_ceilings())}
    done = {(row["case"], row["provider"]) for row in rows}
    # All providers of a case before the next case: an early end still leaves whole comparisons.
    todo = [(c, p) for c in options.cases for p in options.providers if (c, p) not in done]
    for case, provider in todo:
        if time.monotonic() > deadline:
            raise SystemExit(UNFINISHED)
        print(f"measuring {provider} on {cases[case]}", file=sys.stderr, flush=True)
        found = run_one(cases[case], provider, GPU_PROVIDERS[provider], Ceilings(**run["ceilings"]))
        rows += [run | row for row in found]
        record.write_file(path, "".join(json.dumps(row) + "\n" for row in rows))
        if options.page:
            record.write_file(options.page, tables(rows) + "\n")
    print(tables(rows))
    print(f"\nrecorded in {path}")


if __name__ == "__main__":
    main()
