"""The C++/OpenMP kernel on CPU tensors: packs a call into numpy views and options for `ncakern._cpu`."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ncakern._kernel import (
    MAX_THREADS,
    call_options,
    choose_isa,
    import_extension,
    require_extension,
    variants,
    why_missing,
    why_not_amx,
)
from ncakern._spec import Problem, RolloutSpec

__all__ = ["bwd", "choose_isa", "fwd", "stats_width", "variants", "why_not", "why_not_amx"]

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
    "out_bias",
)
_STORAGES = ("float32", "bfloat16", "float16")


@torch.compiler.assume_constant_result  # Dynamo neither traces the import nor the cache
def _load() -> ModuleType | ImportError:
    """The extension, or why it cannot be imported."""
    return import_extension()


def why_not(problem: Problem) -> str | None:
    """Why this backend cannot run ``problem``; None if it can."""
    extension = _load()
    if isinstance(extension, ImportError):
        return why_missing(extension)
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
        require_extension().fwd(_arrays(inputs | outputs), options)
    return out, kept, stats


def bwd(
    d_out: Tensor, state: Tensor, kept: Tensor, stats: Tensor, *others: Tensor | None, **keywords: Any
) -> tuple[Tensor | None, ...]:
    """See ``ncakern/backends/__init__.py``."""
    inputs = dict(zip(_INPUTS, (state, *others), strict=True))
    gradients = {f"d_{name}": None if t is None else torch.zeros_like(t) for name, t in inputs.items()}
    saved = {"d_out": d_out, "kept": kept if kept.numel() else None, "stats": stats if stats.numel() else None}
    if state.numel():
        require_extension().bwd(_arrays(inputs | gradients | saved), _options(state, others, **keywords))
    return tuple(gradients.values())


def _arrays(tensors: dict[str, Tensor | None]) -> dict[str, np.ndarray]:
    """Numpy views of the tensors that are there; 16-bit floats as integers, since numpy has no bfloat16."""
    views = {}
    for name, tensor in tensors.items():
        if tensor is not None:
            tensor = tensor.detach()
            if tensor.data_ptr() == 0 and tensor.numel():  # numpy would take memory of its own
                raise ValueError(f"{name} has no memory: its storage was given back")
            views[name] = (tensor.view(torch.int16) if tensor.dtype.itemsize == 2 else tensor).numpy()
    return views


def _options(state: Tensor, others: tuple[Tensor | None, ...], **keywords: Any) -> dict[str, Any]:
    weight, _, hidden_weight, *_ = others
    assert weight is not None and hidden_weight is not None
    storage = str(state.dtype).removeprefix("torch.")
    shapes = tuple(state.shape), tuple(weight.shape), hidden_weight.shape[0]
    threads = min(torch.get_num_threads(), MAX_THREADS)
    return call_options(*shapes, storage=storage, threads=threads, **keywords)
