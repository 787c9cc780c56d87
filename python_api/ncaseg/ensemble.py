"""A pseudo-ensemble of stochastic members, combined one at a time; numpy alone, so that it works without torch."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

RULES = ("mean-logit", "mean-probability", "median")
DEFAULT_RULE = "mean-logit"
FORMULAS = {
    "mean-logit": "sigmoid(mean logit)",
    "mean-probability": "mean probability",
    "median": "sigmoid(median logit)",
}


@dataclass(frozen=True)
class Combined:
    """What an ensemble says, all ``[C_out, *S]`` float32.

    ``probabilities`` follow the rule. ``mean`` and ``variance`` are those of the members' own probabilities, whatever
    the rule, the variance that of the population (divided by the number of members); None unless asked for.
    """

    probabilities: np.ndarray
    mean: np.ndarray | None = None
    variance: np.ndarray | None = None


def combine(members: Iterable[np.ndarray], *, rule: str = DEFAULT_RULE, with_spread: bool = False) -> Combined:
    """Combine the logits of the members.

    "mean-logit" is ``sigmoid(mean_i l_i)``, as in the published M3D-NCA code; "mean-probability" is the mean over i of
    ``sigmoid(l_i)``; "median" is the sigmoid of the median logit of each cell (of an even number, the mean of the
    middle two). Means and variance are running ones: members from an iterator are held one at a time. The median holds
    all, and copies one place of the first axis of space at a time.

    Args:
        members: at least one array of logits ``[C_out, *S]``, all of one shape; may be an iterator.
        rule: one of ``RULES``.
        with_spread: also return mean and variance of the probabilities.

    Raises:
        ValueError: the rule is unknown, or there is no member.
        FloatingPointError: a logit is NaN or infinite.

    Reference:
        Kalkhof and Mukhopadhyay, M3D-NCA, MICCAI 2023 (pseudo-ensemble); Welford, Technometrics 1962 (variance).
    """
    check_rule(rule)
    logits = _Running()
    probabilities = _Running()
    held = []
    for number, member in enumerate(members):
        check_finite(member, f"member {number} of the ensemble")
        if rule == "mean-logit":
            logits.add(member)
        elif rule == "median":
            held.append(member)
        if with_spread or rule == "mean-probability":
            probabilities.add(sigmoid(member), with_variance=with_spread)
    if not (logits.count or probabilities.count or held):
        raise ValueError("members must hold at least one; got none")
    if rule == "mean-logit":
        combined = sigmoid(logits.mean)
    elif rule == "median":
        rows = [np.median([member[:, row] for member in held], axis=0) for row in range(held[0].shape[1])]
        combined = sigmoid(np.stack(rows, axis=1))
    else:
        combined = probabilities.mean
    if not with_spread:
        return Combined(combined)
    return Combined(combined, probabilities.mean, probabilities.deviations / np.float32(probabilities.count))


def check_finite(values: np.ndarray, what: str) -> None:
    """Raise a FloatingPointError if a number is NaN or infinite: a mask made of it would be empty without a word."""
    bad = sum(int(np.count_nonzero(~np.isfinite(row))) for row in np.moveaxis(values, 1, 0))
    if bad:
        raise FloatingPointError(
            f"{what} must be finite; {bad} of {values.size} numbers are NaN or infinite. The weights have diverged or "
            "their file is damaged: use an earlier checkpoint"
        )


def mirrored_axes(flips: str, member: int) -> tuple[int, ...]:
    """The axes of ``[C, X, Y, Z]`` along which a member of the ensemble sees its image mirrored.

    Bit i of its number says so for letter i of ``flips``: of "xy", member 0 sees the image itself, 1 mirrored along X,
    2 along Y, 3 along both, 4 the image again. All views count alike if the number of members is a multiple of theirs.

    Example:
        >>> [mirrored_axes("xy", member) for member in range(5)]
        [(), (1,), (2,), (1, 2), ()]
    """
    return tuple("xyz".index(axis) + 1 for place, axis in enumerate(flips) if member >> place & 1)


def check_rule(rule: str, *, of_samples: bool = False) -> None:
    """Raise a ValueError for a rule that is none, or none for sampled masks, which are averaged as they are."""
    if rule not in RULES:
        raise ValueError(f"rule must be one of {', '.join(RULES)}; got {rule!r}")
    if of_samples and rule == "median":
        raise ValueError('rule must be "mean-probability" for a model that samples masks, or be left out; got "median"')


def nqm(mean: np.ndarray, variance: np.ndarray) -> float:
    """The NCA quality metric, ``NQM = sum(SD) / sum(mean)``: high is bad.

    Args:
        mean: voxelwise mean of the members' probabilities, any shape: output channels count like cells.
        variance: voxelwise population variance of the same, the same shape; SD is its square root.

    Returns:
        A number from 0 on; infinity where the mean is 0 everywhere.

    Raises:
        ValueError: the shapes differ.

    Example:
        >>> nqm(np.array([0.5, 1.5]), np.array([0.25, 0.0]))
        0.25

    Reference:
        Kalkhof and Mukhopadhyay, M3D-NCA, MICCAI 2023, section on quality control. The published code takes sigmoid
        probabilities of the single members for both sums, and so do we.
    """
    if mean.shape != variance.shape:
        raise ValueError(f"variance must have the shape of mean {mean.shape}; got {variance.shape}")
    total = float(mean.sum(dtype=np.float64))
    return float(np.sqrt(variance, dtype=np.float64).sum()) / total if total > 0 else math.inf


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """``1 / (1 + exp(-x))`` in float32; nothing overflows."""
    x = np.asarray(logits, np.float32)
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, np.float32(1), small) / (1 + small)


class _Running:
    """Mean and sum of squared deviations so far (Welford): no large numbers that cancel."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: np.ndarray = np.zeros((), np.float32)
        self.deviations: np.ndarray = np.zeros((), np.float32)

    def add(self, value: np.ndarray, *, with_variance: bool = False) -> None:
        self.count += 1
        step = value - self.mean
        self.mean = self.mean + step / np.float32(self.count)
        if with_variance:
            self.deviations = self.deviations + step * (value - self.mean)
