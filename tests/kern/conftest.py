"""Kernel tests: uninitialised memory holds NaN, so that a value nobody wrote is seen; one thread by default."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _nan_filled_memory() -> Iterator[None]:
    # In this mode torch fills what torch.empty, empty_like and new_empty return with NaN.
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    # The cases are tiny: on a busy machine more threads would spend their time waiting for each other.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
