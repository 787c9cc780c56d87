"""Run a module without a card, with a stand-in for one: tensors stay on the CPU, and no kernel is launched.

    python -m benchmarks.gpu.standin MODULE [ARGUMENT ...]

All code that prepares launches runs; where Triton would compile a kernel and launch it, it is only counted. New memory
holds zeros, so results are zeros or what was there before. Grids are tiny (`NCAKERN_BENCH_TINY`). What comes out shows
that a module runs to its end, and nothing else: its card is called "stand-in".
"""

import atexit
import collections
import os
import runpy
import sys
import time
import types
from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from triton.runtime import JITFunction

import ncakern.backends.triton.launch  # noqa: F401  before TRITON_INTERPRET is set: its kernels are those of a card
from benchmarks.gpu.cases import TINY

NAME = "stand-in"
NUM_SMS, MEMORY_BYTES = 132, 80 * 2**30
LAUNCHES: collections.Counter[str] = collections.Counter()


class Event:
    """A point in time of the host."""

    def __init__(self, **_: Any) -> None:
        self.time = 0.0

    def record(self, *_: Any) -> None:
        self.time = time.perf_counter()

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, later: "Event") -> float:
        return 1e3 * max(later.time - self.time, 1e-6)


class OnTheCpu(TorchFunctionMode):
    """Takes "cpu" wherever a caller says "cuda"."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is torch.Tensor.cuda:
            return args[0]
        placed = {name: _here(value) for name, value in (kwargs or {}).items()}
        return func(*map(_here, args), **placed)


def _here(value: Any) -> Any:
    is_place = isinstance(value, torch.device) or (isinstance(value, str) and value.startswith("cuda"))
    return torch.device("cpu") if is_place else value


def install() -> None:
    """Put the stand-in where torch and Triton would find a card; for the rest of this process."""

    def run(kernel: JITFunction, *_: Any, **__: Any) -> None:
        LAUNCHES[kernel.__name__] += 1

    properties = types.SimpleNamespace(major=9, minor=0, multi_processor_count=NUM_SMS, name=NAME)
    JITFunction.run = run
    torch.cuda.is_available = lambda: True
    torch.cuda.get_device_name = lambda *_: NAME
    torch.cuda.get_device_properties = lambda *_: properties
    torch.cuda.get_device_capability = lambda *_: (9, 0)
    torch.cuda.Event = Event
    torch.cuda.mem_get_info = lambda *_: (MEMORY_BYTES, MEMORY_BYTES)
    torch.cuda.memory_allocated, torch.cuda.max_memory_allocated = lambda *_: 2**20, lambda *_: 2**21
    for name in ("synchronize", "reset_peak_memory_stats", "empty_cache"):
        setattr(torch.cuda, name, lambda *_: None)
    torch.nn.Module.cuda = lambda module, *_: module
    torch.compile = lambda function, **_: function
    profile, host = torch.profiler.profile, [torch.profiler.ProfilerActivity.CPU]
    torch.profiler.profile = lambda **_: profile(activities=host)  # which sees no kernel
    torch.empty, torch.empty_like = _zeroed(torch.empty), _zeroed(torch.empty_like)
    torch.Tensor.new_empty = _zeroed(torch.Tensor.new_empty)
    os.environ |= {"TRITON_INTERPRET": "1", TINY: "1"}  # the first lets the backend take tensors of the CPU


def _zeroed(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    return lambda *args, **keywords: make(*args, **keywords).zero_()


def main() -> None:
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    install()
    from benchmarks.harness import measure
    from benchmarks.rollout.providers import Kernel

    Kernel.backend, timed = "triton", measure.time_on_device
    measure.time_on_device = lambda call, **_: timed(call, seconds=0)
    atexit.register(lambda: print(f"{NAME}: {LAUNCHES.total()} launches of {len(LAUNCHES)} kernels", file=sys.stderr))
    del sys.argv[0]
    with OnTheCpu():
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
