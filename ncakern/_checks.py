"""Bad input stops here: each error names the argument, what it must be, and what it is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ncakern._spec import RolloutParams, RolloutSpec
from ncakern._tile import check_padding, check_tile

STATE_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_rollout(
    state: Tensor,
    params: RolloutParams,
    spec: RolloutSpec,
    steps: int,
    *,
    seed: int | Tensor | None,
    first_step: int,
    first_sample: int,
    perceive_from: Tensor | None,
    modulation: tuple[Tensor, Tensor] | None,
) -> None:
    """Check everything about a rollout but its tile, which :func:`resolve_tile` checks."""
    check_spec(spec)
    check_state(state)
    check_params(params, state, spec)
    check_padding(tuple(state.shape[1:-1]), _kernel(params, spec), spec.padding)
    require_int("steps", steps)
    require_int("first_step", first_step)
    require_int("first_sample", first_sample)
    check_seed(seed)
    if perceive_from is not None:
        require_tensor("perceive_from", perceive_from)
        _require_same("perceive_from", perceive_from, state, (state.dtype,))
        require_shape("perceive_from", perceive_from, tuple(state.shape))
        if steps != 1:
            raise ValueError(f"steps must be 1 when perceive_from is given (one call per step); got {steps}")
    if modulation is not None:
        _check_modulation(modulation, state, hidden=params.hidden_weight.shape[0])


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
    if 0 in state.shape:
        raise ValueError(f"state must have no empty axis; got shape {tuple(state.shape)}")


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
    allowed = (torch.float32,) if weight.dtype == torch.float32 else (state.dtype,)
    for name, shape in shapes.items():
        tensor = getattr(params, name)
        require_tensor(name, tensor)
        _require_same(name, tensor, state, allowed)
        require_shape(name, tensor, shape)


def check_seed(seed: int | Tensor | None) -> None:
    if seed is None:
        return
    if isinstance(seed, Tensor):
        if seed.dtype != torch.int64:
            raise TypeError(f"seed must be None, an int or a 0-d int64 tensor; got a tensor of {seed.dtype}")
        if seed.dim() != 0:
            raise ValueError(f"seed must be a 0-d tensor; got shape {tuple(seed.shape)}")
    elif isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed must be None, an int or a 0-d int64 tensor; got {type(seed).__name__}")
    elif not -(2**63) <= seed < 2**63:
        raise ValueError(f"seed must fit into 64 bits, signed; got {seed}")


def resolve_tile(
    size: tuple[int, ...], origin: Sequence[int] | None, extent: Sequence[int] | None, spec: RolloutSpec | None = None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The tile's ``(origin, extent)``, by default the whole image; refuse what the spec cannot compute on a tile."""
    if (origin is None) != (extent is None):
        given, missing = ("origin", "extent") if extent is None else ("extent", "origin")
        raise ValueError(f"{missing} must be given together with {given}: a tile needs both; got None")
    if origin is None or extent is None:
        return (0,) * len(size), size
    for name, value in (("origin", origin), ("extent", extent)):
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise TypeError(f"{name} must be a sequence of ints; got {type(value).__name__}")
        if len(value) != len(size):
            raise ValueError(f"{name} must have one entry per spatial axis ({len(size)}); got {tuple(value)}")
        for cells in value:
            require_int(name, cells)
    check_tile(size, tuple(origin), tuple(extent), spec)
    return tuple(origin), tuple(extent)


def resolve_keep_every(keep_every: int | str, steps: int) -> int:
    """``keep_every`` as a number of steps, at least 1."""
    if keep_every == "sqrt":
        return max(1, round(steps**0.5))
    if isinstance(keep_every, bool) or not isinstance(keep_every, int):
        raise TypeError(f"keep_every must be an int or 'sqrt'; got {keep_every!r}")
    if keep_every < 1:
        raise ValueError(f"keep_every must be at least 1; got {keep_every}")
    return keep_every


def require_tensor(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor; got {type(value).__name__}")


def require_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} must have shape {shape}; got {tuple(tensor.shape)}")


def require_int(name: str, value: object) -> None:
    """A count or an index: an int, not negative."""
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise TypeError(f"{name} must be an int; got {type(value).__name__}")
    if value < 0:
        raise ValueError(f"{name} must be at least 0; got {value}")


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
