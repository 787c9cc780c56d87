"""The most memory that one call of a provider takes, on top of parameters and state.

    python -m benchmarks.rollout.peak CASE PROVIDER MODE --threads N      prints bytes; `run` starts it for each figure

The case runs twice after a small one that warms up; the second call counts. So what stays allocated between calls
counts, and what compiling took at its worst does not.
"""

import argparse
from dataclasses import replace

import torch

from benchmarks.harness import measure, peak
from benchmarks.harness.cases import load_cases
from benchmarks.rollout.providers import PROVIDERS, make

WARM_UP_CELLS = 16  # per axis


def peak_bytes(case: str, provider: str, mode: str, *, threads: int) -> int:
    """Measure in a fresh process; RuntimeError says why that failed."""
    return int(peak.run_alone(__spec__.name, case, provider, mode, "--threads", threads))


def measure_here(case_name: str, provider_name: str, mode: str, threads: int) -> int:
    """Measure in this process, in which nothing else may have run."""
    torch.set_num_threads(threads)
    case, provider = load_cases()[case_name], PROVIDERS[provider_name]
    small = replace(case, size=(WARM_UP_CELLS,) * len(case.size))
    warm_up, call = (measure.make_call(make(provider_name, each), provider.state(each), mode) for each in (small, case))
    return peak.resident_peak(warm_up, call, rehearsals=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case")
    parser.add_argument("provider")
    parser.add_argument("mode", choices=("forward", "training"))
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    print(measure_here(options.case, options.provider, options.mode, options.threads))


if __name__ == "__main__":
    main()
