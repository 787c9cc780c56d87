"""Overlap measures against counts done by hand, empty and full masks included."""

import math

import numpy as np
import pytest

from ncaseg.evaluation.metrics import hard_dice, iou, precision, sensitivity, soft_dice

A = np.array([[True, True, True], [False, False, False]])
B = np.array([[False, True, True], [True, True, False]])
NONE, ALL = np.zeros((2, 3), bool), np.ones((2, 3), bool)


def test_partial_overlap_by_hand():
    assert hard_dice(A, B) == pytest.approx(2 * 2 / (3 + 4))
    assert iou(A, B) == pytest.approx(2 / 5)


def test_shares_of_prediction_and_target_by_hand():
    assert precision(A, B) == pytest.approx(2 / 3) and sensitivity(A, B) == pytest.approx(2 / 4)
    assert precision(ALL, A) == 0.5 and sensitivity(ALL, A) == 1.0


@pytest.mark.parametrize("metric", [hard_dice, iou, precision, sensitivity])
def test_equal_and_disjoint_masks(metric):
    assert metric(ALL, ALL) == 1.0
    assert metric(A, ~A) == 0.0
    assert metric(NONE, A) == 0.0 and metric(A, NONE) == 0.0


def test_full_prediction_by_hand():
    assert hard_dice(ALL, A) == pytest.approx(2 * 3 / 9)
    assert iou(ALL, A) == pytest.approx(0.5)


@pytest.mark.parametrize(
    "metric", [hard_dice, iou, precision, sensitivity, lambda p, t, e: soft_dice(p.astype(np.float32), t, e)]
)
def test_two_empty_masks_give_what_empty_says(metric):
    assert metric(NONE, NONE, "one") == 1.0
    assert metric(NONE, NONE, "zero") == 0.0
    assert math.isnan(metric(NONE, NONE, "skip"))
    with pytest.raises(ValueError, match="empty must be one of one, zero, skip"):
        metric(NONE, NONE, "two")


def test_unknown_empty_is_an_error_even_when_not_needed():
    with pytest.raises(ValueError, match="empty"):
        hard_dice(A, B, "two")


def test_soft_dice_by_hand():
    prob = np.array([0.9, 0.5, 0.1, 0.0], np.float32)
    target = np.array([True, False, True, False])
    assert soft_dice(prob, target) == pytest.approx(2 * (0.9 + 0.1) / (1.5 + 2), rel=1e-6)
    assert soft_dice(prob, np.zeros(4, bool)) == 0.0
    assert soft_dice(target.astype(np.float64), target) == 1.0


def test_soft_dice_sums_in_double_precision():
    prob = np.full(3_000_000, 0.1, np.float32)
    target = np.ones(3_000_000, bool)
    assert soft_dice(prob, target) == pytest.approx(2 * 0.1 / 1.1, rel=1e-7)


def test_wrong_types_and_shapes_are_named():
    with pytest.raises(TypeError, match="pred must be a boolean array"):
        hard_dice(A.astype(np.uint8), B)
    with pytest.raises(TypeError, match="target must be a boolean array"):
        iou(A, B.astype(np.int64))
    with pytest.raises(ValueError, match=r"pred must have the shape of target \(3,\)"):
        hard_dice(A, np.ones(3, bool))
    with pytest.raises(TypeError, match="prob must be floating point"):
        soft_dice(A, B)
    with pytest.raises(ValueError, match="prob must have the shape"):
        soft_dice(np.ones(4), np.ones(3, bool))
