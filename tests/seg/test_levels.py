"""Sizes of levels, by hand: the paper's set-ups, sizes that do not divide, and sizes that fit nothing."""

import doctest

import pytest

from ncaseg import levels


def test_examples_in_docstrings_run():
    result = doctest.testmod(levels)
    assert result.attempted > 0 and result.failed == 0


@pytest.mark.parametrize(
    ("size", "scales", "coarsest"),
    [
        ((320, 320, 24), [(4, 4, 4)], (80, 80, 6)),
        ((320, 320, 24), [(2, 2, 2)] * 2, (80, 80, 6)),
        ((320, 320, 24), [(2, 2, 2)] * 3, (40, 40, 3)),
        ((64, 64, 52), [(2, 2, 2)], (32, 32, 26)),
        ((35, 50, 36), [(2, 2, 2)], (18, 25, 18)),
    ],
)
def test_every_level_trains_on_as_many_cells_as_the_coarsest(size, scales, coarsest):
    assert levels.working_sizes(size, scales) == [coarsest] * (len(scales) + 1)


def test_patches_by_level_or_the_whole_level():
    scales = levels.scales_of([(20, 20, 6), (40, 40, 6), (80, 80, 6), (160, 160, 12), (320, 320, 24)])
    assert scales == ((2, 2, 1), (2, 2, 1), (2, 2, 2), (2, 2, 2))
    found = levels.working_sizes((320, 320, 24), scales, [(), (), (), (80, 80, 6), (80, 80, 6)])
    assert found == [(20, 20, 6), (40, 40, 6), (80, 80, 6), (80, 80, 6), (80, 80, 6)]
    # A patch that is larger than the volume, or than the patch before it, takes what there is.
    assert levels.working_sizes((5, 9, 9), [(2, 2, 2)], [(), (6, 6, 6)]) == [(3, 5, 5), (5, 6, 6)]
    assert levels.working_sizes((16, 16, 16), [(2, 2, 2)], [(4, 4, 4), (16, 6, 16)]) == [(4, 4, 4), (8, 6, 8)]


@pytest.mark.parametrize(
    ("size", "scales", "kernels", "steps"),
    [
        ((320, 320, 24), [(4, 4, 4)], (7, 3), (27, 80)),
        ((64, 64, 52), [(2, 2, 2)], (7, 3), (11, 32)),
        ((64, 64, 52), [], (7,), (22,)),
    ],
)
def test_steps_of_the_paper_are_rounded_up(size, scales, kernels, steps):
    assert levels.steps_to_cross(levels.working_sizes(size, scales), kernels) == steps


def test_sizes_that_are_no_whole_factor_apart_name_axis_and_level():
    with pytest.raises(ValueError, match="on axis Y level 1 has 5 cells and level 2 has 7"):
        levels.scales_of([(2, 3, 4), (4, 5, 8), (8, 7, 16)])
    with pytest.raises(ValueError, match="level 1 has 1"):
        levels.steps_to_cross([(4, 4, 4), (4, 4, 4)], (3, 1))
