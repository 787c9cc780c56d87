"""The C++/OpenMP kernel on CPU tensors: packs a call into numpy views and options for `ncakern._cpu`."""

from __future__ import annotations

import functools
import importlib
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ncakern._env import read_env
from ncakern._spec import Problem, RolloutSpec

_INPUTS = (
    "state",
    "perceive_weight",
    "perceive_bias",
    "hidden_weight",
    "hidden_bias",
    "norm_weight",
    "norm_bias",
    "out_weight",
    "perceive_from",
    "scale",
    "shift",
)
_STORAGES = ("float32", "bfloat16", "float16")


@functools.cache
def _import_extension() -> ModuleType | ImportError:
    try:
        return importlib.import_module("ncakern._cpu")
    except ImportError as error:
        return error


@torch.compiler.assume_constant_result  # Dynamo neither traces the import nor the cache
def _load() -> ModuleType | ImportError:
    """The extension, or why it cannot be imported."""
    return _import_extension()


def _extension() -> ModuleType:
    extension = _load()
    if isinstance(extension, ImportError):
        raise RuntimeError("the extension ncakern._cpu is not built or cannot be loaded") from extension
    return extension


def why_not(problem: Problem) -> str | None:
    """Why this backend cannot run ``problem``; None if it can."""
    extension = _load()
    if isinstance(extension, ImportError):
        return (
            f"the extension ncakern._cpu is not built or cannot be loaded ({extension}); reinstall with a C++ compiler"
        )
    if problem.device != "cpu":
        return f"needs a CPU tensor; got device={problem.device}"
    if problem.dtype not in _STORAGES:
        return f"needs a state of dtype {', '.join(_STORAGES)}; got {problem.dtype}"
    return None


def stats_width(problem: Problem) -> int:
    """Mean and covariance of the perception: V + V^2 numbers, V = (1 + F) * C."""
    if problem.spec.norm == "none":
        return 0
    width = (1 + problem.num_filters) * problem.channels
    return width + width * width


def variants() -> dict[str, bool]:
    """Instruction sets in this build, best first, and whether this CPU has them."""
    extension = _load()
    return {} if isinstance(extension, ImportError) else extension.variants()


def choose_isa() -> str:
    """The best instruction set of this CPU, or the one that NCAKERN_ISA names.

    Raises:
        ValueError: NCAKERN_ISA names one that this build or this CPU does not have.
    """
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
    if read_env().cpu_precision == "ieee":
        return "NCAKERN_CPU_PRECISION is ieee"
    if choose_isa() != "avx512":
        return f"needs the instruction set avx512; in use is {choose_isa()}"
    if not _extension().has_amx():
        return "needs a CPU with AMX and a Linux that lets processes use it"
    return None


def fwd(
    state: Tensor, *others: Tensor | None, steps: int, keep_every: int, keep: bool, **keywords: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """See ``ncakern/backends/__init__.py``."""
    spec: RolloutSpec = keywords["spec"]
    inputs = dict(zip(_INPUTS, (state, *others), strict=True))
    options = _options(state, others, steps=steps, keep_every=keep_every, **keywords)
    options["use_amx"] = why_not_amx(options["storage"], spec, keep=keep) is None
    num_kept = max(0, -(-steps // keep_every) - 1) if keep else 0
    out, kept = state.new_empty(state.shape), state.new_empty((num_kept, *state.shape))
    stats = state.new_empty((0, 0, 0), dtype=torch.float64)
    if keep and spec.norm != "none":
        width = (1 + options["filters"]) * options["channels"]
        groups = options["batch"] if spec.norm == "instance" else 1
        stats = state.new_empty((steps, groups, width + width * width), dtype=torch.float64)
    outputs = {"out": out, "kept": kept if num_kept else None, "stats": stats if stats.numel() else None}
    if state.numel():
        _extension().fwd(_arrays(inputs | outputs), options)
    return out, kept, stats


def bwd(
    d_out: Tensor, state: Tensor, kept: Tensor, stats: Tensor, *others: Tensor | None, **keywords: Any
) -> tuple[Tensor | None, ...]:
    """See ``ncakern/backends/__init__.py``."""
    inputs = dict(zip(_INPUTS, (state, *others), strict=True))
    gradients = {f"d_{name}": None if t is None else torch.zeros_like(t) for name, t in inputs.items()}
    saved = {"d_out": d_out, "kept": kept if kept.numel() else None, "stats": stats if stats.numel() else None}
    if state.numel():
        _extension().bwd(_arrays(inputs | gradients | saved), _options(state, others, **keywords))
    return tuple(gradients.values())


def _arrays(tensors: dict[str, Tensor | None]) -> dict[str, np.ndarray]:
    """Numpy views of the tensors that are there; 16-bit floats as integers, since numpy has no bfloat16."""
    views = {}
    for name, tensor in tensors.items():
        if tensor is not None:
            tensor = tensor.detach()
            views[name] = (tensor.view(torch.int16) if tensor.dtype.itemsize == 2 else tensor).numpy()
    return views


def _options(
    state: Tensor,
    others: tuple[Tensor | None, ...],
    *,
    spec: RolloutSpec,
    steps: int,
    seed: int,
    first_step: int,
    first_sample: int,
    origin: tuple[int, ...],
    extent: tuple[int, ...],
    keep_every: int,
) -> dict[str, Any]:
    """Sizes and settings as the extension takes them; 2D calls get a leading axis of one cell."""
    weight, _, hidden_weight, *_ = others
    assert weight is not None and hidden_weight is not None
    batch, *size, channels = state.shape
    missing = 3 - len(size)
    return {
        "batch": batch,
        "channels": channels,
        "filters": weight.shape[0],
        "hidden": hidden_weight.shape[0],
        "size": [1] * missing + size,
        "kernel": [1] * missing + list(weight.shape[-len(size) :]),
        "origin": [0] * missing + list(origin),
        "extent": [1] * missing + list(extent),
        "perception": spec.perception,
        "padding": spec.padding,
        "norm": spec.norm,
        "activation": spec.activation,
        "storage": str(state.dtype).removeprefix("torch."),
        "frozen_channels": spec.frozen_channels,
        "steps": steps,
        "keep_every": keep_every,
        "fire_threshold": int(spec.fire_rate * 2**32),
        "seed": seed & 0xFFFFFFFFFFFFFFFF,
        "first_step": first_step & 0xFFFFFFFF,
        "first_sample": first_sample & 0xFFFFFFFF,
        "threads": torch.get_num_threads(),
        "isa": choose_isa(),
    }
