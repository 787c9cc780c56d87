"""Random streams: what a number depends on, and what it does not."""

import doctest

import torch

from ncaseg import streams
from ncaseg.streams import normal


def test_noise_of_a_sample_depends_on_nothing_else():
    batch = normal((3, 1, 5, 7), seed=3, first_sample=2, step=9)
    for i in range(3):
        assert torch.equal(batch[i : i + 1], normal((1, 1, 5, 7), seed=3, first_sample=2 + i, step=9))
    others = [{"seed": 4}, {"first_sample": 1}, {"step": 8}]
    for change in others:
        key = {"seed": 3, "first_sample": 2, "step": 9} | change
        assert not torch.equal(batch[0], normal((1, 1, 5, 7), **key)[0])
    large = normal((1, 100_000), seed=0, first_sample=0, step=0)
    assert abs(large.mean()) < 0.02 and abs(large.std() - 1) < 0.02


def test_examples_run():
    found = doctest.testmod(streams)
    assert found.attempted and not found.failed
