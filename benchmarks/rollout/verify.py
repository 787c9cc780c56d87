"""Measure only what is right: run the kernel's tests first, and print no speed when one fails.

python -m benchmarks.rollout.verify [arguments of benchmarks.rollout.run]
"""

import subprocess
import sys

from benchmarks.harness.record import ROOT

TESTS = ["tests/kern", "tests/bench/test_providers.py"]


def main() -> None:
    tests = subprocess.run([sys.executable, "-m", "pytest", "--quiet", *TESTS], cwd=ROOT, check=False)
    if tests.returncode != 0:
        raise SystemExit("tests failed: nothing is measured")
    run = [sys.executable, "-m", "benchmarks.rollout.run", *sys.argv[1:]]
    raise SystemExit(subprocess.run(run, cwd=ROOT, check=False).returncode)


if __name__ == "__main__":
    main()
