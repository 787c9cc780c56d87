"""What the tests of the command line share."""

import pytest
from seg.tiny import tiny_config, tiny_model

from ncaseg.checkpoint.model import save_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    save_model(path, tiny_model(tiny_config()), tiny_config())
    return path
