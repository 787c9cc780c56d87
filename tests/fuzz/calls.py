"""Random calls of a rollout: small valid ones, and what users and broken files put in the place of their arguments."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ncakern._spec import ACTIVATIONS

PARAMS = (
    "perceive_weight",
    "perceive_bias",
    "hidden_weight",
    "hidden_bias",
    "norm_weight",
    "norm_bias",
    "out_weight",
    "out_bias",
)
TENSORS = ("state", *PARAMS, "perceive_from", "scale", "shift")
OPTIONS = ("perception", "padding", "norm", "activation", "fire_rate", "frozen_channels", "clamp")
NUMBERS = ("steps", "seed", "first_step", "first_sample", "origin", "extent", "keep_every")


@dataclass
class Call:
    """Arrays by name (None: absent), options of the spec, and numbers; ``changed`` names what was made hostile."""

    arrays: dict[str, Any]
    options: dict[str, Any]
    numbers: dict[str, Any]
    changed: list[str] = field(default_factory=list)

    @property
    def named(self) -> dict[str, Any]:
        return {**self.arrays, **self.options, **self.numbers}


def draw_call(rng: np.random.Generator) -> Call:
    """A valid call: 2D or 3D, every option, no axis beyond 7 cells."""
    ndim, batch = int(rng.integers(2, 4)), int(rng.integers(1, 4))
    kernel = tuple(int(k) for k in rng.choice([1, 3, 3, 3, 5], ndim))
    size = tuple(int(rng.integers(max(1, k // 2 + 1), 8)) for k in kernel)
    channels, hidden, filters = int(rng.integers(1, 10)), int(rng.integers(1, 20)), int(rng.integers(1, 3))
    options = {
        "perception": str(rng.choice(["depthwise", "dense"])),
        "padding": str(rng.choice(["reflect", "zeros", "replicate", "circular"])),
        "norm": str(rng.choice(["none", "none", "batch", "instance"])),
        "activation": str(rng.choice(ACTIVATIONS)),
        "fire_rate": float(rng.choice([0.0, 0.3, 0.5, 1.0])),
        "frozen_channels": int(rng.integers(0, channels + 1)) if rng.random() < 0.3 else 0,
        "clamp": (-0.9, 0.8) if rng.random() < 0.2 else None,
    }
    inputs = (channels,) if options["perception"] == "depthwise" else (channels, channels)
    features, fan_in = (1 + filters) * channels, int(np.prod(kernel)) * (1 if len(inputs) == 1 else channels)
    arrays: dict[str, Any] = {
        "state": _normal(rng, batch, *size, channels),
        "perceive_weight": _normal(rng, filters, *inputs, *kernel, scale=fan_in**-0.5),
        "perceive_bias": _normal(rng, filters, channels, scale=0.3),
        "hidden_weight": _normal(rng, hidden, features, scale=features**-0.5),
        "hidden_bias": _normal(rng, hidden, scale=0.3),
        "out_weight": _normal(rng, channels, hidden, scale=0.5 * hidden**-0.5),
    }
    has_norm = options["norm"] != "none"
    arrays |= {name: _normal(rng, hidden) if has_norm else None for name in ("norm_weight", "norm_bias")}
    arrays["out_bias"] = _normal(rng, channels, scale=0.3) if rng.random() < 0.3 else None
    is_modulated, is_guided = rng.random() < 0.2, rng.random() < 0.2
    arrays |= {name: _normal(rng, batch, hidden) if is_modulated else None for name in ("scale", "shift")}
    arrays["perceive_from"] = _normal(rng, batch, *size, channels) if is_guided else None
    return Call(arrays, options, _draw_numbers(rng, size, options, steps=1 if is_guided else int(rng.integers(0, 6))))


def _draw_numbers(rng: np.random.Generator, size: tuple[int, ...], options: dict, *, steps: int) -> dict[str, Any]:
    origin, extent = (0,) * len(size), size
    if rng.random() < 0.3 and options["norm"] == "none" and options["padding"] != "circular":
        origin = tuple(int(rng.integers(0, 9)) for _ in size)
        extent = tuple(o + s + int(rng.integers(0, 9)) for o, s in zip(origin, size, strict=True))
    return {
        "steps": steps,
        "seed": int(rng.integers(-(2**63), 2**63 - 1)),
        "first_step": int(rng.integers(0, 2**33)),
        "first_sample": int(rng.integers(0, 2**33)),
        "origin": origin,
        "extent": extent,
        "keep_every": int(rng.integers(1, 5)),
    }


def _normal(rng: np.random.Generator, *shape: int, scale: float = 1.0) -> np.ndarray:
    return (rng.standard_normal(shape) * scale).astype(np.float32)


# Hostile values.

# No number of steps between a thousand and the bound: they are allowed, and take their time.
LARGE = (2**31, 2**32, 2**32 + 1, 2**63 - 1, 2**63, 2**64, 2**64 + 1, 2**200)
INTEGERS = (0, 1, 2, -1, -(2**31), -(2**63), -(2**63) - 1, *LARGE)
NOT_INTEGERS = (True, False, None, 1.0, float("nan"), "3", b"3", (), [1], 1j, object())


def hostile_number(rng: np.random.Generator) -> Any:
    kind = rng.random()
    if kind < 0.6:
        return INTEGERS[rng.integers(len(INTEGERS))]
    if kind < 0.8:
        return NOT_INTEGERS[rng.integers(len(NOT_INTEGERS))]
    return rng.choice([np.int8, np.int64, np.uint16, np.uint64, np.float32, np.bool_, np.array])(
        int(rng.integers(0, 4))
    )


def hostile_numbers(rng: np.random.Generator, value: tuple[int, ...]) -> Any:
    """In the place of origin and extent."""
    if rng.random() < 0.3:
        return [None, (), value[:1], (*value, 1), "ab", 3, np.asarray(value), list(value)][rng.integers(8)]
    changed = list(value)
    changed[rng.integers(len(changed))] = hostile_number(rng)
    return tuple(changed)


def hostile_option(rng: np.random.Generator, name: str) -> Any:
    if name in ("fire_rate", "frozen_channels"):
        floats = (-0.1, 1.1, float("nan"), float("inf"), np.float32(0.5), np.float64(1.0))
        return floats[rng.integers(len(floats))] if rng.random() < 0.5 else hostile_number(rng)
    return [None, "", "none", "batch", "Reflect", 1, b"zeros", ("dense",)][rng.integers(8)]


def hostile_array(rng: np.random.Generator, value: np.ndarray | None) -> Any:
    """Another layout of the same values, other values, other sizes, or no array at all."""
    if value is None or rng.random() < 0.15:
        return [None, 0, "x", [1.0], [[1.0]], b"1234", np.float32(1), np.zeros((), np.float32)][rng.integers(8)]
    return ARRAYS[rng.integers(len(ARRAYS))](rng, value)


def _read_only(rng: np.random.Generator, a: np.ndarray) -> np.ndarray:
    copy = a.copy()
    copy.flags.writeable = False
    return copy


def _unaligned(rng: np.random.Generator, a: np.ndarray) -> np.ndarray:
    shifted = np.frombuffer(bytearray(a.nbytes + 1), np.float32, count=a.size, offset=1).reshape(a.shape)
    shifted[...] = a
    return shifted


def _strided(rng: np.random.Generator, a: np.ndarray) -> np.ndarray:
    return np.repeat(a, 2, axis=-1)[..., ::2]


def _with_value(rng: np.random.Generator, a: np.ndarray) -> np.ndarray:
    copy = a.copy()
    if copy.size:
        copy.flat[rng.integers(copy.size)] = rng.choice([np.nan, np.inf, -np.inf, 0.0, 1e-42])
    return copy


def _resized(rng: np.random.Generator, a: np.ndarray) -> np.ndarray:
    if a.ndim == 0:
        return a.reshape(1)
    shape, axis = list(a.shape), int(rng.integers(a.ndim))
    shape[axis : axis + 1] = [[0], [shape[axis] + 1], [max(shape[axis] - 1, 0)], [], [1, shape[axis]], [1]][
        rng.integers(6)
    ]
    return np.ones(shape, np.float32)


ARRAYS = (
    _read_only,
    _unaligned,
    _strided,
    _with_value,
    _resized,
    _resized,
    _resized,
    lambda rng, a: np.asfortranarray(a),
    lambda rng, a: a[::-1],
    lambda rng, a: a.T,
    lambda rng, a: a.reshape(-1),
    lambda rng, a: np.broadcast_to(np.float32(0.5), a.shape),
    lambda rng, a: np.broadcast_to(np.float32(0), (2**40, *a.shape[1:])),
    lambda rng, a: np.ma.masked_array(a, a > 0),
    lambda rng, a: a.astype(rng.choice([np.float64, np.float16, np.int32, np.complex64, np.bool_])),
    lambda rng, a: a.astype(">f4"),
    lambda rng, a: a.astype(object),
)


def spoil(rng: np.random.Generator, call: Call, num_changes: int) -> Call:
    """The call with some of its arguments replaced; ``changed`` says which."""
    for _ in range(num_changes):
        name = str(rng.choice([*TENSORS, *OPTIONS, *NUMBERS]))
        if name in TENSORS:
            call.arrays[name] = hostile_array(
                rng, call.arrays[name] if isinstance(call.arrays[name], np.ndarray) else None
            )
        elif name in OPTIONS:
            call.options[name] = hostile_option(rng, name)
        elif name in ("origin", "extent"):
            call.numbers[name] = hostile_numbers(rng, tuple(np.atleast_1d(call.numbers["extent"])))
        else:
            call.numbers[name] = hostile_number(rng)
        call.changed.append(name)
    return call


def spoil_tensor(rng: np.random.Generator, tensor: torch.Tensor) -> torch.Tensor:
    """What only torch has: other devices, layouts, dtypes, and storage that is gone."""
    kinds = (
        lambda t: t.to("meta"),
        lambda t: t.to_sparse(),
        lambda t: t.to(torch.bfloat16),
        lambda t: t.to(torch.float16),
        lambda t: t.double(),
        lambda t: t.expand(t.shape),
        lambda t: t.movedim(0, -1),
        lambda t: t.requires_grad_(),
        lambda t: torch._neg_view(-t),
        lambda t: torch._efficientzerotensor(t.shape),
        _without_storage,
    )
    return kinds[rng.integers(len(kinds))](tensor)


def _without_storage(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.clone()
    tensor.untyped_storage().resize_(0)
    return tensor
