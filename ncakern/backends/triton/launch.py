"""Rollouts as a sequence of steps: which family of kernels, which buffers, which states are computed again."""

from __future__ import annotations

import contextlib
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ncakern._env import read_env
from ncakern._spec import RolloutSpec
from ncakern.backends.triton import launch_large, launch_small
from ncakern.backends.triton.step import Rollout, Sums, stats_width
from ncakern.backends.triton.tiles import is_small

_TENSORS = (
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
)


def fwd(
    state: Tensor, *others: Tensor | None, steps: int, keep_every: int, keep: bool, **keywords: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """See ``ncakern/backends/__init__.py``."""
    rollout = _describe(state, others, **keywords)
    num_kept = max(0, -(-steps // keep_every) - 1) if keep else 0
    out, kept = state.new_empty(state.shape), state.new_empty((num_kept, *state.shape))
    width = stats_width(rollout.hidden, rollout.features)
    keeps_stats = keep and rollout.groups > 0
    stats = state.new_empty((steps, rollout.groups, width) if keeps_stats else (0, 0, 0), dtype=torch.float64)
    if not state.numel():
        return out, kept, stats

    scratch = [torch.empty_like(state) for _ in range(min(2, steps - 1 - num_kept))]
    one_step = state.new_empty((rollout.groups, width), dtype=torch.float64) if rollout.groups else None
    with _on_device(state):
        family = _choose_family(rollout)
        packed = family.pack(rollout)
        current = state
        for index in range(steps):
            done = index + 1
            if done == steps:
                target = out
            elif num_kept and done % keep_every == 0:
                target = kept[done // keep_every - 1]
            else:
                target = next(buffer for buffer in scratch if buffer is not current)
            row = stats[index] if keeps_stats else one_step
            family.step_fwd(rollout, packed, index, current, target, row, has_stats=False)
            current = target
    return out, kept, stats


def bwd(
    d_out: Tensor,
    state: Tensor,
    kept: Tensor,
    stats: Tensor,
    *others: Tensor | None,
    steps: int,
    keep_every: int,
    **keywords: Any,
) -> tuple[Tensor | None, ...]:
    """See ``ncakern/backends/__init__.py``."""
    rollout = _describe(state, others, **keywords)
    sums = Sums.zeros(rollout)
    d_state = d_out.float()
    if state.numel():
        with _on_device(state):
            family = _choose_family(rollout)
            packed = family.pack(rollout)
            replayed = [torch.empty_like(state) for _ in range(min(keep_every, steps) - 1)]
            for first in range((steps - 1) // keep_every * keep_every, -1, -keep_every):
                states = [kept[first // keep_every - 1] if first else state]
                last = min(first + keep_every, steps) - 1
                for index in range(first, last):
                    row = stats[index] if rollout.groups else None
                    family.step_fwd(rollout, packed, index, states[-1], replayed[index - first], row, has_stats=True)
                    states.append(replayed[index - first])
                for index in range(last, first - 1, -1):
                    row = stats[index] if rollout.groups else None
                    d_state = family.step_bwd(rollout, packed, index, states.pop(), row, d_state, sums)
    gradients = [_gradient(getattr(sums, name), given) for name, given in zip(_TENSORS, others, strict=True)]
    # A copy, as a custom operator must not return its argument: with no cells, d_state is d_out itself.
    return (d_state.to(state.dtype, copy=True), *gradients)


def _describe(state: Tensor, others: tuple[Tensor | None, ...], *, spec: RolloutSpec, **keywords: Any) -> Rollout:
    """The arguments as the kernel families take them: three axes, (H, W) as (H, 1, W)."""
    tensors: dict[str, Any] = dict(zip(_TENSORS, (None if t is None else t.detach() for t in others), strict=True))
    weight, hidden_weight, seen = (tensors[name] for name in ("perceive_weight", "hidden_weight", "perceive_from"))
    assert weight is not None and hidden_weight is not None
    batch, *size, channels = state.shape
    is_2d = len(size) == 2
    kernel = _with_middle(weight.shape[-len(size) :], 1, is_2d)
    tensors["perceive_weight"] = weight.reshape(*weight.shape[: weight.dim() - len(size)], *kernel)
    if seen is not None:
        tensors["perceive_from"] = seen.reshape(batch, *_with_middle(size, 1, is_2d), channels)
    return Rollout(
        spec=spec,
        batch=batch,
        size=_with_middle(size, 1, is_2d),
        channels=channels,
        filters=weight.shape[0],
        hidden=hidden_weight.shape[0],
        kernel=kernel,
        origin=_with_middle(keywords.pop("origin"), 0, is_2d),
        extent=_with_middle(keywords.pop("extent"), 1, is_2d),
        precision=_choose_precision(state),
        programs=_choose_programs(state),
        dtype=state.dtype,
        **tensors,
        **keywords,
    )


def _with_middle(axes: Any, value: int, is_2d: bool) -> tuple[int, int, int]:
    first, *middle, last = axes
    return (first, value, last) if is_2d else (first, *middle, last)


def _choose_precision(state: Tensor) -> str:
    """How products of float32 numbers are formed: nearly exact, unless the storage is coarser than TF32 anyway."""
    wanted = read_env().triton_precision
    if wanted != "auto":
        return wanted
    if not torch.cuda.is_available() or torch.version.hip or _properties(state).major < 8:
        return "ieee"
    return "tf32" if state.dtype == torch.bfloat16 else "tf32x3"


def _choose_programs(state: Tensor) -> int:
    """Four for each multiprocessor; one in the interpreter, which runs them one after the other."""
    return 4 * _properties(state).multi_processor_count if torch.cuda.is_available() else 1


def _properties(state: Tensor) -> Any:
    return torch.cuda.get_device_properties(state.device if state.is_cuda else None)


def _choose_family(rollout: Rollout) -> ModuleType:
    sizes = {"channels": rollout.channels, "filters": rollout.filters, "hidden": rollout.hidden}
    return launch_small if is_small(rollout.spec.perception, rollout.size, **sizes) else launch_large


def _on_device(state: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Triton launches on the current device."""
    return torch.cuda.device(state.device) if state.is_cuda else contextlib.nullcontext()


def _gradient(summed: Tensor | None, given: Tensor | None) -> Tensor | None:
    """A sum in the shape and dtype of the argument."""
    return None if summed is None or given is None else summed.to(given.dtype).reshape(given.shape)
