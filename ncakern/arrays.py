"""Rollouts on numpy arrays, and the statistics of a norm: straight to the C++ kernel, without torch, float32."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ncakern._kernel import MAX_THREADS, call_options, require_extension
from ncakern._spec import MAX_COUNT, RolloutSpec, check_int, check_seed_range
from ncakern._tile import check_padding, resolve_tile


class ArrayParams(NamedTuple):
    """The arrays of a step, all float32: the names and shapes of :class:`ncakern.RolloutParams`."""

    perceive_weight: np.ndarray
    perceive_bias: np.ndarray
    hidden_weight: np.ndarray
    hidden_bias: np.ndarray
    out_weight: np.ndarray
    norm_weight: np.ndarray | None = None
    norm_bias: np.ndarray | None = None
    out_bias: np.ndarray | None = None


def nca_rollout(
    state: np.ndarray,
    params: ArrayParams,
    spec: RolloutSpec,
    steps: int,
    *,
    seed: int,
    first_step: int = 0,
    first_sample: int = 0,
    origin: Sequence[int] | None = None,
    extent: Sequence[int] | None = None,
    perceive_from: np.ndarray | None = None,
    out: np.ndarray | None = None,
    threads: int | None = None,
) -> np.ndarray:
    """:func:`ncakern.nca_rollout` on arrays: the same kernel as ``backend="cpu"``, and so the same bits.

    Args:
        state: ``[B, *S, C]`` float32, channels last.
        params: arrays of the step.
        spec, steps, first_step, first_sample, origin, extent, perceive_from: as in :func:`ncakern.nca_rollout`.
        seed: names the random stream.
        out: where the result goes, of the state's shape, float32, contiguous and writeable; it may be the state itself.
        threads: how many compute, 1 to 1024; by default what OMP_NUM_THREADS says, else all CPUs of this process. The
            result does not depend on it. In a forked child one computes.

    Returns:
        The state after the last step, ``[B, *S, C]`` float32.

    Raises:
        TypeError: an array is not a float32 array, or a number is not an int.
        ValueError: a shape or a value is wrong.
        RuntimeError: the extension is not built.

    Example:
        >>> params = ArrayParams(*[np.zeros(s, np.float32) for s in ((1, 4, 3, 3), (1, 4), (8, 8), (8,), (4, 8))])
        >>> nca_rollout(np.ones((2, 5, 6, 4), np.float32), params, RolloutSpec(), 3, seed=0).shape
        (2, 5, 6, 4)
    """
    expected = _check_inputs(state, params, spec)
    numbers = {
        "steps": check_int("steps", steps, high=MAX_COUNT),
        "seed": check_seed_range(seed),
        "first_step": check_int("first_step", first_step),
        "first_sample": check_int("first_sample", first_sample),
    }
    origin, extent = resolve_tile(state.shape[1:-1], origin, extent, spec)
    num_threads = _resolve_threads(threads)
    if perceive_from is not None:
        expected["perceive_from"] = state.shape
        if numbers["steps"] != 1:
            raise ValueError(f"steps must be 1 when perceive_from is given (one call per step); got {steps}")
    if out is None:
        out = np.empty(state.shape, np.float32)
    _check_out(out)
    expected["out"] = state.shape
    given = {**params._asdict(), "perceive_from": perceive_from, "out": out}
    _check_shapes(given, expected)
    if numbers["steps"] == 0 or state.size == 0:
        out[...] = state
        return out
    options = call_options(
        state.shape,
        expected["perceive_weight"],
        expected["hidden_bias"][0],
        spec=spec,
        origin=origin,
        extent=extent,
        keep_every=1,
        storage="float32",
        threads=num_threads,
        **numbers,
    )
    arrays = {name: _readable(given[name]) for name in expected if name != "out"}
    require_extension().fwd({**arrays, "state": _readable(state), "out": out}, options)
    return out


def perception_moments(
    state: np.ndarray,
    params: ArrayParams,
    spec: RolloutSpec,
    *,
    inner: Sequence[slice] | None = None,
    threads: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of the perception ``v``: all that a norm has to know of the cells, or of a tile's.

    The hidden values ``W v + b`` have the mean ``W mean + b`` and the variance ``diag(W covariance W^T)``. Sums run as
    in :func:`nca_rollout`, in float64 and around a value near the mean, and do not depend on the number of threads.

    Args:
        state: ``[B, *S, C]`` float32, channels last.
        params: arrays of the step.
        spec: options of the step; its norm "batch" takes all samples together, "instance" each alone.
        inner: the cells that are counted, one slice per spatial axis, start and stop within the state; the others (the
            halo of a tile) are only what they see. By default all.
        threads: as in :func:`nca_rollout`.

    Returns:
        ``[G, V]`` and ``[G, V, V]`` float64 (covariance of the population), G = B for norm "instance" and 1 for
        "batch", V = (1 + F) * C in the order of the columns of hidden_weight.

    Raises:
        TypeError: an array is not a float32 array.
        ValueError: a shape or a value is wrong.
        RuntimeError: the extension is not built.

    Example:
        >>> shapes = ((1, 4, 3, 3), (1, 4), (8, 8), (8,), (4, 8), (8,), (8,))
        >>> params = ArrayParams(*[np.zeros(s, np.float32) for s in shapes])
        >>> state = np.ones((2, 5, 6, 4), np.float32)
        >>> mean, covariance = perception_moments(state, params, RolloutSpec(norm="instance"))
        >>> mean[0].tolist(), covariance.shape
        ([1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0], (2, 8, 8))
    """
    if isinstance(spec, RolloutSpec) and spec.norm == "none":
        raise ValueError("spec.norm must be 'batch' or 'instance', which say what is taken together; got 'none'")
    expected = _check_inputs(state, params, spec)
    if state.size == 0:
        raise ValueError(f"state must hold at least one sample; got shape {state.shape}")
    batch, *size, channels = state.shape
    _check_shapes(params._asdict(), expected)
    box = [slice(0, n) for n in size] if inner is None else list(inner)
    if len(box) != len(size) or not all(map(_is_inside, box, size)):
        raise ValueError(f"inner must be slices of consecutive cells inside {tuple(size)}, start and stop; got {box}")
    filters, hidden = expected["perceive_weight"][0], expected["hidden_bias"][0]
    options = call_options(
        state.shape,
        expected["perceive_weight"],
        hidden,
        spec=spec,
        steps=1,
        seed=0,
        first_step=0,
        first_sample=0,
        origin=(0,) * len(size),
        extent=tuple(size),
        keep_every=1,
        storage="float32",
        threads=_resolve_threads(threads),
    )
    missing = 3 - len(size)
    options["inner_begin"] = [0] * missing + [s.start for s in box]
    options["inner_end"] = [1] * missing + [s.stop for s in box]
    width = (1 + filters) * channels
    stats = np.empty((batch if spec.norm == "instance" else 1, width + width * width))
    arrays = {name: _readable(getattr(params, name)) for name in expected}
    require_extension().moments({**arrays, "state": _readable(state), "stats": stats}, options)
    return stats[:, :width], stats[:, width:].reshape(-1, width, width)


