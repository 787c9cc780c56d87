"""Overlap of one case's masks, in numpy and float64. Every function says what two empty masks give."""

import numpy as np

EMPTY = {"one": 1.0, "zero": 0.0, "skip": float("nan")}


def hard_dice(pred: np.ndarray, target: np.ndarray, empty: str = "one") -> float:
    """Dice of two masks: ``2 |A and B| / (|A| + |B|)``.

    Args:
        pred, target: boolean arrays of equal shape.
        empty: the value when both masks are empty: ``"one"``, ``"zero"`` or ``"skip"`` (NaN, so that ``nanmean`` leaves
            the case out). One empty mask always gives 0.

    Raises:
        TypeError: a mask is not boolean.
        ValueError: the shapes differ, or ``empty`` is unknown.

    Example:
        >>> hard_dice(np.array([True, True, False]), np.array([True, False, False]))
        0.6666666666666666
    """
    _check_masks(pred, target)
    size = int(np.count_nonzero(pred)) + int(np.count_nonzero(target))
    return _ratio(2 * int(np.count_nonzero(pred & target)), size, empty)


def iou(pred: np.ndarray, target: np.ndarray, empty: str = "one") -> float:
    """Intersection over union of two masks, ``|A and B| / |A or B|``; arguments and errors as :func:`hard_dice`."""
    _check_masks(pred, target)
    return _ratio(int(np.count_nonzero(pred & target)), int(np.count_nonzero(pred | target)), empty)


def precision(pred: np.ndarray, target: np.ndarray, empty: str = "one") -> float:
    """Share of the prediction that is right, ``|A and B| / |A|``; arguments and errors as :func:`hard_dice`."""
    _check_masks(pred, target)
    return _share(pred & target, pred, target, empty)


def sensitivity(pred: np.ndarray, target: np.ndarray, empty: str = "one") -> float:
    """Share of the target that is found, ``|A and B| / |B|``; arguments and errors as :func:`hard_dice`."""
    _check_masks(pred, target)
    return _share(pred & target, target, pred, empty)


def soft_dice(prob: np.ndarray, target: np.ndarray, empty: str = "one") -> float:
    """Dice of probabilities against a mask, ``2 sum(p t) / (sum(p) + sum(t))``: no threshold, no smoothing.

    This is the number that the published M3D-NCA code reports.

    Args:
        prob: floating-point probabilities in [0, 1].
        target: boolean array of the same shape.
        empty: the value when the denominator is 0, as in :func:`hard_dice`.

    Raises:
        TypeError: ``target`` is not boolean or ``prob`` not floating point.
        ValueError: the shapes differ, or ``empty`` is unknown.
    """
    if not np.issubdtype(prob.dtype, np.floating):
        raise TypeError(f"prob must be floating point; got {prob.dtype}")
    _check_mask("target", target)
    _check_shapes("prob", prob, target)
    weights = prob.astype(np.float64)
    return _ratio(2.0 * float(weights[target].sum()), float(weights.sum()) + int(np.count_nonzero(target)), empty)


def _share(both: np.ndarray, of: np.ndarray, other: np.ndarray, empty: str) -> float:
    """``|both| / |of|``; 0 where only ``of`` is empty, as nothing is right, or found, then."""
    size = int(np.count_nonzero(of))
    return _ratio(int(np.count_nonzero(both)), size if size else int(np.count_nonzero(other)), empty)


def _ratio(numerator: float, denominator: float, empty: str) -> float:
    if empty not in EMPTY:
        raise ValueError(f"empty must be one of {', '.join(EMPTY)}; got {empty!r}")
    return EMPTY[empty] if denominator == 0 else numerator / denominator


def _check_masks(pred: np.ndarray, target: np.ndarray) -> None:
    _check_mask("pred", pred)
    _check_mask("target", target)
    _check_shapes("pred", pred, target)


def _check_mask(name: str, mask: np.ndarray) -> None:
    if mask.dtype != np.bool_:
        raise TypeError(f"{name} must be a boolean array, e.g. labels > 0; got {mask.dtype}")


def _check_shapes(name: str, array: np.ndarray, target: np.ndarray) -> None:
    if array.shape != target.shape:
        raise ValueError(f"{name} must have the shape of target {target.shape}; got {array.shape}")
