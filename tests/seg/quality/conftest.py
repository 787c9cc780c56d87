"""What the tests of quality control share."""

import pytest

from ncaseg.data.index import find_cases
from ncaseg.data.phantom import write_phantoms


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    return find_cases(write_phantoms(tmp_path_factory.mktemp("data"), 3, seed=0, size=(12, 13, 14)))
