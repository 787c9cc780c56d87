"""Bad input stops here: each error names the argument, what it must be, and what it is."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ncakern._spec import MAX_COUNT, MAX_INDEX, Problem, RolloutParams, RolloutSpec, check_int, check_seed_range
from ncakern._tile import check_padding, resolve_tile

STATE_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class Call(NamedTuple):
    """The numbers of a call as Python's own, the indices of steps and samples modulo 2**32."""

    steps: int
    seed: int | Tensor | None
    first_step: int
    first_sample: int
    origin: tuple[int, ...]
    extent: tuple[int, ...]


def check_rollout(
    state: Tensor,
    params: RolloutParams,
    spec: RolloutSpec,
    steps: int,
    *,
    seed: int | Tensor | None,
    first_step: int = 0,
    first_sample: int = 0,
    origin: Sequence[int] | None = None,
    extent: Sequence[int] | None = None,
    perceive_from: Tensor | None = None,
    modulation: tuple[Tensor, Tensor] | None = None,
) -> Call:
    """Check everything about a rollout, and return its numbers."""
    check_spec(spec)
    check_state(state)
    check_params(params, state, spec)
    size = tuple(state.shape[1:-1])
    check_padding(size, _kernel(params, spec), spec.padding)
    steps = require_int("steps", steps, high=MAX_COUNT)
    if perceive_from is not None:
        require_tensor("perceive_from", perceive_from)
        _require_same("perceive_from", perceive_from, state, (state.dtype,))
        require_shape("perceive_from", perceive_from, tuple(state.shape))
        if steps != 1:
            raise ValueError(f"steps must be 1 when perceive_from is given (one call per step); got {steps}")
    if modulation is not None:
        _check_modulation(modulation, state, hidden=params.hidden_weight.shape[0])
    tile = resolve_tile(size, origin, extent, spec, as_int=require_int)
    first_step, first_sample = require_word("first_step", first_step), require_word("first_sample", first_sample)
    return Call(steps, check_seed(seed), first_step, first_sample, *tile)


def describe(state: Tensor, params: RolloutParams, spec: RolloutSpec, steps: int) -> Problem:
    """The metadata of a checked call."""
    size = tuple(state.shape[1:-1])
    return Problem(
        device=state.device.type,
        dtype=str(state.dtype).removeprefix("torch."),
        batch=state.shape[0],
        size=size,
        channels=state.shape[-1],
        hidden=params.hidden_weight.shape[0],
        num_filters=params.perceive_weight.shape[0],
        kernel=tuple(params.perceive_weight.shape[-len(size) :]),
        spec=spec,
        steps=steps,
        has_out_bias=params.out_bias is not None,
    )


def check_spec(spec: RolloutSpec) -> None:
    if not isinstance(spec, RolloutSpec):
        raise TypeError(f"spec must be an ncakern.RolloutSpec; got {type(spec).__name__}")


def check_state(state: Tensor) -> None:
    require_tensor("state", state)
    if state.dtype not in STATE_DTYPES:
        raise TypeError(f"state must be {_names(STATE_DTYPES)}; got {state.dtype}")
    if state.dim() not in (4, 5):
        raise ValueError(
            f"state must be [B, H, W, C] or [B, D, H, W, C], channels last; got shape {tuple(state.shape)}. "
            "Did you forget the batch or the channel axis?"
        )
    if 0 in state.shape[1:]:
        raise ValueError(f"state must have no empty axis but the batch; got shape {tuple(state.shape)}")


def check_params(params: RolloutParams, state: Tensor, spec: RolloutSpec) -> None:
    """Check the parameters against the state and the spec; every size is fixed by the two weights' shapes."""
    if not isinstance(params, RolloutParams):
        raise TypeError(f"params must be an ncakern.RolloutParams; got {type(params).__name__}")
    channels, ndim = state.shape[-1], state.dim() - 2
    if spec.frozen_channels > channels:
        raise ValueError(f"frozen_channels must be at most the state's {channels} channels; got {spec.frozen_channels}")
    for name in ("perceive_weight", "hidden_weight"):
        require_tensor(name, getattr(params, name))
    weight = params.perceive_weight
    filter_shape = (channels,) if spec.perception == "depthwise" else (channels, channels)
    expected_dim = 1 + len(filter_shape) + ndim
    if weight.dim() == expected_dim and weight.shape[1] != channels:
        hint = "; channels last? x.movedim(1, -1)" if state.shape[1] == weight.shape[1] else ""
        raise ValueError(f"state has {channels} channels on its last axis, this NCA has {weight.shape[1]}{hint}")
    if weight.dim() != expected_dim or tuple(weight.shape[1 : 1 + len(filter_shape)]) != filter_shape:
        layout = ", ".join(["F", *map(str, filter_shape), *["k"] * ndim])
        raise ValueError(
            f"perceive_weight must be [{layout}] for {spec.perception} perception of a state with {channels} channels "
            f"and {ndim} spatial axes; got shape {tuple(weight.shape)}"
        )
    num_filters, kernel = weight.shape[0], tuple(weight.shape[-ndim:])
    if num_filters < 1:
        raise ValueError(f"perceive_weight must hold at least one filter; got shape {tuple(weight.shape)}")
    if any(k % 2 == 0 for k in kernel):
        raise ValueError(f"perceive_weight must have an odd kernel size on every axis; got {kernel}")
    if params.hidden_weight.dim() != 2:
        raise ValueError(f"hidden_weight must be [h, (1 + F) * C]; got shape {tuple(params.hidden_weight.shape)}")
    hidden = params.hidden_weight.shape[0]
    if hidden < 1:
        raise ValueError("hidden_weight must have at least one row; got 0")

    shapes: dict[str, tuple[int, ...]] = {
        "perceive_weight": tuple(weight.shape),
        "perceive_bias": (num_filters, channels),
        "hidden_weight": (hidden, (1 + num_filters) * channels),
        "hidden_bias": (hidden,),
        "out_weight": (channels, hidden),
    }
    if spec.norm != "none":
        shapes |= {"norm_weight": (hidden,), "norm_bias": (hidden,)}
    elif params.norm_weight is not None or params.norm_bias is not None:
        raise ValueError("norm_weight and norm_bias must be None with norm='none'; got a tensor")
    if params.out_bias is not None:
        shapes["out_bias"] = (channels,)
    allowed = (torch.float32,) if weight.dtype == torch.float32 else (state.dtype,)
    for name, shape in shapes.items():
        tensor = getattr(params, name)
        require_tensor(name, tensor)
        _require_same(name, tensor, state, allowed)
        require_shape(name, tensor, shape)


