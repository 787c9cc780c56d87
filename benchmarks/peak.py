"""The most memory that one call takes, on top of parameters and state: measured in a process of its own.

python benchmarks/peak.py CASE PROVIDER MODE --threads N      prints bytes; used by run.py through `peak_bytes`

Libraries, thread pools and the compiler's own code are loaded first, by a call on a small grid. Then the resident
memory is read and the case runs twice; the figure is the high-water mark of the second call. So what stays allocated
between calls counts, and what compiling took at its worst does not.
"""

import argparse
import ctypes
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

CLEAR_REFS, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
RESET_HIGH_WATER_MARK = "5"  # proc(5)
WARM_UP_CELLS = 16  # per axis


def is_available() -> bool:
    """Linux only: elsewhere a process cannot reset its high-water mark."""
    return CLEAR_REFS.exists()


def peak_bytes(case: str, provider: str, mode: str, *, threads: int) -> int:
    """Measure in a fresh process.

    Raises:
        RuntimeError: the process failed; the message ends with what it said.
    """
    command = [sys.executable, __file__, case, provider, mode, "--threads", str(threads)]
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    if child.returncode != 0:
        raise RuntimeError(f"peak memory of {case}, {provider}, {mode} could not be measured:\n{child.stderr[-2000:]}")
    return int(child.stdout)


def measure_here(case_name: str, provider_name: str, mode: str, threads: int) -> int:
    """Measure in this process, in which nothing else may have run."""
    import measure
    import torch
    from cases import load_cases
    from providers import PROVIDERS, make

    torch.set_num_threads(threads)
    case, provider = load_cases()[case_name], PROVIDERS[provider_name]
    small = replace(case, size=(WARM_UP_CELLS,) * len(case.size))
    warm_up, call = (measure.make_call(make(provider_name, each), provider.state(each), mode) for each in (small, case))
    return resident_peak(warm_up, call, rehearsals=1)


def resident_peak(warm_up: Callable[[], object], call: Callable[[], object], *, rehearsals: int = 0) -> int:
    """The most resident memory of a call beyond what was there before its rehearsals; the warm-up is a small one."""
    warm_up()
    ctypes.CDLL(None).malloc_trim(0)  # what the allocator still holds of the small call would hide that much of this
    before = read_status("VmRSS")
    for _ in range(rehearsals):
        call()
    CLEAR_REFS.write_text(RESET_HIGH_WATER_MARK)
    call()
    return read_status("VmHWM") - before


def read_status(field: str) -> int:
    """Read a size of this process from the system, in bytes."""
    found = re.search(rf"{field}:\s+(\d+) kB", STATUS.read_text())
    assert found is not None, f"{STATUS} has no {field}"
    return 1024 * int(found[1])


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
