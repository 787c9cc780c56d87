"""E-CLEAN, E-AUTHOR and the baselines, against numbers computed by hand."""

import numpy as np
import pytest

from ncaseg.evaluation import protocols


def test_clean_by_hand():
    truth = np.array([[True, True, False, False]])
    scores = protocols.e_clean(np.array([[0.9, 0.4, 0.6, 0.1]]), truth)
    assert scores == {"dice": 0.5, "iou": pytest.approx(1 / 3), "isic": 0.0}
    good = protocols.e_clean(np.array([[0.9, 0.8, 0.5, 0.1]]), truth)
    assert good == {"dice": 1.0, "iou": 1.0, "isic": 1.0}
    assert protocols.e_clean(np.zeros((1, 4)), np.zeros((1, 4), bool))["dice"] == 1.0
    assert protocols.e_clean(np.zeros((1, 4)), truth)["dice"] == 0.0


def flat(*values, side=16):
    """Columns of constant value, wide enough that JPEG leaves their middle alone."""
    return np.repeat(np.array(values), side)[None].repeat(side, 0)


def test_author_thresholds_are_those_of_the_square_of_the_mean():
    # Of the largest value 0.8 the blocks are 1, 0.75 and 0.5; squared 1, 0.5625 and 0.25: in at 5, 3 and 1 thresholds.
    mean = flat(0.8, 0.6, 0.4)
    truth = flat(1.0, 0.0, 0.0)
    dice = [0.5, 2 / 3, 2 / 3, 1, 1]
    overlap = [1 / 3, 1 / 2, 1 / 2, 1, 1]
    scores = protocols.e_author(mean, truth)
    assert scores["dice"] == pytest.approx(np.mean(dice), abs=0.01)
    assert scores["iou"] == pytest.approx(np.mean(overlap), abs=0.01)


def test_author_counts_far_below_zero_as_lesion_and_grades_the_truth():
    assert protocols.e_author(flat(-0.9, 0.0), flat(1.0, 0.0))["dice"] == pytest.approx(1.0, abs=0.02)
    half = protocols.e_author(flat(0.9, 0.0), flat(0.5, 0.0))  # the truth is in at thresholds 0.1 and 0.3 alone
    assert half["dice"] == pytest.approx(2 / 5, abs=0.01)


def test_the_two_protocols_differ():
    mean, truth = flat(0.9, 0.45, 0.1), flat(1.0, 1.0, 0.0)
    assert abs(protocols.e_author(mean, truth)["dice"] - protocols.e_clean(mean, truth > 0.5)["dice"]) > 0.02


def test_impossible_means_are_noticed():
    protocols.check_means(0.8784, 0.7886)
    with pytest.raises(AssertionError, match="cannot be"):
        protocols.check_means(0.932, 0.853)


def test_otsu_takes_the_dark_class():
    picture = np.array([[0.1, 0.12, 0.9], [0.11, 0.85, 0.88]])
    assert protocols.otsu(picture).tolist() == [[True, True, False], [True, False, False]]
    assert not protocols.otsu(np.full((2, 2), 0.5)).any() or protocols.otsu(np.full((2, 2), 0.5)).all()


def test_constant_mask_is_the_best_level_set():
    masks = [np.array([1, 1, 0, 0], bool), np.array([1, 1, 1, 0], bool), np.array([0, 1, 0, 0], bool)]
    assert protocols.constant_mask(masks).tolist() == [True, True, False, False]
    with pytest.raises(ValueError, match="masks must hold at least one"):
        protocols.constant_mask([])


def test_cdal_scores_the_foreground_of_one_picture():
    truth = np.zeros((8, 8), bool)
    truth[2:6, 2:5] = True  # 12 of 64 cells: the lungs
    everything = protocols.e_cdal(np.ones((8, 8)), truth)
    assert everything == {"dice": pytest.approx(24 / 76), "iou": pytest.approx(12 / 64)}  # not 0: lungs are foreground
    assert protocols.e_cdal(np.zeros((8, 8)), truth) == {"dice": 0.0, "iou": 0.0}
    assert protocols.e_cdal(np.where(truth, 0.51, 0.5), truth) == {"dice": 1.0, "iou": 1.0}
    assert protocols.e_cdal(np.where(truth, 0.0, 1.0), truth) == {"dice": 0.0, "iou": 0.0}
