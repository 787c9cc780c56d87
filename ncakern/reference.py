"""The definition of a rollout in plain PyTorch: slow, obvious, any float dtype, differentiable any number of times."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ncakern._checks import check_rollout
from ncakern._philox import fire_bits, seed_tensor
from ncakern._spec import LEAKY_SLOPE, NORM_EPS, RolloutParams, RolloutSpec

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "leaky_relu": lambda u: F.leaky_relu(u, LEAKY_SLOPE),
    "silu": F.silu,
    "gelu": F.gelu,
    "tanh": torch.tanh,
}
_PAD_MODE = {"reflect": "reflect", "zeros": "constant", "replicate": "replicate", "circular": "circular"}


def nca_rollout_reference(
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
) -> Tensor:
    """Run ``steps`` NCA steps in plain PyTorch. Arguments, result and errors as in :func:`ncakern.nca_rollout`.

    Beyond it: float64 states, double backward, and tracing into any graph format that knows PyTorch's own operators.
    The memory of a backward pass grows with hidden width times steps: this is the definition, not the fast way.
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
    drawn = seed_tensor(call.seed)
    with torch.autocast("cpu" if state.is_meta else state.device.type, enabled=False):
        for step in range(call.steps):
            fire = fire_bits(
                tuple(state.shape[:-1]),
                seed=drawn,
                step=call.first_step + step,
                fire_rate=spec.fire_rate,
                first_sample=call.first_sample,
                origin=call.origin,
                extent=call.extent,
                device=state.device,
            )
            state = _step(state, params, spec, fire, perceive_from, modulation)
    return state if call.steps else state.clone()


def _step(
    state: Tensor,
    params: RolloutParams,
    spec: RolloutSpec,
    fire: Tensor,
    perceive_from: Tensor | None,
    modulation: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """One step on ``[B, *S, C]``; half-precision states are computed in float32 and rounded once at the end."""
    dtype = torch.float64 if state.dtype == torch.float64 else torch.float32
    params = params.to(dtype)
    current = state.to(dtype)
    seen = current if perceive_from is None else perceive_from.to(dtype)

    features = _perceive(seen, params, spec)  # [B, *S, (1 + F) * C]
    u = F.linear(features, params.hidden_weight, params.hidden_bias)  # [B, *S, h]
    if spec.norm != "none":
        u = _normalise(u, params, spec)
    if modulation is not None:
        scale, shift = (_per_sample(m.to(dtype), u.dim()) for m in modulation)  # [B, 1, ..., h]
        u = scale * u + shift
    active = _ACTIVATIONS[spec.activation](u)

    free = spec.frozen_channels
    bias = None if params.out_bias is None else params.out_bias[free:]
    delta = F.linear(active, params.out_weight[free:], bias)  # [B, *S, C - frozen]
    if spec.clamp is None:
        moved = torch.cat((state[..., :free], (current[..., free:] + delta).to(state.dtype)), dim=-1)
        return torch.where(fire[..., None], moved, state)
    moved = torch.where(fire[..., None], current[..., free:] + delta, current[..., free:])
    return torch.cat((state[..., :free], moved.clamp(*spec.clamp).to(state.dtype)), dim=-1)


def _perceive(seen: Tensor, params: RolloutParams, spec: RolloutSpec) -> Tensor:
    """Concatenate the identity and each filter's cross-correlation."""
    channels = seen.shape[-1]
    weights = params.perceive_weight
    if spec.perception == "depthwise":
        weights, groups = weights[:, :, None], channels  # [F, C, 1, *k]
    else:
        groups = 1  # [F, C, C, *k]
    kernel = weights.shape[3:]
    pad = [side for k in reversed(kernel) for side in ((k - 1) // 2,) * 2]
    padded = F.pad(seen.movedim(-1, 1), pad, mode=_PAD_MODE[spec.padding])  # [B, C, *(S + k - 1)]
    conv = F.conv2d if len(kernel) == 2 else F.conv3d
    filtered = [
        conv(padded, weight, bias, groups=groups).movedim(1, -1)
        for weight, bias in zip(weights, params.perceive_bias, strict=True)
    ]
    return torch.cat([seen, *filtered], dim=-1)


def _normalise(u: Tensor, params: RolloutParams, spec: RolloutSpec) -> Tensor:
    """Normalise each hidden unit by the mean and biased variance of this very step."""
    assert params.norm_weight is not None and params.norm_bias is not None
    cells = tuple(range(0 if spec.norm == "batch" else 1, u.dim() - 1))
    if u.numel() == 0:
        return u * params.norm_weight + params.norm_bias
    mean = u.mean(cells, keepdim=True)
    variance = u.var(cells, correction=0, keepdim=True)
    return (u - mean) * torch.rsqrt(variance + NORM_EPS) * params.norm_weight + params.norm_bias


def _per_sample(vector: Tensor, dim: int) -> Tensor:
    """``[B, h]`` -> ``[B, 1, ..., 1, h]`` with ``dim`` axes."""
    return vector.reshape(vector.shape[0], *[1] * (dim - 2), vector.shape[1])
