"""The custom operators: the only file that touches torch.library. Schema, shape rules, autograd."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ncakern import _dispatch
from ncakern._checks import (
    check_rollout,
    check_seed,
    describe,
    require_like,
    require_tensor,
    require_word,
    resolve_keep_every,
)
from ncakern._spec import Problem, RolloutParams, RolloutSpec

# What both operators take, in this order; an absent tensor is None. The forward one takes `keep` as well.
_TENSORS = (
    "Tensor state, Tensor perceive_weight, Tensor perceive_bias, Tensor hidden_weight, Tensor hidden_bias, "
    "Tensor? norm_weight, Tensor? norm_bias, Tensor out_weight, Tensor? perceive_from, Tensor? scale, Tensor? shift, "
    "Tensor? out_bias"
)
_SPEC = "str perception, str padding, str norm, str activation, float fire_rate, SymInt frozen_channels, float[]? clamp"
_CALL = "SymInt steps, SymInt first_step, SymInt first_sample, SymInt[] origin, SymInt[] extent, SymInt keep_every"
_INPUTS = f"{_TENSORS}, Tensor seed, {_SPEC}, {_CALL}, str backend"

_TENSOR_NAMES, _SPEC_NAMES, _CALL_NAMES = (
    [argument.split()[-1] for argument in group.split(",")] for group in (_TENSORS, _SPEC, _CALL)
)
_NUM_TENSORS = len(_TENSOR_NAMES)
_OPTIONAL = {argument.split()[-1] for argument in _TENSORS.split(",") if "?" in argument}


def rollout(
    state: Tensor,
    params: RolloutParams,
    spec: RolloutSpec,
    steps: int,
    *,
    seed: Tensor,
    first_step: int,
    first_sample: int,
    origin: tuple[int, ...],
    extent: tuple[int, ...],
    perceive_from: Tensor | None,
    modulation: tuple[Tensor, Tensor] | None,
    keep_every: int,
    backend: str,
) -> Tensor:
    """Call the forward operator with checked arguments; states are kept only if somebody can ask for gradients."""
    tensors = _order(state, params, perceive_from, modulation)
    options = [getattr(spec, name) for name in _SPEC_NAMES]
    call = (steps, first_step, first_sample, origin, extent, keep_every)
    out, _, _ = _forward(*tensors, seed, *options, *call, backend, _has_gradients(tensors))
    return out


def step_bwd(
    d_out: Tensor,
    state: Tensor,
    params: RolloutParams,
    spec: RolloutSpec,
    *,
    seed: Tensor,
    first_step: int,
    first_sample: int,
    origin: tuple[int, ...],
    extent: tuple[int, ...],
    perceive_from: Tensor,
    backend: str,
) -> tuple[Tensor, Tensor, RolloutParams]:
    """Call the backward operator on one step without norm, for which the forward one would keep nothing."""
    tensors = _order(state, params, perceive_from, None)
    kept, stats = state.new_empty((0, *state.shape)), state.new_empty((0, 0, 0), dtype=torch.float64)
    options = [getattr(spec, name) for name in _SPEC_NAMES]
    call = (1, first_step, first_sample, origin, extent, 1)
    gradients = _backward_call(d_out, kept, stats, *tensors, seed, *options, *call, backend)
    named = dict(zip(_TENSOR_NAMES, gradients, strict=True))
    present = {name: named[name] for name, given in params._asdict().items() if given is not None}
    return named["state"], named["perceive_from"], RolloutParams(**present)


def _order(
    state: Tensor,
    params: RolloutParams,
    perceive_from: Tensor | None,
    modulation: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor | None, ...]:
    scale, shift = (None, None) if modulation is None else modulation
    named = params._asdict() | {"state": state, "perceive_from": perceive_from, "scale": scale, "shift": shift}
    return tuple(named[name] for name in _TENSOR_NAMES)


def _has_gradients(tensors: Sequence[Tensor | None]) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


# The operators.


@torch.library.custom_op(
    "ncakern::nca_rollout",
    mutates_args=(),
    schema=f"({_INPUTS}, bool keep) -> (Tensor out, Tensor kept, Tensor stats)",
)
def nca_rollout(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Forward: the final state, the states kept for the backward pass, and the norm statistics of every step."""
    backend, tensors, keywords, _ = _unpack(inputs[:-1])
    return backend.fwd(*tensors, **keywords, keep=inputs[-1])


