"""Bounds on what a recipe or a checkpoint may ask for: a slip, or a stranger's file, shall not run for years."""

import math
import os
from collections.abc import Mapping
from typing import Any

SWITCH = "NCASEG_UNBOUNDED"
MOST = {
    "model.steps": 100_000,  # of all levels together; published models take up to a few hundred
    "model.channels": 10_000,
    "model.hidden": 100_000,
    "data.size": 100_000_000,  # cells
    "diffusion.timesteps": 100_000,
    "diffusion.sample_steps": 100_000,
    "predict.samples": 10_000,
}


def check_limits(tree: Mapping[str, Any], what: str = "") -> None:
    """Raise a ValueError if a recipe, as nested dictionaries, is beyond a bound; ``what`` names its file.

    Example:
        >>> check_limits({"model": {"steps": [20, 40]}})
    """
    for key, most in MOST.items():
        section, _, name = key.partition(".")
        value = tree.get(section, {}).get(name, 0)
        if isinstance(value, (list, tuple)):
            value = math.prod(value) if key == "data.size" else sum(value)
        check_limit(key, value, most, what)


def check_limit(name: str, value: float, most: int, what: str = "") -> None:
    """Raise a ValueError if one number is beyond its bound, unless the environment lifts all bounds."""
    if value > most and os.environ.get(SWITCH) != "1":
        where = f"{what}: " if what else ""
        raise ValueError(f"{where}{name} must be at most {most:,}; got {value:,}. {SWITCH}=1 lifts this bound")
