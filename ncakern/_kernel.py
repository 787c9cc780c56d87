"""The C++ extension without torch: loaded on first use, its instruction sets, and the options of one call."""

from __future__ import annotations

import functools
import importlib
import math
from types import ModuleType
from typing import Any

from ncakern._env import read_env
from ncakern._spec import RolloutSpec

MAX_THREADS = 1024  # that the extension takes


@functools.cache
def import_extension() -> ModuleType | ImportError:
    """The extension, or why it cannot be imported."""
    try:
        return importlib.import_module("ncakern._cpu")
    except ImportError as error:
        return error


def why_missing(error: ImportError) -> str:
    """What to say where the extension cannot be imported."""
    return f"the extension ncakern._cpu is not built or cannot be loaded ({error}); reinstall with a C++ compiler"


def require_extension() -> ModuleType:
    """The extension.

    Raises:
        RuntimeError: it cannot be imported.
    """
    extension = import_extension()
    if isinstance(extension, ImportError):
        raise RuntimeError(why_missing(extension)) from extension
    return extension


def variants() -> dict[str, bool]:
    """Instruction sets in this build, best first, and whether this CPU has them."""
    extension = import_extension()
    return {} if isinstance(extension, ImportError) else extension.variants()


def choose_isa() -> str:
    """The best instruction set of this CPU, or the one that NCAKERN_ISA names.

    Raises:
        ValueError: NCAKERN_ISA names one that this build or this CPU does not have.
        RuntimeError: the extension cannot be imported.
    """
    require_extension()
    wanted, available = read_env().isa, [name for name, supported in variants().items() if supported]
    if wanted == "auto":
        return available[0]
    if wanted not in available:
        raise ValueError(f"NCAKERN_ISA must be one that this machine can run ({', '.join(available)}); got {wanted!r}")
    return wanted


def why_not_amx(dtype: str, spec: RolloutSpec, *, keep: bool = False) -> str | None:
    """Why such a forward pass does not take its products in bfloat16 on AMX tiles; None if it does.

    With ``keep`` it does not: gradients belong to the very numbers that the backward pass computes again, in float32.
    """
    if keep:
        return "gradients may be asked for, and they take float32 products"
    if dtype != "bfloat16":
        return f"needs a state of dtype bfloat16; got {dtype}"
    if spec.perception != "dense" or spec.norm != "none":
        return f"needs dense perception and norm none; got {spec.perception} and {spec.norm}"
    if spec.activation not in ("relu", "leaky_relu"):
        return f"needs the activation relu or leaky_relu; got {spec.activation}"
    if spec.clamp is not None:
        return "needs a state without clamp"
    if read_env().cpu_precision == "ieee":
        return "NCAKERN_CPU_PRECISION is ieee"
    if choose_isa() != "avx512":
        return f"needs the instruction set avx512; in use is {choose_isa()}"
    if not require_extension().has_amx():
        return "needs a CPU with AMX and a Linux that lets processes use it"
    return None


def call_options(
    shape: tuple[int, ...],
    perceive_shape: tuple[int, ...],
    hidden: int,
    *,
    spec: RolloutSpec,
    steps: int,
    seed: int,
    first_step: int,
    first_sample: int,
    origin: tuple[int, ...],
    extent: tuple[int, ...],
    keep_every: int,
    storage: str,
    threads: int,
) -> dict[str, Any]:
    """Sizes and settings as the extension takes them; 2D calls get a leading axis of one cell.

    ``shape`` is that of the state, ``perceive_shape`` that of perceive_weight, ``storage`` the state's dtype.
    """
    batch, *size, channels = shape
    missing = 3 - len(size)
    return {
        "batch": batch,
        "channels": channels,
        "filters": perceive_shape[0],
        "hidden": hidden,
        "size": [1] * missing + size,
        "kernel": [1] * missing + list(perceive_shape[-len(size) :]),
        "origin": [0] * missing + list(origin),
        "extent": [1] * missing + list(extent),
        "perception": spec.perception,
        "padding": spec.padding,
        "norm": spec.norm,
        "activation": spec.activation,
        "storage": storage,
        "frozen_channels": spec.frozen_channels,
        "clamp_low": -math.inf if spec.clamp is None else spec.clamp[0],
        "clamp_high": math.inf if spec.clamp is None else spec.clamp[1],
        "steps": steps,
        "keep_every": keep_every,
        "fire_threshold": int(spec.fire_rate * 2**32),
        "seed": seed & 0xFFFFFFFFFFFFFFFF,
        "first_step": first_step & 0xFFFFFFFF,
        "first_sample": first_sample & 0xFFFFFFFF,
        "threads": threads,
        "isa": choose_isa(),
        "use_amx": False,
    }
