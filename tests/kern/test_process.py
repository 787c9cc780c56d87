"""The extension as a guest in the process: one OpenMP runtime, torch's thread count, no hold on the interpreter."""

import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
import torch

import ncakern

ROLLOUT = "import torch, ncakern; ncakern.NCA(2, 8, 16)(torch.rand(1, 9, 9, 8), 2, seed=0, backend='cpu')"


@pytest.fixture(autouse=True)
def _needs_extension() -> None:
    if ncakern.backends()["cpu"] is not None:
        pytest.skip(ncakern.backends()["cpu"])


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
@pytest.mark.parametrize("first", ["torch", "ncakern._cpu"])
def test_one_openmp_runtime_is_mapped_in_either_import_order(first: str) -> None:
    script = f"""
        import importlib.util, sys
        # Loads the extension by its file: importing it through its package would bring in torch first.
        if {first!r} == "torch":
            import torch
        spec = importlib.util.spec_from_file_location("_cpu", {_extension_file()!r})
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        {ROLLOUT}
        lines = open("/proc/self/maps").read().splitlines()
        print(*sorted({{line.split()[-1] for line in lines if "libgomp" in line or "libomp" in line}}), sep="\\n")
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True, timeout=120
    )
    assert len(result.stdout.split()) == 1, result.stdout


def test_rollout_uses_as_many_threads_as_torch_says(monkeypatch: pytest.MonkeyPatch) -> None:
    from ncakern.backends import cpu

    seen = []
    extension = cpu.require_extension()

    class Spy:
        @staticmethod
        def fwd(arrays: dict, options: dict) -> None:
            seen.append(options["threads"])
            extension.fwd(arrays, options)

    monkeypatch.setattr(cpu, "require_extension", lambda: Spy)
    for threads in (1, 3):
        torch.set_num_threads(threads)
        with torch.no_grad():
            ncakern.NCA(2, 8, 16)(torch.rand(1, 33, 33, 8), 1, seed=0, backend="cpu")
    assert seen == [1, 3]


def test_interpreter_runs_on_during_a_rollout() -> None:
    nca, state = ncakern.NCA(2, 16, 64), torch.rand(1, 128, 128, 16)
    started, ended = threading.Event(), threading.Event()

    def roll() -> None:
        with torch.no_grad():
            nca(state, 1, seed=0, backend="cpu")  # loads everything
            started.set()
            nca(state, 200, seed=0, backend="cpu")
        ended.set()

    worker = threading.Thread(target=roll)
    worker.start()
    started.wait(60)
    turns = 0
    while not ended.wait(0.001):
        turns += 1
    worker.join()
    # With the lock held this thread would have had its first turn after the end.
    assert turns > 5


def _extension_file() -> str:
    from ncakern import _cpu

    return str(_cpu.__file__)
