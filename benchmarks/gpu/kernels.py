"""Microseconds of every kernel of a rollout, from torch's profiler, and its share of the time.

    python -m benchmarks.gpu.kernels A-256x256x256-n4 C-1024x1024-n20 [--providers kernel kernel-tf32] [--page FILE]

The host's part is what a call takes on top of its kernels: with it above zero, launches do not keep up.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.gpu.cases import load_gpu_cases
from benchmarks.gpu.providers import GPU_PROVIDERS, GpuProvider
from benchmarks.harness import measure, record
from benchmarks.harness.cases import Case

ROUNDS = 3


class Kernel(NamedTuple):
    """What one kind of kernel took in all rounds."""

    name: str
    launches: int
    total_us: float


def profile(case: Case, provider: GpuProvider, mode: str) -> tuple[list[Kernel], float]:
    """The kernels of `ROUNDS` calls, longest first, and the time of a call in microseconds."""
    torch.manual_seed(0)
    state = torch.rand(1, *case.size, case.channels, device="cuda").to(provider.dtype)
    with provider.settings():
        call = measure.make_call(provider.make(case), state, mode)
        whole_us = 1e3 * measure.time_on_device(call, max_rounds=10).p50_ms
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
            for _ in range(ROUNDS):
                call()
            torch.cuda.synchronize()
    found = [Kernel(e.key, e.count, e.self_device_time_total) for e in profiler.key_averages()]
    return sorted((k for k in found if k.total_us > 0), key=lambda kernel: -kernel.total_us), whole_us


def table(case: str, provider: str, mode: str, kernels: Iterable[Kernel], whole_us: float) -> str:
    """A line per kind of kernel, and one of what is left of a call."""
    found = list(kernels)
    lines = [f"{case}, {provider}, {mode}: {whole_us:.0f} us", ""]
    lines += ["| kernel | launches a call | us a launch | us a call | share |", "| --- | --- | --- | --- | --- |"]
    for kernel in found:
        each, own = kernel.total_us / kernel.launches, kernel.total_us / ROUNDS
        cells = (f"{kernel.launches / ROUNDS:.0f}", f"{each:.1f}", f"{own:.0f}", f"{own / whole_us:.0%}")
        lines.append(f"| {kernel.name[:60]} | {' | '.join(cells)} |")
    rest = whole_us - sum(kernel.total_us for kernel in found) / ROUNDS
    return "\n".join([*lines, f"| not in a kernel | | | {rest:.0f} | {rest / whole_us:.0%} |"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="+", choices=load_gpu_cases())
    parser.add_argument("--providers", nargs="+", choices=GPU_PROVIDERS, default=["kernel"])
    parser.add_argument("--page", type=Path, help="also write the tables here, one after the other")
    options = parser.parse_args()
    parts: list[str] = []
    for name in options.cases:
        for provider in options.providers:
            for mode in measure.MODES:
                found = profile(load_gpu_cases()[name], GPU_PROVIDERS[provider], mode)
                parts.append(table(name, provider, mode, *found))
                print(parts[-1] + "\n", flush=True)
                if options.page:
                    record.write_file(options.page, "\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
