"""All tests under every condition that this machine can offer; `make test-matrix`, or the rows that are named.

python tests/matrix.py [ROW ...] [--list] [-- ARGUMENTS OF PYTEST]

    isa-*       the kernel and torch's own kernels on one instruction set
    threads-*   as many threads per process
    busy        beside a process per core that never rests
    oldest      the oldest packages that pyproject.toml allows (torch as in constraints.txt)
    newest      the newest packages there are (torch as in constraints.txt)
    python3.*   other Pythons on the path

Prints a line of a table per row: its name, its seconds, and what pytest counted. Exit code 1 if a row failed.
"""

import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONSTRAINTS = ROOT / "constraints.txt"
TORCH_INDEX = os.environ.get("TORCH_INDEX", "https://download.pytorch.org/whl/cpu")
PYTHONS = ("python3.11", "python3.12", "python3.13", "python3.14")
CORES = os.cpu_count() or 1
# What /proc/cpuinfo calls an instruction set, and the kernel's, torch's, MKL's and oneDNN's names of it.
SWITCHES = ("NCAKERN_ISA", "ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA")
INSTRUCTION_SETS = {
    "": ("scalar", "default", "SSE4_2", "SSE41"),
    " avx2 ": ("avx2", "avx2", "AVX2", "AVX2"),
    " avx512f ": ("avx512", "avx512", "AVX512", "AVX512_CORE"),
}

Row = Callable[[list[str]], str]


def rows() -> dict[str, Row]:
    """Every row by its name: a function from arguments of pytest to the counts that pytest printed."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text() if cpuinfo.exists() else ""
    found: dict[str, Row] = {}
    for flag, names in INSTRUCTION_SETS.items():
        if flag in flags:
            found[f"isa-{names[0]}"] = lambda more, names=names: run(more, **dict(zip(SWITCHES, names, strict=True)))
    for threads in (1, 2, 4):
        found[f"threads-{threads}"] = lambda more, threads=threads: run(more, threads=threads)
    found["busy"] = run_beside_busy_processes
    for name in ("oldest", "newest"):
        found[name] = lambda more, name=name: run(more, python=environment(name, sys.executable, packages(name)))
    for python in PYTHONS:
        if shutil.which(python) and python != f"python3.{sys.version_info.minor}":
            found[python] = lambda more, python=python: run(
                more, python=environment(python, python, packages("pinned"))
            )
    return found


def run(more: list[str], *, python: str = sys.executable, threads: int = 1, **variables: str) -> str:
    """Run the tests and return pytest's last line."""
    # OMP_WAIT_POLICY: threads of several processes that spin for each other would stand in each other's way.
    variables |= {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    workers = ["--numprocesses", str(max(1, CORES // threads)), "--dist", "worksteal"]
    command = [python, "-m", "pytest", "-q", "-p", "no:benchmark", *workers, *more]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | variables, stdout=subprocess.PIPE, text=True, check=False)
    lines = done.stdout.strip().splitlines() or ["no output"]
    if done.returncode != 0:
        print("\n".join(line for line in lines if line.startswith(("FAILED", "ERROR"))), file=sys.stderr)
    return lines[-1] if done.returncode == 0 else f"FAILED (exit code {done.returncode}): {lines[-1]}"


@contextmanager
def busy_processes() -> Iterator[None]:
    """As many processes as cores that compute nothing, without pause."""
    started = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(CORES)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def run_beside_busy_processes(more: list[str]) -> str:
    with busy_processes():
        return run(more)


def packages(age: str) -> list[str]:
    """What pip is asked to install beside torch."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    if age == "oldest":
        named = [one for one in project["dependencies"] if not one.startswith("torch")]
        return [one.replace(">=", "==") for one in named]
    # Eager: a folder from an earlier call holds what was the newest then.
    return ["--upgrade", "--upgrade-strategy", "eager"] if age == "newest" else ["--constraint", str(CONSTRAINTS)]


def environment(name: str, python: str, arguments: list[str]) -> str:
    """Make a virtual environment with the project in place, and return its Python."""
    folder = ROOT / "build" / "matrix" / name
    inside = str(folder / "bin" / "python")
    (torch,) = re.findall(r"^torch==.+$", CONSTRAINTS.read_text(), re.MULTILINE)
    pip = [inside, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for command in (
        [python, "-m", "venv", str(folder)],
        [*pip, "--no-deps", "--extra-index-url", TORCH_INDEX, torch],
        [*pip, "--constraint", str(CONSTRAINTS), "setuptools", "wheel", "pybind11"],
        [*pip, "--no-build-isolation", torch, "--editable", ".[test]", *arguments],
    ):
        subprocess.run(command, cwd=ROOT, env=os.environ | {"NCAKERN_REQUIRE_EXT": "1"}, check=True)
    return inside


def main(arguments: list[str]) -> int:
    named, _, more = " ".join(arguments).partition("-- ")
    every = rows()
    wanted = named.split() or list(every)
    if unknown := [name for name in wanted if name not in every]:
        print("\n".join(every))
        return 0 if unknown == ["--list"] else 2
    failed = False
    for name in wanted:
        start = time.monotonic()
        try:
            counts = every[name](more.split())
        except subprocess.CalledProcessError as error:
            counts = f"FAILED to install: {error}"
        failed |= counts.startswith("FAILED")
        print(f"| {name} | {time.monotonic() - start:.0f} s | {counts} |", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
