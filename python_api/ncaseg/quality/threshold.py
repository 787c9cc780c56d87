"""Quality without a label: M3D-NCA's NQM of an ensemble, the threshold on it, and how well it finds failures.

Numbers in, numbers out, in float64; numpy alone, so that it works without torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

TARGET_DICE = 0.8  # below this a segmentation counts as failed (M3D-NCA)


class NoThreshold(ValueError):
    """The calibration cases give no threshold."""


@dataclass(frozen=True)
class Calibration:
    """A line through (NQM, Dice) and the NQM at which it meets ``target``.

    ``Dice = intercept + slope * NQM``. The inverse regression fits NQM on Dice and is stated here as the same line.
    ``correlation`` is Pearson's; ``points`` were used, ``dropped`` had an infinite NQM or no Dice.
    """

    target: float
    threshold: float
    intercept: float
    slope: float
    correlation: float
    points: int
    dropped: int
    regression: str


def calibrate(
    nqms: Sequence[float], dices: Sequence[float | None], *, target: float = TARGET_DICE, inverse: bool = False
) -> Calibration:
    """Least squares line between NQM and Dice, and the threshold above which a Dice below ``target`` is expected.

    The paper fits "a linear regression" without saying which on which. Dice on NQM, ``Dice = a + b NQM``, is the
    default and gives the threshold ``(target - a) / b``; the inverse, ``NQM = c + d Dice``, gives ``c + d target``.

    Args:
        nqms, dices: one of each per volume; pairs that are not finite are left out and counted.
        target: the Dice below which a segmentation has failed.
        inverse: regress NQM on Dice.

    Raises:
        NoThreshold: fewer than two different points are left, or Dice does not fall with NQM, so that there is no
            threshold, or the threshold would not be positive.
    """
    pairs = [
        (x, y) for x, y in zip(nqms, dices, strict=True) if y is not None and math.isfinite(x) and math.isfinite(y)
    ]
    x, y = np.array(pairs, np.float64).reshape(-1, 2).T
    if len(pairs) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        raise NoThreshold(
            f"calibration needs points of different NQM and Dice; got {len(pairs)} finite ones without spread"
        )
    covariance = float(np.mean((x - x.mean()) * (y - y.mean())))
    if not covariance < 0:
        raise NoThreshold(
            f"Dice must fall with NQM for a threshold to exist; over {len(pairs)} points the slope is "
            f"{covariance / x.var():.4g}. Add volumes that the model fails on, or look at the scatter plot"
        )
    slope = float(y.var()) / covariance if inverse else covariance / float(x.var())
    intercept = float(y.mean()) - slope * float(x.mean())
    threshold = (target - intercept) / slope
    if not threshold > 0:
        raise NoThreshold(
            f"target {target} lies above the line Dice = {intercept:.4g} + {slope:.4g} NQM at every NQM, so that all "
            "volumes would be flagged; use a lower target"
        )
    return Calibration(
        target=target,
        threshold=threshold,
        intercept=intercept,
        slope=slope,
        correlation=covariance / math.sqrt(float(x.var()) * float(y.var())),
        points=len(pairs),
        dropped=len(nqms) - len(pairs),
        regression="NQM on Dice" if inverse else "Dice on NQM",
    )


@dataclass(frozen=True)
class Detection:
    """How flags (NQM above a threshold) meet failures (Dice below a target), in numbers of volumes."""

    true_positive: int
    false_positive: int
    false_negative: int
    true_negative: int

    @property
    def num_cases(self) -> int:
        return self.true_positive + self.false_positive + self.false_negative + self.true_negative

    @property
    def detection_rate(self) -> float | None:
        """TP / (TP + FN): the share of failures that are flagged; None without a failure."""
        return _share(self.true_positive, self.true_positive + self.false_negative)

    @property
    def false_negative_rate(self) -> float | None:
        """FN / (TP + FP + FN + TN): the share of all volumes that fail without a flag."""
        return _share(self.false_negative, self.num_cases)

    @property
    def missed_of_passed(self) -> float | None:
        """FN / (FN + TN): the share of failures among the volumes that pass; None if all are flagged."""
        return _share(self.false_negative, self.false_negative + self.true_negative)

    @property
    def false_alarm_rate(self) -> float | None:
        """FP / (FP + TN): the share of good segmentations that are flagged; None without one."""
        return _share(self.false_positive, self.false_positive + self.true_negative)

    def to_dict(self) -> dict[str, int | float | None]:
        """Counts and rates by name."""
        return {
            "cases": self.num_cases,
            "TP": self.true_positive,
            "FP": self.false_positive,
            "FN": self.false_negative,
            "TN": self.true_negative,
            "detection_rate": self.detection_rate,
            "false_negative_rate": self.false_negative_rate,
            "missed_of_passed": self.missed_of_passed,
            "false_alarm_rate": self.false_alarm_rate,
        }


RATES = {
    "detection_rate": "TP / (TP + FN), of the failures",
    "false_negative_rate": "FN / all cases",
    "missed_of_passed": "FN / (FN + TN), of the cases that pass",
    "false_alarm_rate": "FP / (FP + TN), of the good cases",
}


def detect(
    nqms: Sequence[float], dices: Sequence[float | None], threshold: float, *, target: float = TARGET_DICE
) -> Detection:
    """Count flags (``NQM > threshold``) against failures (``Dice < target``); cases without a Dice do not count."""
    counts = {(flag, failed): 0 for flag in (True, False) for failed in (True, False)}
    for value, dice in zip(nqms, dices, strict=True):
        if dice is not None:
            counts[is_flagged(value, threshold), dice < target] += 1
    return Detection(
        true_positive=counts[True, True],
        false_positive=counts[True, False],
        false_negative=counts[False, True],
        true_negative=counts[False, False],
    )


def is_flagged(value: float, threshold: float) -> bool:
    """Whether an NQM is above the threshold; one that is not a number is."""
    return not value <= threshold


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
