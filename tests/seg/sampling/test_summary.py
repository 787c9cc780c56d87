"""What samples say together."""

import doctest

import pytest
import torch

from ncaseg.sampling import summary
from ncaseg.sampling.summary import summarise


def test_summary_of_an_ensemble():
    samples = torch.tensor([[1.0, 0.0, 1.0], [1.0, 0.5, 0.0]])
    mean, variance, nqm = summarise(samples)
    assert mean.tolist() == [1.0, 0.25, 0.5] and variance.tolist() == [0.0, 0.0625, 0.25]
    assert nqm == pytest.approx(0.75 / 1.75)
    assert summarise(torch.zeros(2, 3)).nqm == float("inf")
    with pytest.raises(ValueError, match="samples must hold at least one"):
        summarise(torch.zeros(0, 3))


def test_examples_run():
    found = doctest.testmod(summary)
    assert found.attempted and not found.failed
