"""Every test starts from the same random state; tests that need hardware or data skip with a reason."""

import os
import signal
import threading

import interpreter  # noqa: F401  before anything that imports triton, such as ncakern
import pytest
import torch

import ncakern


def pytest_report_header() -> list[str]:
    """Say at the top which backends the run exercises, as a missing one only skips its tests."""
    states = [f"{name}: {'yes' if reason is None else reason}" for name, reason in ncakern.backends().items()]
    return [f"ncakern {ncakern.__version__}, torch {torch.__version__}; backends: " + "; ".join(states)]


def pytest_configure(config: pytest.Config) -> None:
    if threading.current_thread() is threading.main_thread():
        # Under nohup, or behind an "&" in a script, signals are ignored, and so they would be in what tests start.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if ncakern.backends()["cpu"] is not None:
        # A checkout without a compiler must pass too. Where the fall-back is the subject, tests look for the warning.
        config.addinivalue_line("filterwarnings", "ignore:no fast backend can run this call")


@pytest.fixture(autouse=True)
def _same_start(request: pytest.FixtureRequest) -> None:
    torch.manual_seed(1234)
    if request.node.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs an accelerator; torch sees none")
    if request.node.get_closest_marker("data") and not os.environ.get("NCASEG_DATA"):
        pytest.skip("needs real images; set NCASEG_DATA to the folder that holds Task04_Hippocampus")
