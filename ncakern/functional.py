"""The functional interface: validate once, choose a backend, call it. No arithmetic happens here."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ncakern import _dispatch, ops
from ncakern._checks import (
    check_rollout,
    check_seed,
    describe,
    require_int,
    require_like,
    require_tensor,
    resolve_keep_every,
)
from ncakern._philox import fire_bits, seed_tensor
from ncakern._spec import RolloutParams, RolloutSpec, check_fire_rate
from ncakern._tile import resolve_tile
from ncakern.reference import nca_rollout_reference


def nca_rollout(
    state: Tensor,
    params: RolloutParams,
    spec: RolloutSpec,
    steps: int,
    *,
    seed: int | Tensor | None = None,
    first_step: int = 0,
    first_sample: int = 0,
    origin: tuple[int, ...] | None = None,
    extent: tuple[int, ...] | None = None,
    perceive_from: Tensor | None = None,
    modulation: tuple[Tensor, Tensor] | None = None,
    keep_every: int | str = 1,
    backend: str = "auto",
) -> Tensor:
    """Run ``steps`` stochastic NCA steps: perceive, dense, norm, activation, dense, fire.

    One step, with ``z = state`` (or ``perceive_from``) and ``v = concat(z, conv_1(z), ..., conv_F(z))``::

        u      = norm(hidden_weight @ v + hidden_bias)
        state += fire * (out_weight @ activation(scale * u + shift) + out_bias)      # except the frozen channels
        state  = clamp(state)                                             # the same, if spec.clamp is given

    B batch, ``*S`` = (H, W) or (D, H, W) cells, C channels, h hidden, F filters, ``*k`` odd kernel sizes.

    Args:
        state: ``[B, *S, C]``, channels last; float32, or bfloat16 / float16 (rounded once per step, computed in
            float32), or float64 (reference only).
        params: tensors of the step, see :class:`RolloutParams`; all float32, or all of the state's dtype.
        spec: options of the step, see :class:`RolloutSpec`.
        steps: number of steps, at least 0.
        seed: names the random stream. None draws one from torch's default generator; an int or a 0-d int64 tensor is
            taken as it is.
        first_step: index of the first step in the random stream: 5 steps, then 5 with ``first_step=5``, equal 10.
        first_sample: index of the first sample in the random stream.
        origin, extent: for a tile, the global index of its first cell and the global size, per spatial axis. Values
            closer than ``steps * (k - 1) / 2`` cells to an edge that is not a true border are not meaningful.
        perceive_from: ``[B, *S, C]``, perceived in place of the state; ``steps`` must be 1.
        modulation: ``(scale, shift)``, each ``[B, h]``, applied to the hidden values before the activation.

    Other Parameters:
        keep_every: how many steps apart states are kept for the backward pass; the rest is computed again. "sqrt"
            balances the two. Changes memory and time, not the result.
        backend: "auto", "triton", "cpu" or "reference"; an explicit choice never falls back.

    Returns:
        The state after the last step, ``[B, *S, C]``, in the state's dtype.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a shape, value or device is wrong, or the chosen backend cannot run this call.
        RuntimeError: the chosen backend is not built; or a gradient of a gradient is asked for (the reference has it).

    Example:
        >>> params = RolloutParams(
        ...     perceive_weight=torch.rand(1, 4, 3, 3), perceive_bias=torch.zeros(1, 4), hidden_weight=torch.rand(8, 8),
        ...     hidden_bias=torch.zeros(8), out_weight=torch.rand(4, 8))
        >>> nca_rollout(torch.zeros(2, 5, 6, 4), params, RolloutSpec(), 3, seed=0, backend="reference").shape
        torch.Size([2, 5, 6, 4])

    Reference:
        Kalkhof, Mukhopadhyay, "M3D-NCA: Robust 3D Segmentation with Built-In Quality Control", MICCAI 2023; the update
        rule with fire mask is from Mordvintsev et al., "Growing Neural Cellular Automata", Distill 2020.
    """
    call = check_rollout(
        state,
        params,
        spec,
        steps,
        seed=seed,
        first_step=first_step,
        first_sample=first_sample,
        origin=origin,
        extent=extent,
        perceive_from=perceive_from,
        modulation=modulation,
    )
    keep_every = resolve_keep_every(keep_every, call.steps)
    chosen = _dispatch.choose_backend(describe(state, params, spec, call.steps), backend)
    if call.steps == 0:
        return state.clone()
    given: dict[str, Any] = call._asdict()
    if chosen == "reference":
        return nca_rollout_reference(state, params, spec, perceive_from=perceive_from, modulation=modulation, **given)
    given["seed"] = seed_tensor(call.seed)
    return ops.rollout(
        state,
        params.to(torch.float32),
        spec,
        perceive_from=perceive_from,
        modulation=None if modulation is None else (modulation[0].float(), modulation[1].float()),
        keep_every=keep_every,
        backend=chosen,
        **given,
    )


def step_gradients(
    d_out: Tensor,
    state: Tensor,
    params: RolloutParams,
    spec: RolloutSpec,
    *,
    perceive_from: Tensor,
    seed: int | Tensor,
    first_step: int = 0,
    first_sample: int = 0,
) -> tuple[Tensor, Tensor, RolloutParams]:
    """The gradients of one step of :func:`nca_rollout`, for backward passes that a caller writes.

    The fast backends need the step's inputs for them, not its result: without norm the step itself is not computed.

    Args:
        d_out: ``[B, *S, C]``, the gradient of the step's result.
        state, params, spec, perceive_from, seed, first_step, first_sample: what the step was given; ``seed`` not None.

    Returns:
        The gradients of ``state``, ``perceive_from`` and ``params``, in their dtypes. They have no gradient themselves.

    Raises:
        TypeError, ValueError: as :func:`nca_rollout`.
    """
    stream: dict[str, Any] = {"seed": seed, "first_step": first_step, "first_sample": first_sample}
    call = check_rollout(state, params, spec, 1, perceive_from=perceive_from, **stream)
    require_tensor("perceive_from", perceive_from)
    if call.seed is None:
        raise TypeError("seed must be an int or a 0-d int64 tensor; got None")
    require_like("d_out", d_out, state.shape, state)
    chosen = _dispatch.choose_backend(describe(state, params, spec, 1), "auto")
    if chosen == "reference" or spec.norm != "none":
        return _traced_step_gradients(d_out, state, params, spec, perceive_from, stream)
    with torch.no_grad():
        d_state, d_from, d_params = ops.step_bwd(
            d_out,
            state,
            params.to(torch.float32),
            spec,
            perceive_from=perceive_from,
            backend=chosen,
            seed=seed_tensor(call.seed),
            first_step=call.first_step,
            first_sample=call.first_sample,
            origin=call.origin,
            extent=call.extent,
        )
    return d_state, d_from, d_params.to(params.out_weight.dtype)


def _traced_step_gradients(
    d_out: Tensor,
    state: Tensor,
    params: RolloutParams,
    spec: RolloutSpec,
    perceive_from: Tensor,
    stream: dict[str, Any],
) -> tuple[Tensor, Tensor, RolloutParams]:
    present = {name: tensor for name, tensor in params._asdict().items() if tensor is not None}
    with torch.enable_grad():
        leaves = [tensor.detach().requires_grad_() for tensor in (state, perceive_from, *present.values())]
        traced = RolloutParams(**dict(zip(present, leaves[2:], strict=True)))
        out = nca_rollout(leaves[0], traced, spec, 1, perceive_from=leaves[1], **stream)
    d_state, d_from, *others = torch.autograd.grad(out, leaves, d_out)
    return d_state, d_from, RolloutParams(**dict(zip(present, others, strict=True)))


def fire_mask(
    shape: tuple[int, ...],
    *,
    seed: int | Tensor,
    step: int,
    fire_rate: float,
    first_sample: int = 0,
    origin: tuple[int, ...] | None = None,
    extent: tuple[int, ...] | None = None,
) -> Tensor:
    """Which cells update in one step: the bits that every backend draws.

    Args:
        shape: ``(B, *S)``.
        seed: an int or a 0-d int64 tensor, which also decides the device.
        step: index of the step in the random stream (``first_step`` plus the index in the rollout).
        fire_rate: probability in [0, 1] that a cell updates.
        first_sample, origin, extent: as in :func:`nca_rollout`.

    Returns:
        bool ``[B, *S]``.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: an argument has a wrong value or length.

    Example:
        >>> fire_mask((1, 2, 3), seed=0, step=0, fire_rate=1.0)
        tensor([[[True, True, True],
                 [True, True, True]]])
    """
    if not isinstance(shape, (tuple, list)):
        raise TypeError(f"shape must be a tuple (B, H, W) or (B, D, H, W); got {type(shape).__name__}")
    if len(shape) not in (3, 4):
        raise ValueError(f"shape must be (B, H, W) or (B, D, H, W); got {tuple(shape)}")
    if seed is None:
        raise TypeError("seed must be an int or a 0-d int64 tensor; got None")
    shape = tuple(require_int("shape", cells) for cells in shape)
    origin, extent = resolve_tile(shape[1:], origin, extent, as_int=require_int)
    drawn = seed_tensor(check_seed(seed))
    return fire_bits(
        shape,
        seed=drawn,
        step=require_int("step", step),
        fire_rate=check_fire_rate(fire_rate),
        first_sample=require_int("first_sample", first_sample),
        origin=origin,
        extent=extent,
        device=drawn.device,
    )


def explain(state: Tensor, params: RolloutParams, spec: RolloutSpec, steps: int) -> dict[str, str | None]:
    """Why each backend, in the order of choice, cannot run this call; None for those that can.

    Example:
        >>> nca = ncakern.NCA(2, 8, 16)
        >>> ncakern.explain(torch.zeros(1, 9, 9, 8, dtype=torch.float64), nca.params, nca.spec, 4)["reference"]
    """
    call = check_rollout(state, params, spec, steps, seed=None)
    return _dispatch.explain(describe(state, params, spec, call.steps))
