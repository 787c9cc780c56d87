"""The command line ``ncaseg``."""

from ncaseg.cli.verbs import main

__all__ = ["main"]
