"""Measure only what is right: run the kernel's tests first, and print no speed when one fails.

python -m benchmarks.rollout.verify [arguments of benchmarks.rollout.run]
python -m benchmarks.rollout.verify --isa avx2 ...    as on a CPU without AVX-512: kernel, torch, MKL and oneDNN alike

The rows name the variables that limit them. The tests try every instruction set of the CPU either way.
"""

import argparse
import os
import subprocess
import sys

from benchmarks.harness.record import LIMITS, ROOT

TESTS = ["tests/kern", "tests/bench/test_providers.py"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--isa", choices=["avx2"], help="the widest vectors that may be used (default: the CPU's)")
    options, arguments = parser.parse_known_args()
    tests = subprocess.run([sys.executable, "-m", "pytest", "--quiet", *TESTS], cwd=ROOT, check=False)
    if tests.returncode != 0:
        raise SystemExit("tests failed: nothing is measured")
    run = [sys.executable, "-m", "benchmarks.rollout.run", *arguments]
    raise SystemExit(subprocess.run(run, cwd=ROOT, env=limited_to(options.isa), check=False).returncode)


def limited_to(isa: str | None) -> dict[str, str]:
    """The environment of a process that uses no wider vectors; MKL takes its name in capitals only."""
    return dict(os.environ) | ({name: isa.upper() if "MKL" in name else isa for name in LIMITS} if isa else {})


if __name__ == "__main__":
    main()
