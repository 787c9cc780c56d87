"""What is installed, which backend will run and why the others will not, and how fast it is here."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
import time

import torch

import ncakern
from ncaseg import zoo
from ncaseg.config import recipe_names

SPEED_SIZE, SPEED_STEPS = 24, 10  # small enough that the reference answers within a second


def print_report() -> None:
    """Print the report of ``collect``, one line per fact, and the measured speed."""
    for name, fact in collect():
        print(f"{name:<12} {fact}", flush=True)
    print(f"{'speed':<12} {speed_line()}")


def collect() -> list[tuple[str, str]]:
    """Facts about this installation as (name, text); the name is empty where a text continues the one before."""
    has_cuda = torch.cuda.is_available()
    cuda = f"CUDA {torch.version.cuda}, {torch.cuda.get_device_name()}" if has_cuda else "no CUDA device"
    openmp = "yes" if torch.backends.openmp.is_available() else "no"
    facts = [
        ("ncaseg", f"{ncakern.__version__}, a package of the distribution ncakern"),
        ("python", f"{platform.python_version()}, {sys.platform} {platform.machine()}"),
        ("torch", f"{torch.__version__}, {cuda}"),
        ("OpenMP", f"{openmp}, {torch.get_num_threads()} threads (torch.set_num_threads or OMP_NUM_THREADS change it)"),
        ("triton", _version("triton", "not installed; only a GPU needs it")),
    ]
    facts += [(name, _version(name, "NOT INSTALLED: pip install ncakern")) for name in ("numpy", "nibabel", "pillow")]
    reasons = ncakern.backends()
    chosen = next(name for name, reason in reasons.items() if reason is None)
    for i, (name, reason) in enumerate(reasons.items()):
        state = f"will not run: {reason}" if reason else "runs" + (" by default" if name == chosen else "")
        facts.append(("backends" if i == 0 else "", f"{name} {state}"))
    if chosen == "reference":
        facts.append(("", "only the slow reference runs here: install with a C++ compiler (g++) to get the kernel"))
    facts.append(("zoo", ", ".join(zoo.names()) or "empty"))
    facts.append(("recipes", ", ".join(recipe_names())))
    return facts


def speed_line() -> str:
    """Measured forward speed of every backend that runs here, in one line."""
    rates = {name: measure_speed(name) for name, reason in ncakern.backends().items() if reason is None}
    text = ", ".join(f"{name} {rate:.3g}" for name, rate in rates.items())
    size = "x".join([str(SPEED_SIZE)] * 3)
    return f"{text} million cell-steps/s (forward, {size} cells, C 16, hidden 64, k 3, {SPEED_STEPS} steps)"


def measure_speed(backend: str, *, size: int = SPEED_SIZE, steps: int = SPEED_STEPS) -> float:
    """Million cell-steps per second of a forward rollout on ``size``**3 cells: the best of three, after a warm-up."""
    device = "cuda" if backend == "triton" else "cpu"
    nca = ncakern.NCA(3, channels=16, hidden=64, frozen_channels=1).to(device)
    state = torch.rand(1, size, size, size, 16, device=device)
    best = float("inf")
    with torch.no_grad():
        nca(state, 1, seed=0, backend=backend)
        for _ in range(3):
            start = time.perf_counter()
            nca(state, steps, seed=0, backend=backend).sum().item()  # .item() waits for a GPU
            best = min(best, time.perf_counter() - start)
    return size**3 * steps / best / 1e6


def _version(package: str, otherwise: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return otherwise
