"""Time cases x providers x modes in one process, print a table, and record the rows.

python benchmarks/run.py                        everything
python benchmarks/run.py --cases A B --providers eager kernel --seconds 5 --no-record
"""

import argparse
import sys

import measure
import record
import torch
from cases import Case, load_cases
from providers import PROVIDERS, make
from report import table


def run_case(case: Case, providers: list[str], *, seconds: float) -> list[dict]:
    """Measure one case: the providers by turns for each mode, then the bytes that each keeps."""
    torch.manual_seed(0)
    state = torch.rand(1, *case.size, case.channels)
    modules = {name: make(name, case) for name in providers}
    rows = []
    for mode in measure.MODES:
        calls = {name: measure.make_call(module, state, mode) for name, module in modules.items()}
        rows += record.timing_rows(case, mode, measure.time_interleaved(calls, seconds=seconds))
    return rows + [record.saved_row(case, name, measure.saved_bytes(m, state)) for name, m in modules.items()]


def main() -> None:
    cases = load_cases()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=cases, default=list(cases))
    parser.add_argument("--providers", nargs="+", choices=PROVIDERS, default=list(PROVIDERS))
    parser.add_argument("--seconds", type=float, default=3.0, help="time of each provider, case and mode (default: 3)")
    parser.add_argument("--no-record", action="store_true", help="print only")
    options = parser.parse_args()

    run = record.describe_run()
    rows = []
    for name in options.cases:
        print(f"measuring {cases[name]}", file=sys.stderr, flush=True)
        rows += run_case(cases[name], options.providers, seconds=options.seconds)
    print(table([run | row for row in rows]))
    if not options.no_record:
        print(f"\nrecorded in {record.write(rows, run)}")


if __name__ == "__main__":
    main()
