"""``python -m ncakern.info``: versions, instruction sets, threads, and which backend can run what, or why it cannot."""

from __future__ import annotations

import argparse
import os
import platform
from pathlib import Path

import numpy as np
import torch

import ncakern
from ncakern import _dispatch
from ncakern._env import VARIABLES
from ncakern._spec import NORMS, PERCEPTIONS, Problem, RolloutSpec
from ncakern.backends import cpu


def main() -> None:
    """Print the report; with ``--size``, also what would run for that problem."""
    arguments = _parser().parse_args()
    for title, lines in (("versions", _versions()), ("cpu", _cpu()), ("environment", _environment())):
        _print(title, lines)
    _print("backends, in the order of choice", {n: r or "can run" for n, r in ncakern.backends().items()})
    if arguments.size:
        problem = _problem(arguments)
        _print("this problem", {n: r or "can run" for n, r in _dispatch.explain(problem).items()})
        print(f"\nbackend='auto' takes: {_dispatch.choose_backend(problem)}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ncakern.info", description=__doc__.splitlines()[0].split(": ", 1)[1]
    )
    parser.add_argument("--size", type=int, nargs="+", metavar="N", help="cells per axis, two or three numbers")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--channels", type=int, default=16)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--num-filters", type=int, default=1)
    parser.add_argument("--kernel-size", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--perception", choices=PERCEPTIONS, default="depthwise")
    parser.add_argument("--norm", choices=NORMS, default="none")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu", help="kind of device, such as cpu or cuda")
    return parser


def _problem(arguments: argparse.Namespace) -> Problem:
    return Problem(
        device=arguments.device,
        dtype=arguments.dtype,
        batch=arguments.batch,
        size=tuple(arguments.size),
        channels=arguments.channels,
        hidden=arguments.hidden,
        num_filters=arguments.num_filters,
        kernel=(arguments.kernel_size,) * len(arguments.size),
        spec=RolloutSpec(perception=arguments.perception, norm=arguments.norm),
        steps=arguments.steps,
    )


def _versions() -> dict[str, str]:
    return {
        "ncakern": ncakern.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "system": platform.platform(),
    }


def _cpu() -> dict[str, str]:
    available = [name for name, is_supported in cpu.variants().items() if is_supported]
    return {
        "instruction sets": ", ".join(available) or "none, the extension is not there",
        "in use": cpu.choose_isa() if available else "none",
        "bfloat16 products": _bf16_products() if available else "none",
        "threads": f"{torch.get_num_threads()} of {os.cpu_count()} cores (torch.set_num_threads)",
        "OpenMP": ", ".join(_openmp_libraries()) or "none mapped",
    }


def _bf16_products() -> str:
    reason = cpu.why_not_amx("bfloat16", RolloutSpec(perception="dense"))
    able = "amx: bfloat16 states, dense perception, norm none, relu or leaky_relu, no clamp, without gradients"
    return f"none: {reason}" if reason else able


def _openmp_libraries() -> list[str]:
    """The OpenMP runtimes in this process: more than one means thread pools that fight for the cores."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return []
    names = {Path(line.split()[-1]).name for line in maps.read_text().splitlines() if "omp" in line.split()[-1]}
    return sorted(name for name in names if name.startswith(("libgomp", "libomp", "libiomp")))


def _environment() -> dict[str, str]:
    return {
        name: f"{os.environ.get(name, default)} ({meaning}; {', '.join(allowed)})"
        for name, (default, allowed, meaning) in VARIABLES.items()
    }


def _print(title: str, lines: dict[str, str]) -> None:
    print(f"{title}:")
    for name, text in lines.items():
        print(f"  {name:<26}{text}")


if __name__ == "__main__":
    main()
