"""Means and deviations against printed numbers; what has no value, or too few."""

import pytest

from ncaseg.evaluation import result


def test_deviation_over_folds_is_that_of_a_sample():
    # IoU of cDAL's three folds of chest X-rays, in percent.
    folds = [94.01, 92.06, 93.05]
    assert result.mean(folds) == pytest.approx(93.04)
    assert result.sample_deviation(folds) == pytest.approx(0.975, abs=0.001)
    assert result.deviation(folds) == pytest.approx(0.796, abs=0.001)


def test_missed_cases_are_counted_below_the_limit_not_at_it():
    assert result.count_missed([0.0, 0.0, 0.1, 0.3, 0.95]) == {"of": 5, "below_0.3": 3, "zero": 2}
    assert result.count_missed([]) == {"of": 0, "below_0.3": 0, "zero": 0}


def test_too_few_values_have_no_number():
    assert result.mean([]) is result.deviation([]) is result.sample_deviation([]) is None
    assert (result.mean([2.0]), result.deviation([2.0]), result.sample_deviation([2.0])) == (2.0, 0.0, None)


def test_rows_without_a_number_are_left_out():
    rows = [
        {"1": {"dice": 0.5, "recall": None}},
        {"1": {"dice": None, "recall": None}},
        {"1": {"dice": 1.0, "recall": None}},
    ]
    assert result.summarise_groups(rows, result.mean) == {"1": {"dice": 0.75, "recall": None}}