def check_seed(seed: int | Tensor | None) -> int | Tensor | None:
    if isinstance(seed, Tensor):
        if seed.dtype != torch.int64:
            raise TypeError(f"seed must be None, an int or a 0-d int64 tensor; got a tensor of {seed.dtype}")
        if seed.dim() != 0:
            raise ValueError(f"seed must be a 0-d tensor; got shape {tuple(seed.shape)}")
        return seed
    if seed is None:
        return None
    if isinstance(seed, bool) or not isinstance(seed, (int, Integral)):
        raise TypeError(f"seed must be None, an int or a 0-d int64 tensor; got {type(seed).__name__}")
    return check_seed_range(seed)


def resolve_keep_every(keep_every: int | str, steps: int) -> int:
    """``keep_every`` as a number of steps, between 1 and ``steps``."""
    if isinstance(keep_every, str) and keep_every == "sqrt":
        return max(1, round(steps**0.5))
    if isinstance(keep_every, bool) or not isinstance(keep_every, (int, Integral, torch.SymInt)):
        raise TypeError(f"keep_every must be an int or 'sqrt'; got {keep_every!r}")
    keep_every = require_int("keep_every", keep_every, low=1, high=None)
    return keep_every if keep_every < steps else max(1, steps)


def require_tensor(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor; got {type(value).__name__}")
    if value.layout != torch.strided or value.is_nested:
        raise TypeError(f"{name} must be a dense tensor; got a {'nested' if value.is_nested else value.layout} one")


def require_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} must have shape {shape}; got {tuple(tensor.shape)}")


def require_like(
    name: str, tensor: object, shape: Sequence[int], state: Tensor, *, dtype: torch.dtype | None = None
) -> None:
    """A tensor of this shape on the state's device, in its dtype if no other is given."""
    dtype = state.dtype if dtype is None else dtype
    require_tensor(name, tensor)
    assert isinstance(tensor, Tensor)
    if tensor.dtype != dtype:
        raise TypeError(f"{name} must be {_names((dtype,))}; got {tensor.dtype}")
    if tensor.device != state.device:
        raise ValueError(f"{name} must be on the state's device {state.device}; got {tensor.device}")
    require_shape(name, tensor, tuple(shape))


def require_int(name: str, value: Any, *, low: int = 0, high: int | None = MAX_INDEX) -> int:
    """A count or an index, as :func:`check_int` has it; while tracing it may be a symbol."""
    if isinstance(value, torch.SymInt):
        return value  # type: ignore[return-value]
    return check_int(name, value, low=low, high=high)


def require_word(name: str, value: Any) -> int:
    """An index of a step or a sample, modulo 2**32."""
    number = require_int(name, value)
    return number if number < 2**32 else number % 2**32


def _check_modulation(modulation: tuple[Tensor, Tensor], state: Tensor, *, hidden: int) -> None:
    if not isinstance(modulation, (tuple, list)) or len(modulation) != 2:
        raise TypeError("modulation must be a pair of tensors (scale, shift), each [B, h]")
    for name, tensor in zip(("modulation scale", "modulation shift"), modulation, strict=True):
        require_tensor(name, tensor)
        _require_same(name, tensor, state, (torch.float32, state.dtype))
        require_shape(name, tensor, (state.shape[0], hidden))


def _require_same(name: str, tensor: Tensor, state: Tensor, dtypes: tuple[torch.dtype, ...]) -> None:
    if tensor.dtype not in dtypes:
        raise TypeError(
            f"{name} must be {_names(dtypes)} (parameters: all float32, or all of the state's dtype {state.dtype}); "
            f"got {tensor.dtype}"
        )
    if tensor.device != state.device:
        raise ValueError(f"{name} must be on the state's device {state.device}; got {tensor.device}")


def _kernel(params: RolloutParams, spec: RolloutSpec) -> tuple[int, ...]:
    return tuple(params.perceive_weight.shape[2 if spec.perception == "depthwise" else 3 :])


def _names(dtypes: tuple[torch.dtype, ...]) -> str:
    return " or ".join(str(d).removeprefix("torch.") for d in dict.fromkeys(dtypes))
