"""Sliding windows: where they lie, that nothing is left out, and their mean."""

import doctest

import pytest
import torch

from ncaseg.sampling import windows as subject
from ncaseg.sampling.windows import mean_of_windows, windows


def test_examples_in_docstrings_run():
    assert doctest.testmod(subject).attempted > 0 and doctest.testmod(subject).failed == 0


def test_windows_without_overlap_are_tiles():
    found = windows((64, 32, 1), (32, 16, 0), 0.0)
    corners = [(x.start, y.start, z.start) for x, y, z in found]
    assert corners == [(0, 0, 0), (0, 16, 0), (32, 0, 0), (32, 16, 0)]


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.75])
def test_every_cell_is_covered_and_every_window_inside(overlap):
    size, window = (17, 5, 33), (8, 8, 0)
    seen = torch.zeros(size)
    for where in windows(size, window, overlap):
        assert seen[where].shape == (8, 5, 33)
        seen[where] += 1
    assert seen.min() >= 1


def test_number_of_windows_at_an_overlap_of_three_quarters():
    assert len(windows((32, 40, 41), (32, 32, 32), 0.75)) == 1 * 2 * 3


def test_mean_counts_every_window_once():
    values = torch.randn(2, 3, 10, 7)
    where = windows((10, 7), (4, 4), 0.5)
    whole = mean_of_windows(((w, values[(..., *w)]) for w in where), (10, 7))
    torch.testing.assert_close(whole, values)
    marked = mean_of_windows(((w, torch.full((1, 1, 4, 4), float(i))) for i, w in enumerate(where)), (10, 7))
    covering = [i for i, w in enumerate(where) if w[0].start <= 3 < w[0].stop and w[1].start <= 3 < w[1].stop]
    assert marked[0, 0, 3, 3].item() == pytest.approx(sum(covering) / len(covering)) and len(covering) == 6
