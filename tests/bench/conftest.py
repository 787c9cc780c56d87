"""Benchmarks are not installed: they are found at the end of the path, behind an installed ncakern."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))
