"""The custom operators: the only file that touches torch.library. Schema, shape rules, autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ncakern import _dispatch
from ncakern._spec import Problem, RolloutParams, RolloutSpec

# What both operators take, in this order; an absent tensor is None. The forward one takes `keep` as well.
_TENSORS = (
    "Tensor state, Tensor perceive_weight, Tensor perceive_bias, Tensor hidden_weight, Tensor hidden_bias, "
    "Tensor? norm_weight, Tensor? norm_bias, Tensor out_weight, Tensor? perceive_from, Tensor? scale, Tensor? shift"
)
_SPEC = "str perception, str padding, str norm, str activation, float fire_rate, SymInt frozen_channels"
_CALL = "SymInt steps, SymInt first_step, SymInt first_sample, SymInt[] origin, SymInt[] extent, SymInt keep_every"
_INPUTS = f"{_TENSORS}, Tensor seed, {_SPEC}, {_CALL}, str backend"

_TENSOR_NAMES, _SPEC_NAMES, _CALL_NAMES = (
    [argument.split()[-1] for argument in group.split(",")] for group in (_TENSORS, _SPEC, _CALL)
)
_NUM_TENSORS = len(_TENSOR_NAMES)


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
    keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    options = [getattr(spec, name) for name in _SPEC_NAMES]
    call = (steps, first_step, first_sample, origin, extent, keep_every)
    out, _, _ = nca_rollout(*tensors, seed, *options, *call, backend, keep)
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
    gradients = nca_rollout_bwd(d_out, kept, stats, *tensors, seed, *options, *call, backend)
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


@torch.library.custom_op(
    "ncakern::nca_rollout",
    mutates_args=(),
    schema=f"({_INPUTS}, bool keep) -> (Tensor out, Tensor kept, Tensor stats)",
)
def nca_rollout(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Forward: the final state, the states kept for the backward pass, and the norm statistics of every step."""
    backend, tensors, keywords = _unpack(inputs[:-1])
    return backend.fwd(*tensors, **keywords, keep=inputs[-1])


@torch.library.custom_op(
    "ncakern::nca_rollout_bwd",
    mutates_args=(),
    schema=f"(Tensor d_out, Tensor kept, Tensor stats, {_INPUTS}) -> ({', '.join(['Tensor'] * _NUM_TENSORS)})",
)
def nca_rollout_bwd(d_out: Tensor, kept: Tensor, stats: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    """Backward: the gradient of every tensor in ``_TENSORS``; an empty tensor for those that are absent."""
    backend, (state, *others), keywords = _unpack(inputs)
    gradients = backend.bwd(d_out.contiguous(), state, kept, stats, *others, **keywords)
    return tuple(d_out.new_empty(0) if gradient is None else gradient for gradient in gradients)


def _unpack(inputs: tuple[Any, ...]) -> tuple[Any, list[Tensor | None], dict[str, Any]]:
    """The backend, its tensors (contiguous, which is what backends rely on) and its keyword arguments."""
    tensors, (seed, *options, backend) = inputs[:_NUM_TENSORS], inputs[_NUM_TENSORS:]
    spec, call = options[: len(_SPEC_NAMES)], options[len(_SPEC_NAMES) :]
    keywords = dict(zip(_CALL_NAMES, call, strict=True))
    keywords |= {name: tuple(keywords[name]) for name in ("origin", "extent")}
    keywords["spec"] = RolloutSpec(**dict(zip(_SPEC_NAMES, spec, strict=True)))
    # On an accelerator nobody may wait for a number inside a capture, and outside it would cost a round trip.
    keywords["seed"] = seed if seed.is_cuda and inputs[0].is_cuda else int(seed)
    return _dispatch.BACKENDS[backend], [None if t is None else t.contiguous() for t in tensors], keywords


@nca_rollout.register_fake
def _rollout_fake(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    *given, keep = inputs
    named = dict(zip(_SPEC_NAMES + _CALL_NAMES, given[_NUM_TENSORS + 1 : -1], strict=True))
    state, perceive_weight, _, hidden_weight, *_ = given
    batch, *size, channels = state.shape
    steps, keep_every = named["steps"], named["keep_every"]
    num_kept = (steps + keep_every - 1) // keep_every - 1 if keep else 0
    out, kept = state.new_empty(state.shape), state.new_empty((num_kept, *state.shape))
    if not keep or named["norm"] == "none":
        return out, kept, state.new_empty((0, 0, 0), dtype=torch.float64)
    problem = Problem(
        device=state.device.type,
        dtype=str(state.dtype).removeprefix("torch."),
        batch=batch,
        size=tuple(size),
        channels=channels,
        hidden=hidden_weight.shape[0],
        num_filters=perceive_weight.shape[0],
        kernel=tuple(perceive_weight.shape[-len(size) :]),
        spec=RolloutSpec(**{name: named[name] for name in _SPEC_NAMES}),
        steps=steps,
    )
    width = _dispatch.BACKENDS[given[-1]].stats_width(problem)
    groups = 1 if named["norm"] == "batch" else batch
    return out, kept, state.new_empty((steps, groups, width), dtype=torch.float64)


@nca_rollout_bwd.register_fake
def _rollout_bwd_fake(d_out: Tensor, kept: Tensor, stats: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    state = inputs[0]
    return tuple(state.new_empty(0) if t is None else t.new_empty(t.shape) for t in inputs[:_NUM_TENSORS])


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
    gradients = nca_rollout_bwd(d_out, kept, stats, *tensors, seed, *ctx.options)
    present = [None if t is None else gradient for t, gradient in zip(tensors, gradients, strict=True)]
    return (*present, *(None,) * num_options)


def _refuse_double_backward(ctx: Any, *_: Tensor | None) -> None:
    raise RuntimeError(
        "ncakern.nca_rollout has no gradient of a gradient on the fast backends; use backend='reference', which has it"
    )


nca_rollout.register_autograd(_backward, setup_context=_setup_context)
nca_rollout_bwd.register_autograd(_refuse_double_backward)
