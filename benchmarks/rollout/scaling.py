"""The kernel on 1, 2, 4, ... threads.

python -m benchmarks.rollout.scaling          every case, forward and training; rows into a record of their own
python -m benchmarks.rollout.scaling --cases A --seconds 1 --no-record
"""

import argparse
import contextlib
from collections.abc import Iterator

import torch

from benchmarks.harness import measure, record
from benchmarks.harness.cases import Case, load_cases
from benchmarks.harness.tables import scaling_table
from benchmarks.rollout.providers import PROVIDERS, make


def thread_counts(most: int) -> list[int]:
    """Powers of two up to `most`, and `most` itself."""
    return sorted({most, *(2**i for i in range(most.bit_length()) if 2**i <= most)})


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def scaling_rows(case: Case, *, seconds: float) -> list[dict]:
    """Time the kernel on each count of threads, one count after the other: rows with metric "throughput-<n>threads"."""
    module, state = make("kernel", case), PROVIDERS["kernel"].state(case)
    rows = []
    for mode in measure.MODES:
        for count in thread_counts(torch.get_num_threads()):
            with torch_threads(count):
                call = measure.make_call(module, state, mode)
                timing = measure.time_interleaved({"kernel": call}, seconds=seconds)
            rows += [row | {"metric": metric(count)} for row in record.timing_rows(case, mode, timing)]
    return rows


def metric(threads: int) -> str:
    return f"throughput-{threads}threads"


def main() -> None:
    cases = load_cases()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=cases, default=list(cases))
    parser.add_argument("--seconds", type=float, default=3.0, help="time of each case, mode and count (default: 3)")
    parser.add_argument("--no-record", action="store_true", help="print only")
    options = parser.parse_args()
    rows = [row for name in options.cases for row in scaling_rows(cases[name], seconds=options.seconds)]
    print(scaling_table(rows))
    if not options.no_record:
        print(f"\nrecorded in {record.write(rows, record.describe_run())}")


if __name__ == "__main__":
    main()
