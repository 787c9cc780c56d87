"""Rollouts on numpy arrays, and the statistics of a norm: straight to the C++ kernel, without torch, float32."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ncakern._kernel import call_options, require_extension
from ncakern._spec import RolloutSpec
from ncakern._tile import check_padding, check_tile


class ArrayParams(NamedTuple):
    """The arrays of a step, all float32: the names and shapes of :class:`ncakern.RolloutParams`."""

    perceive_weight: np.ndarray
    perceive_bias: np.ndarray
    hidden_weight: np.ndarray
    hidden_bias: np.ndarray
    out_weight: np.ndarray
    norm_weight: np.ndarray | None = None
    norm_bias: np.ndarray | None = None


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
        out: where the result goes, of the state's shape, float32 and contiguous; it may be the state itself.
        threads: how many compute; by default what OMP_NUM_THREADS says, else all CPUs of this process. The result does
            not depend on it.

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
    _check_state(state)
    if spec.frozen_channels > state.shape[-1]:
        raise ValueError(f"frozen_channels must be at most {state.shape[-1]} channels; got {spec.frozen_channels}")
    numbers = {"steps": steps, "first_step": first_step, "first_sample": first_sample}
    for name, number in (*numbers.items(), ("seed", seed)):
        if isinstance(number, bool) or not isinstance(number, int):
            raise TypeError(f"{name} must be an int; got {type(number).__name__}")
        if number < 0 and name != "seed":
            raise ValueError(f"{name} must be at least 0; got {number}")
    size = tuple(state.shape[1:-1])
    expected = _shapes(params, state, spec)
    check_padding(size, expected["perceive_weight"][-len(size) :], spec.padding)
    if (origin is None) != (extent is None):
        raise ValueError(f"origin and extent must be given together; got {origin} and {extent}")
    origin = (0,) * len(size) if origin is None else tuple(origin)
    extent = size if extent is None else tuple(extent)
    if len(origin) != len(size) or len(extent) != len(size):
        raise ValueError(f"origin and extent must have {len(size)} entries each; got {origin} and {extent}")
    check_tile(size, origin, extent, spec)
    if perceive_from is not None:
        expected["perceive_from"] = state.shape
        if steps != 1:
            raise ValueError(f"steps must be 1 when perceive_from is given (one call per step); got {steps}")
    if out is None:
        out = np.empty(state.shape, np.float32)
    elif not isinstance(out, np.ndarray) or out.dtype != np.float32 or not out.flags.c_contiguous:
        raise TypeError("out must be a contiguous float32 array")
    expected["out"] = state.shape
    given = {**params._asdict(), "perceive_from": perceive_from, "out": out}
    _check_shapes(given, expected)
    if steps == 0:
        out[...] = state
        return out
    options = call_options(
        state.shape,
        expected["perceive_weight"],
        expected["hidden_bias"][0],
        spec=spec,
        seed=seed,
        origin=origin,
        extent=extent,
        keep_every=1,
        storage="float32",
        threads=default_threads() if threads is None else threads,
        **numbers,
    )
    arrays = {name: np.ascontiguousarray(given[name]) for name in expected if name != "out"}
    require_extension().fwd({**arrays, "state": np.ascontiguousarray(state), "out": out}, options)
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
    _check_state(state)
    if spec.norm == "none":
        raise ValueError("spec.norm must be 'batch' or 'instance', which say what is taken together; got 'none'")
    batch, *size, channels = state.shape
    expected = _shapes(params, state, spec)
    check_padding(tuple(size), expected["perceive_weight"][-len(size) :], spec.padding)
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
        threads=default_threads() if threads is None else threads,
    )
    missing = 3 - len(size)
    options["inner_begin"] = [0] * missing + [s.start for s in box]
    options["inner_end"] = [1] * missing + [s.stop for s in box]
    width = (1 + filters) * channels
    stats = np.empty((batch if spec.norm == "instance" else 1, width + width * width))
    arrays = {name: np.ascontiguousarray(getattr(params, name)) for name in expected}
    require_extension().moments({**arrays, "state": np.ascontiguousarray(state), "stats": stats}, options)
    return stats[:, :width], stats[:, width:].reshape(-1, width, width)


def default_threads() -> int:
    """What OMP_NUM_THREADS says, else the number of CPUs that this process may use."""
    text = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if text.isdigit() and int(text) > 0:
        return int(text)
    # macOS has no affinity.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _shapes(params: ArrayParams, state: np.ndarray, spec: RolloutSpec) -> dict[str, tuple[int, ...]]:
    """The shape that each parameter must have; all follow from the state and two weights."""
    channels, ndim = state.shape[-1], state.ndim - 2
    _check_array("perceive_weight", params.perceive_weight)
    _check_array("hidden_weight", params.hidden_weight)
    filters, kernel = params.perceive_weight.shape[0], params.perceive_weight.shape[-ndim:]
    hidden = params.hidden_weight.shape[0]
    if any(k % 2 == 0 for k in kernel):
        raise ValueError(f"perceive_weight must have an odd kernel size on every axis; got {kernel}")
    if spec.norm == "none" and (params.norm_weight is not None or params.norm_bias is not None):
        raise ValueError("norm_weight and norm_bias must be None with norm='none'; got an array")
    taps = (channels,) if spec.perception == "depthwise" else (channels, channels)
    shapes: dict[str, tuple[int, ...]] = {
        "perceive_weight": (filters, *taps, *kernel),
        "perceive_bias": (filters, channels),
        "hidden_weight": (hidden, (1 + filters) * channels),
        "hidden_bias": (hidden,),
        "out_weight": (channels, hidden),
    }
    return shapes if spec.norm == "none" else shapes | {"norm_weight": (hidden,), "norm_bias": (hidden,)}


def _is_inside(part: slice, cells: int) -> bool:
    return part.indices(cells) == (part.start, part.stop, 1) and part.start < part.stop


def _check_state(state: np.ndarray) -> None:
    _check_array("state", state)
    if state.ndim not in (4, 5) or 0 in state.shape:
        raise ValueError(f"state must be [B, H, W, C] or [B, D, H, W, C], no axis empty; got shape {state.shape}")


def _check_shapes(given: Mapping[str, Any], expected: Mapping[str, tuple[int, ...]]) -> None:
    for name, shape in expected.items():
        _check_array(name, given[name])
        if given[name].shape != shape:
            raise ValueError(f"{name} must have shape {shape}; got {given[name].shape}")


def _check_array(name: str, value: object) -> None:
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{name} must be a numpy array; got {type(value).__name__}")
    if value.dtype != np.float32:
        raise TypeError(f"{name} must be float32; got {value.dtype}")
