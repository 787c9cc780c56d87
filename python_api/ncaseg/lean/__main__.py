"""``python -m ncaseg.lean MODEL INPUT -o OUT`` predicts without torch: ``ncaseg predict --no-torch``."""

import sys

from ncaseg.cli.main import main as run


def main() -> int:
    """Run one command line; returns its exit code."""
    return run(["predict", "--no-torch", *sys.argv[1:]])


if __name__ == "__main__":
    raise SystemExit(main())