def default_threads() -> int:
    """What OMP_NUM_THREADS says, else the number of CPUs that this process may use."""
    text = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if text.isdecimal() and int(text) > 0:
        return min(int(text), MAX_THREADS)
    # macOS has no affinity.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _resolve_threads(threads: int | None) -> int:
    return default_threads() if threads is None else check_int("threads", threads, low=1, high=MAX_THREADS)


def _check_inputs(state: np.ndarray, params: ArrayParams, spec: RolloutSpec) -> dict[str, tuple[int, ...]]:
    """Check the state, the options and the weights that fix all sizes; the shape that each parameter must have."""
    _check_array("state", state)
    if state.ndim not in (4, 5) or 0 in state.shape[1:]:
        raise ValueError(
            f"state must be [B, H, W, C] or [B, D, H, W, C], no axis empty but the batch; got shape {state.shape}"
        )
    if not isinstance(spec, RolloutSpec):
        raise TypeError(f"spec must be an ncakern.RolloutSpec; got {type(spec).__name__}")
    if not isinstance(params, ArrayParams):
        raise TypeError(f"params must be an ncakern.arrays.ArrayParams; got {type(params).__name__}")
    channels, size = state.shape[-1], state.shape[1:-1]
    if spec.frozen_channels > channels:
        raise ValueError(f"frozen_channels must be at most {channels} channels; got {spec.frozen_channels}")
    _check_array("perceive_weight", params.perceive_weight)
    _check_array("hidden_weight", params.hidden_weight)
    weight, taps = params.perceive_weight, (channels,) if spec.perception == "depthwise" else (channels, channels)
    if weight.ndim != 1 + len(taps) + len(size):
        raise ValueError(
            f"perceive_weight must have {1 + len(taps) + len(size)} axes for {spec.perception} perception on "
            f"{len(size)} spatial axes; got shape {weight.shape}"
        )
    if weight.shape[1] != channels:
        hint = "; channels last? np.moveaxis(x, 1, -1)" if state.shape[1] == weight.shape[1] else ""
        raise ValueError(f"state has {channels} channels on its last axis, this NCA has {weight.shape[1]}{hint}")
    filters, kernel = weight.shape[0], weight.shape[-len(size) :]
    if filters < 1:
        raise ValueError(f"perceive_weight must hold at least one filter; got shape {weight.shape}")
    if any(k % 2 == 0 for k in kernel):
        raise ValueError(f"perceive_weight must have an odd kernel size on every axis; got {kernel}")
    check_padding(size, kernel, spec.padding)
    if params.hidden_weight.ndim != 2 or params.hidden_weight.shape[0] < 1:
        raise ValueError(
            f"hidden_weight must be [h, (1 + F) * C], h at least 1; got shape {params.hidden_weight.shape}"
        )
    hidden = params.hidden_weight.shape[0]
    if spec.norm == "none" and (params.norm_weight is not None or params.norm_bias is not None):
        raise ValueError("norm_weight and norm_bias must be None with norm='none'; got an array")
    shapes: dict[str, tuple[int, ...]] = {
        "perceive_weight": (filters, *taps, *kernel),
        "perceive_bias": (filters, channels),
        "hidden_weight": (hidden, (1 + filters) * channels),
        "hidden_bias": (hidden,),
        "out_weight": (channels, hidden),
    }
    if params.out_bias is not None:
        shapes["out_bias"] = (channels,)
    return shapes if spec.norm == "none" else shapes | {"norm_weight": (hidden,), "norm_bias": (hidden,)}


