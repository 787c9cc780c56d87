"""Compile the kernels of the check before it needs them, into Triton's cache; a card need not be there.

    TRITON_CACHE_DIR=.triton-cache python -m benchmarks.gpu.prewarm            for a Hopper card, wherever this runs
    TRITON_CACHE_DIR=.triton-cache python -m benchmarks.gpu.prewarm --seconds 60    say how many are there already

The backend runs on tensors without memory, as for `aot`, and Triton's own launcher compiles what it is asked to launch.
So it finds that again on a card: with the same version of Triton, of Python, and the same sources. Exit code 3: time
is up, call again.
"""

import argparse
import concurrent.futures
import itertools
import multiprocessing
import os
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import JITFunction, driver
from triton.runtime.jit import MockTensor

from benchmarks.gpu.aot import PRECISIONS
from benchmarks.gpu.aot_record import specialize, trace
from benchmarks.gpu.cases import load_gpu_cases
from benchmarks.gpu.small import SMALL
from ncakern import RolloutSpec

UNFINISHED = 3
HOPPER = (9, 0), 132
Job = tuple[JITFunction, tuple[Any, ...], dict[str, Any]]


class Compiler:
    """Triton's driver as far as compiling asks for it."""

    def __init__(self, capability: tuple[int, int]) -> None:
        self.target = GPUTarget("cuda", 10 * capability[0] + capability[1], 32)
        self.utils = SimpleNamespace(get_device_properties=lambda device: {"max_shared_mem": 232448})

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self.target


class Unaligned(MockTensor):
    """A tensor that does not begin at a multiple of 16 bytes."""

    @staticmethod
    def data_ptr() -> int:
        return 4


def problems() -> Iterator[tuple[RolloutSpec, dict[str, Any], str]]:
    """What the check runs: specification, sizes, precision. Shapes of the tests alone are compiled by the tests."""
    for case, precision in itertools.product(load_gpu_cases().values(), PRECISIONS):
        spec = RolloutSpec(perception=case.perception, norm=case.norm, frozen_channels=case.frozen_channels)
        names = ("size", "channels", "hidden", "num_filters", "kernel_size")
        yield spec, {name: getattr(case, name) for name in names}, precision
    for (size, channels, hidden, num_filters, kernel_size, options), precision in itertools.product(SMALL, PRECISIONS):
        sizes = {"channels": channels, "hidden": hidden, "num_filters": num_filters, "kernel_size": kernel_size}
        yield RolloutSpec(**options), {"size": size, **sizes}, precision


def collect(capability: tuple[int, int], num_sms: int) -> list[Job]:
    """Every launch once, its tensors replaced by what Triton reads of them."""
    jobs: dict[str, Job] = {}

    def note(kernel: JITFunction, args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        key = specialize(kernel, args, keywords).key
        if key not in jobs:
            jobs[key] = kernel, tuple(map(_described, args)), {n: _described(v) for n, v in keywords.items()}

    for spec, sizes, precision in problems():
        dtype, os.environ["NCAKERN_TRITON_PRECISION"] = PRECISIONS[precision]
        trace(spec, note, **sizes, dtype=dtype, capability=capability, num_sms=num_sms)
    return list(jobs.values())


def _described(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return (Unaligned if value.storage_offset() * value.itemsize % 16 else MockTensor)(value.dtype, list(value.shape))


_JOBS: list[Job] = []  # of this process, when it forks its workers


def compile_job(index: int) -> tuple[str, bool, str | None]:
    """The kernel's name, whether the cache had it, and why it does not compile."""
    kernel, args, keywords = _JOBS[index]
    hits: list[bool] = []
    triton.knobs.compilation.listener = lambda *, cache_hit, **_: hits.append(cache_hit)
    try:
        kernel.run(*args, grid=(1,), warmup=True, **keywords)
    except Exception as error:  # whatever the compiler raises is the finding
        return kernel.__name__, False, f"{type(error).__name__}: {str(error).strip().splitlines()[-1][:200]}"
    return kernel.__name__, all(hits), None


def prewarm(*, seconds: float, workers: int) -> tuple[int, int, list[str]]:
    """Compile until time is up: how many kernels there are, how many the cache had, and the errors.

    Raises:
        TimeoutError: time was up first.
    """
    deadline = time.monotonic() + seconds
    capability, num_sms = HOPPER
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        capability, num_sms = (properties.major, properties.minor), properties.multi_processor_count
    _JOBS[:] = collect(capability, num_sms)
    driver.set_active(Compiler(capability))
    fork = multiprocessing.get_context("fork")  # a kernel is a function that no other process could be sent
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=fork) as pool:
        futures = [pool.submit(compile_job, index) for index in range(len(_JOBS))]
        try:
            done = [future.result(timeout=max(0.0, deadline - time.monotonic())) for future in futures]
        except TimeoutError:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    errors = [f"{name}: {error}" for name, _, error in done if error is not None]
    return len(done), sum(hit for _, hit, _ in done), errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3600, help="give up after this time (default: 3600)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: one per CPU)")
    options = parser.parse_args()
    try:
        count, hits, errors = prewarm(seconds=options.seconds, workers=options.workers)
    except TimeoutError:
        print(f"time is up after {options.seconds:.0f} s")
        raise SystemExit(UNFINISHED) from None
    print("\n".join(errors))
    print(f"{count} kernels: {hits} were in the cache, {count - hits - len(errors)} compiled, {len(errors)} failed")
    raise SystemExit(bool(errors))


if __name__ == "__main__":
    main()
