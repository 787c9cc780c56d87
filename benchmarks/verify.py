"""Measure only what is right: run the kernel's tests first, and print no speed when one fails.

python benchmarks/verify.py [arguments of run.py]
"""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
TESTS = ["tests/kern", "benchmarks/test_providers.py"]


def main() -> None:
    tests = subprocess.run([sys.executable, "-m", "pytest", "--quiet", *TESTS], cwd=HERE.parent, check=False)
    if tests.returncode != 0:
        raise SystemExit("tests failed: nothing is measured")
    raise SystemExit(subprocess.run([sys.executable, str(HERE / "run.py"), *sys.argv[1:]], check=False).returncode)


if __name__ == "__main__":
    main()
