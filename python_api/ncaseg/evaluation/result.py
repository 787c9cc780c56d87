"""What every result of an evaluation holds, whatever the model: means over the cases, and what the numbers mean."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ncaseg.config import Config
from ncaseg.models.base import Segmenter
from ncaseg.provenance import describe

METRICS = ("hard_dice", "iou", "soft_dice")
MISSED = 0.3  # a hard Dice below: the object was hardly found


def assemble(
    model: Segmenter,
    cfg: Config,
    rows: Sequence[Mapping[str, Any]],
    conditions: Mapping[str, str],
    *,
    name: str,
    samples: int,
    seed: int,
) -> dict[str, Any]:
    """The result of an evaluation as plain values.

    Args:
        model, cfg: what was scored.
        rows: one per case, with ``id``, ``seconds``, and a number or None for each of ``METRICS``.
        conditions: what the numbers hold under, beyond what all evaluations share.
        name: how the result names the model.
        samples, seed: the ensemble.

    Returns:
        ``model``, ``recipe``, ``samples``, ``seed``, ``num_cases``, ``mean``, ``std``, ``missed`` (see
        :func:`count_missed`), ``conditions``, ``parameters``, ``seconds_per_case`` (from the loaded case to its labels;
        reading and scoring do not count), ``made``, ``cases``.
    """
    return {
        "model": name,
        "recipe": cfg.name,
        "samples": samples,
        "seed": seed,
        "num_cases": len(rows),
        "mean": summarise(rows, METRICS, mean),
        "std": summarise(rows, METRICS, deviation),
        "missed": count_missed([row["hard_dice"] for row in rows if row["hard_dice"] is not None]),
        "conditions": {
            "foreground": "every label above 0, merged",
            "averaging": "one score per case, then the mean over cases; std is the population's, classes_std and "
            "protocols_std are those of a sample (n - 1)",
            **conditions,
        },
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds_per_case": mean([row["seconds"] for row in rows]),
        "made": describe(),
        "cases": list(rows),
    }


def count_missed(dice: Sequence[float]) -> dict[str, int]:
    """How many of these cases were missed: a hard Dice below 0.3, and those of 0 among them.

    Example:
        >>> count_missed([0.0, 0.2, 0.3, 0.9])
        {'of': 4, 'below_0.3': 2, 'zero': 1}
    """
    return {"of": len(dice), f"below_{MISSED}": sum(d < MISSED for d in dice), "zero": sum(d == 0 for d in dice)}


def summarise(
    rows: Sequence[Mapping[str, Any]], names: Iterable[str], reduce: Callable[[list[float]], float | None]
) -> dict[str, float | None]:
    """What ``reduce`` makes of each metric, given its values in the rows that have it."""
    return {name: reduce([row[name] for row in rows if row[name] is not None]) for name in names}


def summarise_groups(
    rows: Sequence[Mapping[str, Mapping[str, Any]]], reduce: Callable[[list[float]], float | None]
) -> dict[str, dict[str, float | None]]:
    """``summarise`` for rows of several groups of metrics, such as classes or protocols: group to metric to number."""
    return {name: summarise([row[name] for row in rows], metrics, reduce) for name, metrics in rows[0].items()}


def mean(values: Sequence[float]) -> float | None:
    """None where there is no value."""
    return float(np.mean(values)) if values else None


def deviation(values: Sequence[float]) -> float | None:
    """The standard deviation of a population; None where there is no value."""
    return float(np.std(values)) if values else None


def sample_deviation(values: Sequence[float]) -> float | None:
    """The standard deviation of a sample (n - 1); None where there are fewer than two values."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None