def _is_inside(part: Any, cells: int) -> bool:
    if not isinstance(part, slice) or not all(isinstance(end, (int, np.integer)) for end in (part.start, part.stop)):
        return False
    return 0 <= part.start < part.stop <= cells and part.step in (None, 1)


def _check_out(out: object) -> None:
    if not isinstance(out, np.ndarray) or out.dtype != np.float32:
        raise TypeError("out must be a contiguous float32 array")
    if not (out.flags.c_contiguous and out.flags.aligned):
        raise TypeError("out must be a contiguous float32 array, aligned")
    if not out.flags.writeable:
        raise ValueError("out must be writeable; got a read-only array")


def _check_shapes(given: Mapping[str, Any], expected: Mapping[str, tuple[int, ...]]) -> None:
    for name, shape in expected.items():
        _check_array(name, given[name])
        if given[name].shape != shape:
            raise ValueError(f"{name} must have shape {shape}; got {given[name].shape}")


def _check_array(name: str, value: object) -> None:
    if not isinstance(value, np.ndarray) or isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} must be a numpy array; got {type(value).__name__}")
    if value.dtype != np.float32:
        raise TypeError(f"{name} must be float32; got {value.dtype}")


def _readable(array: np.ndarray) -> np.ndarray:
    return np.require(array, requirements=("C", "A"))
