"""NQM, calibration and detection against numbers computed by hand."""

import doctest
import math

import numpy as np
import pytest

from ncaseg import ensemble
from ncaseg.ensemble import combine, nqm
from ncaseg.quality.threshold import RATES, Detection, calibrate, detect, is_flagged


def test_nqm_of_the_specified_logits():
    """l[i][j] = 3 sin(0.9 (8 i + j)): 0.406185, not 0.497472 (sample deviation) nor 0.400240 (sigmoid of the mean)."""
    logits = (3 * np.sin(0.9 * np.arange(24.0))).reshape(3, 1, 8)
    combined = combine(logits, with_spread=True)
    assert nqm(combined.mean, combined.variance) == pytest.approx(0.406185, abs=1e-6)


def test_nqm_by_hand():
    assert nqm(np.array([[0.5, 1.0]]), np.array([[0.04, 0.01]])) == pytest.approx(0.3 / 1.5)


def test_nqm_of_an_empty_prediction_is_infinite():
    assert nqm(np.zeros(3), np.zeros(3)) == math.inf


def test_nqm_does_not_lose_small_probabilities():
    """A million float32 values are summed in float64."""
    mean = np.full(10**6, 0.1, np.float32)
    assert nqm(mean, np.full(10**6, 0.04, np.float32)) == pytest.approx(2.0, rel=1e-6)


def test_nqm_refuses_other_shapes():
    with pytest.raises(ValueError, match=r"variance must have the shape of mean \(2,\); got \(3,\)"):
        nqm(np.zeros(2), np.zeros(3))


def test_line_through_exact_points():
    for inverse in (False, True):
        fit = calibrate([0.1, 0.2, 0.4], [0.9, 0.8, 0.6], target=0.7, inverse=inverse)
        assert (fit.intercept, fit.slope, fit.threshold) == pytest.approx((1.0, -1.0, 0.3))
        assert fit.correlation == pytest.approx(-1.0)


def test_two_regressions_of_scattered_points():
    """x = 0, 1, 2; y = 3, 1, 2: covariance -1/3, both variances 2/3, so the slopes are -1/2 and, inverted, -2."""
    fit = calibrate([0, 1, 2], [3, 1, 2], target=1.5)
    assert (fit.intercept, fit.slope, fit.threshold) == pytest.approx((2.5, -0.5, 2.0))
    assert fit.correlation == pytest.approx(-0.5)
    inverse = calibrate([0, 1, 2], [3, 1, 2], target=1.5, inverse=True)
    assert (inverse.intercept, inverse.slope, inverse.threshold) == pytest.approx((4.0, -2.0, 1.25))
    assert (fit.regression, inverse.regression) == ("Dice on NQM", "NQM on Dice")


def test_points_that_are_not_finite_are_counted_and_left_out():
    fit = calibrate([0.1, math.inf, 0.3, 0.2], [0.9, 0.0, 0.7, None], target=0.8)
    assert (fit.points, fit.dropped) == (2, 2)
    assert fit.threshold == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("nqms", "dices", "message"),
    [
        ([0.1, 0.2], [0.7, 0.9], "Dice must fall with NQM.*slope is 2"),
        ([0.1, 0.2, 0.3], [0.7, 0.9, 0.7], "Dice must fall with NQM"),
        ([0.1], [0.7], "got 1 finite ones"),
        ([0.1, 0.1], [0.7, 0.9], "without spread"),
        ([0.1, 0.2], [0.9, 0.9], "without spread"),
        ([], [], "got 0 finite ones"),
        ([0.1, 0.2], [0.5, 0.4], "target 0.8 lies above the line"),
    ],
)
def test_points_without_a_threshold_are_refused(nqms, dices, message):
    with pytest.raises(ValueError, match=message):
        calibrate(nqms, dices)


def test_flags_against_failures():
    nqms = [0.5, 0.6, 0.4, math.inf, 0.1, 0.3, 0.2, 0.31, 0.9]
    dices = [0.1, 0.7, 0.9, 0.0, 0.79, 0.8, 0.95, 0.5, None]
    found = detect(nqms, dices, 0.3)
    assert found == Detection(true_positive=4, false_positive=1, false_negative=1, true_negative=2)
    assert found.num_cases == 8  # without the one that has no Dice
    assert found.detection_rate == pytest.approx(4 / 5)
    assert found.false_negative_rate == pytest.approx(1 / 8)
    assert found.missed_of_passed == pytest.approx(1 / 3)
    assert found.false_alarm_rate == pytest.approx(1 / 3)
    assert found.to_dict()["FN"] == 1
    assert set(RATES) < set(found.to_dict())


def test_rates_without_denominator_are_none():
    nothing = detect([], [], 0.3)
    assert [nothing.to_dict()[rate] for rate in RATES] == [None] * 4
    assert detect([0.1], [0.9], 0.3).detection_rate is None


def test_nan_is_flagged():
    assert is_flagged(math.nan, 0.5)
    assert not is_flagged(0.5, 0.5)


def test_examples_in_docstrings_run():
    result = doctest.testmod(ensemble)
    assert result.attempted > 0 and result.failed == 0