@torch.library.custom_op(
    "ncakern::nca_rollout_bwd",
    mutates_args=(),
    schema=f"(Tensor d_out, Tensor kept, Tensor stats, {_INPUTS}) -> ({', '.join(['Tensor'] * _NUM_TENSORS)})",
)
def nca_rollout_bwd(d_out: Tensor, kept: Tensor, stats: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    """Backward: the gradient of every tensor in ``_TENSORS``; an empty tensor for those that are absent.

    Where nothing was kept, because the forward pass did not know that gradients would be asked for, it runs again.
    """
    backend, tensors, keywords, problem = _unpack(inputs)
    state, *others = tensors
    assert state is not None
    require_like("d_out", d_out, state.shape, state)
    require_tensor("kept", kept)
    require_tensor("stats", stats)
    expected_kept = (_num_kept(problem.steps, keywords["keep_every"]), *state.shape)
    expected_stats = _stats_shape(problem, backend.stats_width(problem))
    if _is_missing(kept, expected_kept) or _is_missing(stats, expected_stats):
        _, kept, stats = backend.fwd(*tensors, **keywords, keep=True)
    require_like("kept", kept, expected_kept, state)
    require_like("stats", stats, expected_stats, state, dtype=torch.float64)
    gradients = backend.bwd(d_out.contiguous(), state, kept.contiguous(), stats.contiguous(), *others, **keywords)
    return tuple(d_out.new_empty(0) if gradient is None else gradient for gradient in gradients)


def _unpack(inputs: tuple[Any, ...]) -> tuple[Any, list[Tensor | None], dict[str, Any], Problem]:
    """The backend, its tensors (contiguous, which is what backends rely on), its keyword arguments, their metadata.

    Everything is checked: operators are also called by graphs that were traced with other arguments, and by hand.
    """
    _refuse_forward_mode()
    tensors, (seed, *options, name) = inputs[:_NUM_TENSORS], inputs[_NUM_TENSORS:]
    numbers = dict(zip(_CALL_NAMES, options[len(_SPEC_NAMES) :], strict=True))
    _require_one_device(inputs)
    keep_every, device = numbers.pop("keep_every"), tensors[0].device
    layouts = tuple([None if t is None else (t.shape, t.dtype) for t in tensors])
    sizes = (numbers["steps"], tuple(numbers["origin"]), tuple(numbers["extent"]))
    spec = tuple([tuple(v) if isinstance(v, list) else v for v in options[: len(_SPEC_NAMES)]])  # hashable
    problem = _check_layouts(layouts, spec, sizes, device.type, name)
    check_seed(seed)
    keywords = {
        "spec": problem.spec,
        "steps": problem.steps,
        "seed": _seed(seed, tensors[0]),
        "origin": sizes[1],
        "extent": sizes[2],
        "keep_every": keep_every if 0 < keep_every <= problem.steps else resolve_keep_every(keep_every, problem.steps),
    }
    for key in ("first_step", "first_sample"):
        keywords[key] = numbers[key] if 0 <= numbers[key] < 2**32 else require_word(key, numbers[key])
    return _dispatch.BACKENDS[name], [None if t is None else t.contiguous() for t in tensors], keywords, problem


@functools.lru_cache(maxsize=256)  # the same few calls come again and again
def _check_layouts(
    layouts: tuple[tuple[torch.Size, torch.dtype] | None, ...],
    options: tuple[Any, ...],
    sizes: tuple[int, tuple[int, ...], tuple[int, ...]],
    device: str,
    name: str,
) -> Problem:
    """Check all that shapes, dtypes and options decide, on tensors without data."""
    spec, (steps, origin, extent) = RolloutSpec(**dict(zip(_SPEC_NAMES, options, strict=True))), sizes
    tensors = [None if given is None else torch.empty(given[0], dtype=given[1], device="meta") for given in layouts]
    named: dict[str, Any] = dict(zip(_TENSOR_NAMES, tensors, strict=True))
    state, perceive_from, scale, shift = (named.pop(key) for key in ("state", "perceive_from", "scale", "shift"))
    if (scale is None) != (shift is None):
        raise ValueError("scale and shift must be given together; got one of them")
    params, modulation = RolloutParams(**named), None if scale is None else (scale, shift)
    others = {"perceive_from": perceive_from, "modulation": modulation}
    check_rollout(state, params, spec, steps, seed=0, origin=origin, extent=extent, **others)
    for key, tensor in (*named.items(), ("scale", scale), ("shift", shift)):
        if tensor is not None and tensor.dtype != torch.float32:
            raise TypeError(f"{key} must be float32 for the operators; got {tensor.dtype}")
    if steps < 1:
        raise ValueError("steps must be at least 1 for the operators; got 0")
    problem = describe(state, params, spec, steps)._replace(device=device)
    backend = _dispatch.BACKENDS.get(name)
    reason = "no operator runs it" if backend is None else backend.why_not(problem)
    if reason is not None:
        raise ValueError(f"backend={name!r} cannot run this call: {reason}")
    return problem


def _num_kept(steps: int, keep_every: int) -> int:
    return (steps + keep_every - 1) // keep_every - 1


def _stats_shape(problem: Problem, width: int) -> tuple[int, ...]:
    if problem.spec.norm == "none":
        return (0, 0, 0)
    return (problem.steps, 1 if problem.spec.norm == "batch" else problem.batch, width)


def _is_missing(tensor: Tensor, expected: Sequence[int]) -> bool:
    return tensor.numel() == 0 and 0 not in expected


def _require_one_device(inputs: Sequence[Any], **saved: Tensor) -> None:
    """One tensor without data is enough for torch to ask for shapes only, and to leave results unwritten."""
    named = dict(zip(_TENSOR_NAMES, inputs[:_NUM_TENSORS], strict=True))
    state, seed = named.pop("state"), inputs[_NUM_TENSORS]
    require_tensor("state", state)
    require_tensor("seed", seed)
    for name, tensor in (named | saved).items():
        if name in saved or name not in _OPTIONAL or tensor is not None:
            require_tensor(name, tensor)
            if tensor.device != state.device:
                raise ValueError(f"{name} must be on the state's device {state.device}; got {tensor.device}")
    if seed.is_meta and not state.is_meta:
        raise ValueError(f"seed must hold a number; got a tensor on {seed.device}")


def _seed(seed: Tensor, state: Tensor) -> int | Tensor:
    """The seed as backends take it: on an accelerator the host neither waits for it, nor may it inside a capture."""
    return seed if seed.is_cuda and state.is_cuda else int(seed)


@nca_rollout.register_fake
def _rollout_fake(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    *given, keep = inputs
    named = dict(zip(_SPEC_NAMES + _CALL_NAMES, given[_NUM_TENSORS + 1 : -1], strict=True))
    state, perceive_weight, perceive_bias, hidden_weight, hidden_bias, *_, out_weight, _, _, _, _ = given[:_NUM_TENSORS]
    _require_one_device(given)
    num_kept = _num_kept(named["steps"], named["keep_every"]) if keep else 0
    out, kept = state.new_empty(state.shape), state.new_empty((num_kept, *state.shape))
    if not keep:
        return out, kept, state.new_empty((0, 0, 0), dtype=torch.float64)
    params = RolloutParams(perceive_weight, perceive_bias, hidden_weight, hidden_bias, out_weight)
    problem = describe(state, params, RolloutSpec(**{name: named[name] for name in _SPEC_NAMES}), named["steps"])
    width = _dispatch.BACKENDS[given[-1]].stats_width(problem)
    return out, kept, state.new_empty(_stats_shape(problem, width), dtype=torch.float64)


@nca_rollout_bwd.register_fake
def _rollout_bwd_fake(d_out: Tensor, kept: Tensor, stats: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    state = inputs[0]
    _require_one_device(inputs, d_out=d_out, kept=kept, stats=stats)
    return tuple(state.new_empty(0) if t is None else t.new_empty(t.shape) for t in inputs[:_NUM_TENSORS])


# Derivatives.


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, kept, stats = output
    ctx.mark_non_differentiable(kept, stats)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(kept, stats, *inputs[: _NUM_TENSORS + 1])
    ctx.options = inputs[_NUM_TENSORS + 1 : -1]


def _backward(ctx: Any, d_out: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    num_options = len(ctx.options) + 2  # seed before them, keep after them
    if d_out is None:
        return (None,) * (_NUM_TENSORS + num_options)
    kept, stats, *tensors, seed = ctx.saved_tensors
    gradients = _backward_call(d_out, kept, stats, *tensors, seed, *ctx.options)
    present = [None if t is None else gradient for t, gradient in zip(tensors, gradients, strict=True)]
    return (*present, *(None,) * num_options)


def _refuse_double_backward(ctx: Any, *_: Tensor | None) -> None:
    raise RuntimeError(
        "ncakern.nca_rollout has no gradient of a gradient on the fast backends; use backend='reference', which has it"
    )


def _refuse_forward_mode(ctx: Any = None, *_: Any) -> None:
    # Within an operator no tangent is seen any more, only that somebody asks for some.
    if torch.autograd.forward_ad._current_level >= 0:
        raise RuntimeError(
            "ncakern.nca_rollout has no forward-mode derivative (torch.func.jvp, jacfwd, torch.autograd.forward_ad) on "
            "the fast backends; use backend='reference', which has it"
        )


nca_rollout.register_autograd(_backward, setup_context=_setup_context)
nca_rollout_bwd.register_autograd(_refuse_double_backward)


# What torch.func asks for.


def _examples(
    call: Callable[..., tuple[Tensor, ...]], info: Any, in_dims: tuple[Any, ...], inputs: Sequence[Any]
) -> Any:
    """One call for each example of a vmap: the bits of a loop, as each draws the random stream of a call by itself."""

    def pick(value: Any, dim: Any, index: int) -> Any:
        if dim is None or not isinstance(value, Tensor):
            return value
        if info.batch_size == 0:  # one example of zeros says what shapes come out
            return value.new_zeros(value.shape[:dim] + value.shape[dim + 1 :])
        return value.select(dim, index)

    results = [
        call(*[pick(value, dim, index) for value, dim in zip(inputs, in_dims, strict=True)])
        for index in range(max(1, info.batch_size))
    ]
    stacked = tuple(torch.stack(outputs)[: info.batch_size] for outputs in zip(*results, strict=True))
    return stacked, (0,) * len(stacked)


def _vmap_forward(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> Any:
    def call(*example: Any) -> tuple[Tensor, ...]:
        # Only here, below the vmap, do tensors tell whether they require gradients.
        return _forward(*example[:-1], example[-1] or _has_gradients(example[:_NUM_TENSORS]))

    return _examples(call, info, in_dims, inputs)


def _vmap_backward(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> Any:
    return _examples(_backward_call, info, in_dims, inputs)


nca_rollout.register_vmap(_vmap_forward)
nca_rollout_bwd.register_vmap(_vmap_backward)


class _Rollout(torch.autograd.Function):
    """The forward operator for torch.func: its transforms do not take operators that have a backward pass."""

    @staticmethod
    def forward(*inputs: Any) -> Any:
        return nca_rollout(*inputs)

    setup_context = staticmethod(_setup_context)
    backward = staticmethod(_backward)
    vmap = staticmethod(_vmap_forward)
    jvp = staticmethod(_refuse_forward_mode)


class _RolloutBwd(torch.autograd.Function):
    """The same for the backward operator."""

    @staticmethod
    def forward(*inputs: Any) -> Any:
        return nca_rollout_bwd(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    backward = staticmethod(_refuse_double_backward)
    vmap = staticmethod(_vmap_backward)
    jvp = staticmethod(_refuse_forward_mode)


def _forward(*inputs: Any) -> tuple[Tensor, ...]:
    return _Rollout.apply(*inputs) if torch._C._are_functorch_transforms_active() else nca_rollout(*inputs)


def _backward_call(*inputs: Any) -> tuple[Tensor, ...]:
    return _RolloutBwd.apply(*inputs) if torch._C._are_functorch_transforms_active() else nca_rollout_bwd(*inputs)
