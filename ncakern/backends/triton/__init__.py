"""Fused Triton kernels on accelerators; in Triton's interpreter (TRITON_INTERPRET=1) also on CPU tensors, for tests."""

from __future__ import annotations

import importlib.util
import math
import os
from typing import Any

import torch
from torch import Tensor

from ncakern._spec import Problem
from ncakern.backends.triton import tiles, tiles_large

_STORAGES = ("float32", "bfloat16", "float16")


@torch.compiler.assume_constant_result  # Dynamo traces neither the search for a package nor the environment
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


@torch.compiler.assume_constant_result
def _is_interpreting() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


@torch.compiler.assume_constant_result
def _has_device() -> bool:
    return torch.cuda.is_available()


def why_not(problem: Problem) -> str | None:
    """Why this backend cannot run ``problem``; None if it can."""
    if problem.device != "cuda" and not (problem.device == "cpu" and _is_interpreting()):
        return f"needs a CUDA tensor; got device={problem.device}"
    if problem.device == "cuda" and not _has_device():
        return f"torch {torch.__version__} sees no CUDA device"
    if not _has_triton():
        return "the package triton is not installed; builds of torch for accelerators bring it"
    if problem.dtype not in _STORAGES:
        return f"needs a state of dtype {', '.join(_STORAGES)}; got {problem.dtype}"
    if problem.has_out_bias:
        return "has no out_bias"
    if problem.spec.clamp is not None:
        return "has no clamp"
    if problem.spec.activation not in ("relu", "leaky_relu"):
        return f"computes the activations relu and leaky_relu; got {problem.spec.activation}"
    sizes = {"channels": problem.channels, "filters": problem.num_filters}
    if tiles.is_small(problem.spec.perception, problem.size, hidden=problem.hidden, **sizes):
        return None
    return tiles_large.why_not(cells=math.prod(problem.size), **sizes)


def stats_width(problem: Problem) -> int:
    """Mean and variance of each hidden unit, and a point near the mean of the perception."""
    if problem.spec.norm == "none":
        return 0
    return 2 * problem.hidden + (1 + problem.num_filters) * problem.channels


def fwd(state: Tensor, *others: Tensor | None, **keywords: Any) -> tuple[Tensor, Tensor, Tensor]:
    """See ``ncakern/backends/__init__.py``."""
    from ncakern.backends.triton import launch

    return launch.fwd(state, *others[:-1], **keywords)  # the last is out_bias, which why_not refuses


def bwd(
    d_out: Tensor, state: Tensor, kept: Tensor, stats: Tensor, *others: Tensor | None, **keywords: Any
) -> tuple[Tensor | None, ...]:
    """See ``ncakern/backends/__init__.py``."""
    from ncakern.backends.triton import launch

    return (*launch.bwd(d_out, state, kept, stats, *others[:-1], **keywords), None)
