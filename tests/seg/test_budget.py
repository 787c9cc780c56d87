"""Amounts of memory: texts to bytes, bytes to texts, and what this process occupies."""

import doctest
import mmap

import numpy as np
import pytest

from ncaseg import budget


@pytest.mark.parametrize(
    ("text", "count"), [("2GB", 2 * 10**9), ("512 mb", 512 * 10**6), ("1GiB", 2**30), ("100B", 100), ("1.5KB", 1500)]
)
def test_texts_are_read(text, count):
    assert budget.parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "2", "2G", "-1GB", "0GB", "two GB", "IB"])
def test_other_texts_are_refused(text):
    with pytest.raises(ValueError, match="memory must be a positive number with a unit, such as 2GB"):
        budget.parse_bytes(text)


def test_what_is_occupied_grows_with_an_array():
    before = budget.resident_bytes()
    with mmap.mmap(-1, 50_000_000) as fresh:  # not what an earlier array has left behind
        np.frombuffer(fresh, np.uint8)[:] = 1
        assert 45e6 < budget.resident_bytes() - before < 100e6
    assert budget.peak_bytes() > 50_000_000


def test_examples_run():
    assert doctest.testmod(budget).failed == 0
