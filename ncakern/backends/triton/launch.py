"""Rollouts as a sequence of steps: which family of kernels, which buffers, which states are computed again."""

from __future__ import annotations

import contextlib
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ncakern._env import read_env
from ncakern._spec import RolloutSpec
from ncakern.backends.triton import graphs, launch_large, launch_small
from ncakern.backends.triton.draw import NUM_WORDS, write_draw
from ncakern.backends.triton.step import Rollout, Sums, add_perceive_bias, stats_width
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
    state: Tensor,
    *others: Tensor | None,
    spec: RolloutSpec,
    steps: int,
    keep_every: int,
    keep: bool,
    **stream: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """See ``ncakern/backends/__init__.py``."""
    with _on_device(state), _without_autocast(state):
        draw, left = _write_draw(state, spec, **stream)
        call: dict[str, Any] = {"spec": spec, "left": left, "steps": steps}
        if graphs.is_wanted(state, keep=keep):
            out = _fwd_from_graph(state, others, draw, **call)
            return out, state.new_empty((0, *state.shape)), _no_stats(state)
        return _fwd(state, others, draw, keep_every=keep_every, keep=keep, **call)


def _fwd_from_graph(state: Tensor, others: tuple[Tensor | None, ...], draw: Tensor, **call: Any) -> Tensor:
    """The result alone. The key names the layout of all tensors, and what is read from elsewhere."""
    is_given = [other is not None for other in others]
    given = [other for other in others if other is not None]

    def run(draw: Tensor, state: Tensor, *given: Tensor) -> Tensor:
        tensors = iter(given)
        others = tuple(next(tensors) if is_one else None for is_one in is_given)
        return _fwd(state, others, draw, keep_every=1, keep=False, **call)[0]

    shapes = tuple((tensor.shape, tensor.dtype) for tensor in (state, *given))
    key = (shapes, tuple(is_given), *call.values(), _choose_precision(state), graphs.stream_key(state))
    return graphs.CACHE.run(key, (draw, state, *given), run)


def _fwd(
    state: Tensor,
    others: tuple[Tensor | None, ...],
    draw: Tensor,
    *,
    spec: RolloutSpec,
    left: int,
    steps: int,
    keep_every: int,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    rollout = _describe(state, others, spec=spec, draw=draw, left=left)
    num_kept = max(0, -(-steps // keep_every) - 1) if keep else 0
    out, kept = state.new_empty(state.shape), state.new_empty((num_kept, *state.shape))
    shape = (rollout.groups, stats_width(rollout.hidden, rollout.features))
    keeps_stats = keep and rollout.groups > 0
    stats = state.new_empty((steps, *shape), dtype=torch.float64) if keeps_stats else _no_stats(state)
    if not state.numel():
        return out, kept, stats

    scratch = [torch.empty_like(state) for _ in range(min(2, steps - 1 - num_kept))]
    one_step = state.new_empty(shape, dtype=torch.float64) if rollout.groups else None
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


def _no_stats(state: Tensor) -> Tensor:
    return state.new_empty((0, 0, 0), dtype=torch.float64)


def bwd(
    d_out: Tensor,
    state: Tensor,
    kept: Tensor,
    stats: Tensor,
    *others: Tensor | None,
    spec: RolloutSpec,
    steps: int,
    keep_every: int,
    **stream: Any,
) -> tuple[Tensor | None, ...]:
    """See ``ncakern/backends/__init__.py``."""
    d_state = d_out.float()
    with _on_device(state), _without_autocast(state):
        draw, left = _write_draw(state, spec, **stream)
        rollout = _describe(state, others, spec=spec, draw=draw, left=left)
        sums = Sums.zeros(rollout)
        if state.numel():
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
            add_perceive_bias(rollout, sums)
    gradients = [_gradient(getattr(sums, name), given) for name, given in zip(_TENSORS, others, strict=True)]
    # A copy, as a custom operator must not return its argument: with no cells, d_state is d_out itself.
    return (d_state.to(state.dtype, copy=True), *gradients)


def _write_draw(
    state: Tensor, spec: RolloutSpec, *, origin: tuple[int, ...], extent: tuple[int, ...], **stream: Any
) -> tuple[Tensor, int]:
    """The words of the random stream on the device, and `Rollout.left`."""
    is_2d = len(origin) == 2
    first, sizes = _with_middle(origin, 0, is_2d), _with_middle(extent, 1, is_2d)
    draw = state.new_empty(NUM_WORDS, dtype=torch.int64)
    write_draw(draw, spec=spec, origin=first, extent=sizes, **stream)
    return draw, first[2] % 4


def _describe(
    state: Tensor, others: tuple[Tensor | None, ...], *, spec: RolloutSpec, draw: Tensor, left: int
) -> Rollout:
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
        draw=draw,
        left=left,
        precision=_choose_precision(state),
        programs=_choose_programs(state),
        dtype=state.dtype,
        **tensors,
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


def _without_autocast(state: Tensor) -> contextlib.AbstractContextManager[Any]:
    """What torch computes here is part of a step, which autocast does not reach."""
    kind = state.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else contextlib.nullcontext()


def _gradient(summed: Tensor | None, given: Tensor | None) -> Tensor | None:
    """A sum in the shape and dtype of the argument."""
    return None if summed is None or given is None else summed.to(given.dtype).reshape(given.shape)
