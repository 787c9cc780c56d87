"""The most memory that one call takes: measured in a process of its own, in which nothing else has run.

Libraries, thread pools and the compiler's own code are loaded first, by a call on a small grid. Then the resident
memory is read, and the figure is the high-water mark of a later call on top of it.
"""

import ctypes
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.harness.source import ROOT

CLEAR_REFS, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
RESET_HIGH_WATER_MARK = "5"  # proc(5)


def is_available() -> bool:
    """Linux only: elsewhere a process cannot reset its high-water mark."""
    return CLEAR_REFS.exists()


def run_alone(module: str, *arguments: object) -> str:
    """Run a module of the benchmarks in a fresh process; return what it prints.

    Raises:
        RuntimeError: the process failed; the message ends with what it said.
    """
    command = [sys.executable, "-m", module, *map(str, arguments)]
    child = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if child.returncode != 0:
        raise RuntimeError(f"{' '.join(command[2:])} failed:\n{child.stderr[-2000:]}")
    return child.stdout


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
