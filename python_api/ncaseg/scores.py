"""What every result of an evaluation holds, whatever the model: means over the cases, and what the numbers mean."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ncaseg.config import Config
from ncaseg.models.base import Segmenter
from ncaseg.provenance import describe

METRICS = ("hard_dice", "iou", "soft_dice")


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
        rows: one per case, with `id`, `seconds`, and a number or None for each of `METRICS`.
        conditions: what the numbers hold under, beyond what all evaluations share.
        name: how the result names the model.
        samples, seed: the ensemble.

    Returns:
        `model`, `recipe`, `samples`, `seed`, `num_cases`, `mean`, `std`, `conditions`, `parameters`,
        `seconds_per_case` (from the loaded case to its labels; reading and scoring do not count), `made`, `cases`.
    """
    return {
        "model": name,
        "recipe": cfg.name,
        "samples": samples,
        "seed": seed,
        "num_cases": len(rows),
        "mean": summarise(rows, METRICS, np.mean),
        "std": summarise(rows, METRICS, np.std),
        "conditions": {
            "foreground": "every label above 0, merged",
            "averaging": "one score per case, then the mean over cases; std is the population's, classes_std and "
            "protocols_std are those of a sample (n - 1)",
            **conditions,
        },
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds_per_case": float(np.mean([row["seconds"] for row in rows])),
        "made": describe(),
        "cases": list(rows),
    }


def summarise(
    rows: Sequence[Mapping[str, Any]], names: Sequence[str], reduce: Callable[[list[float]], Any]
) -> dict[str, float | None]:
    """Mean or deviation of each metric over the rows that have it; None where no row has."""
    columns = {name: [row[name] for row in rows if row[name] is not None] for name in names}
    return {name: float(reduce(values)) if values else None for name, values in columns.items()}


def sample_deviation(rows: Sequence[Mapping[str, Any]], names: Iterable[str]) -> dict[str, float | None]:
    """The deviation of a sample (n - 1) of each metric over the rows that have it; None where fewer than two have."""
    columns = {name: [row[name] for row in rows if row[name] is not None] for name in names}
    return {name: float(np.std(values, ddof=1)) if len(values) > 1 else None for name, values in columns.items()}
