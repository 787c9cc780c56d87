"""A stand-in for a GPU, for processes of their own: Triton prepares what it would compile, and stops there.

Tensors are on the CPU and hold what memory held. Import this before anything launches, and without the interpreter.
"""

import os
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

_NUM_SMS = 132  # of an H100


class _Driver:
    """What the launcher asks of a driver until it has a kernel to run."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


def install() -> None:
    """Make this process believe in a GPU. The triton backend then takes CPU tensors, as it does in the interpreter."""
    import ncakern.backends.triton.launch  # noqa: F401  before TRITON_INTERPRET, so that kernels are for the compiler

    driver.set_active(_Driver())
    properties = types.SimpleNamespace(major=9, minor=0, multi_processor_count=_NUM_SMS)
    torch.cuda.get_device_properties = lambda device=None: properties
    torch.cuda.is_available = lambda: True
    os.environ["TRITON_INTERPRET"] = "1"


@contextmanager
def launches() -> Iterator[list[tuple[str, str]]]:
    """Collects each launch as its kernel's name, and the key under which Triton would look for its machine code."""
    found: list[tuple[str, str]] = []

    def note(*, key: str, fn: Any, **others: Any) -> bool:
        found.append((fn.name.rpartition(".")[2], key))
        return True  # neither compiled nor run

    before: Callable | None = knobs.runtime.jit_cache_hook
    knobs.runtime.jit_cache_hook = note
    try:
        yield found
    finally:
        knobs.runtime.jit_cache_hook = before
