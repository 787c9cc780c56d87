"""The command line ``ncaseg``."""

from ncaseg.cli.main import main

__all__ = ["main"]
