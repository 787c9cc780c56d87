"""``python -m ncaseg``: the same command line as ``ncaseg``."""

from ncaseg.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
