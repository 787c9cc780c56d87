"""The public names of ncaseg: they load, when asked for, and importing the package loads nothing else."""

import subprocess
import sys

import pytest

import ncaseg


@pytest.mark.parametrize("name", ncaseg.__all__)
def test_public_names_load(name):
    assert getattr(ncaseg, name) is not None
    assert name in dir(ncaseg)


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'ncaseg' has no attribute 'nope'"):
        ncaseg.nope  # noqa: B018


def test_import_loads_neither_torch_nor_numpy_nor_the_kernel():
    code = "import sys, ncaseg; print(sorted({'torch', 'numpy', 'ncakern'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
