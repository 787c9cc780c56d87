"""The contract as scalar loops in Python and numpy, sharing nothing with the library: slow and hard to get wrong."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
from helpers import Case, Inputs

ACTIVATIONS = {
    "relu": lambda u: max(u, 0.0),
    "leaky_relu": lambda u: u if u > 0 else 0.01 * u,
    "silu": lambda u: u / (1 + math.exp(-u)),
    "gelu": lambda u: u * (1 + math.erf(u / math.sqrt(2))) / 2,
    "tanh": math.tanh,
}


def philox4x32_10(counter: tuple[int, ...], key: tuple[int, int]) -> tuple[int, ...]:
    """Philox4x32-10 on Python's unbounded integers."""
    c, (k0, k1) = list(counter), key
    for _ in range(10):
        left, right = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(right >> 32) ^ c[1] ^ k0, right & 0xFFFFFFFF, (left >> 32) ^ c[3] ^ k1, left & 0xFFFFFFFF]
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return tuple(c)


def cell_fires(
    position: tuple[int, ...], *, sample: int, step: int, seed: int, fire_rate: float, extent: tuple[int, ...]
) -> bool:
    """Whether the cell at a global position updates."""
    *outer, x = position
    row = 0
    for index, size in zip(outer, extent[:-1], strict=True):
        row = row * size + index
    low, high = seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF
    words = philox4x32_10((x >> 2, row & 0xFFFFFFFF, sample & 0xFFFFFFFF, step & 0xFFFFFFFF), (low, high))
    return words[x & 3] < math.floor(fire_rate * 2**32)


def source_index(index: int, size: int, padding: str) -> int | None:
    """Where a padded index reads from; None where it reads zero."""
    if 0 <= index < size:
        return index
    if padding == "zeros":
        return None
    if padding == "replicate":
        return min(max(index, 0), size - 1)
    if padding == "circular":
        return index % size
    return -index if index < 0 else 2 * (size - 1) - index


def rollout_by_loops(case: Case, inputs: Inputs, *, seed: int) -> np.ndarray:
    """The final state in float64."""
    tensors = {name: tensor.detach().double().numpy() for name, tensor in inputs.named().items()}
    state = tensors["state"].copy()
    for step in range(case.steps):
        state = _step(case, tensors, state, step + case.call.get("first_step", 0), seed)
    return state


def _step(case: Case, tensors: dict[str, np.ndarray], state: np.ndarray, step: int, seed: int) -> np.ndarray:
    spec, size = case.spec, case.size
    batch, channels = state.shape[0], state.shape[-1]
    cells = list(itertools.product(range(batch), *map(range, size)))
    seen = tensors.get("perceive_from", state)

    hidden = {}
    for cell in cells:
        features = [seen[cell][c] for c in range(channels)]
        for f in range(case.num_filters):
            features += [_filter(case, tensors, seen, cell, f, c) for c in range(channels)]
        weight, bias = tensors["hidden_weight"], tensors["hidden_bias"]
        hidden[cell] = np.array(
            [bias[j] + math.fsum(weight[j, i] * value for i, value in enumerate(features)) for j in range(len(bias))]
        )
    if spec.norm != "none":
        _normalise(spec.norm, tensors, hidden)

    result = state.copy()
    origin, extent = case.call.get("origin", (0,) * len(size)), case.call.get("extent", size)
    for cell in cells:
        sample, position = cell[0], tuple(o + i for o, i in zip(origin, cell[1:], strict=True))
        u = hidden[cell]
        if "scale" in tensors:
            u = tensors["scale"][sample] * u + tensors["shift"][sample]
        active = [ACTIVATIONS[spec.activation](value) for value in u]
        draw: dict[str, Any] = {"sample": sample + case.call.get("first_sample", 0), "step": step, "seed": seed}
        if cell_fires(position, **draw, fire_rate=spec.fire_rate, extent=extent):
            for c in range(spec.frozen_channels, channels):
                terms = [w * a for w, a in zip(tensors["out_weight"][c], active, strict=True)]
                result[cell][c] += math.fsum([*terms, *([tensors["out_bias"][c]] if "out_bias" in tensors else [])])
    if spec.clamp is not None:
        for cell in cells:
            for c in range(spec.frozen_channels, channels):
                result[cell][c] = min(max(result[cell][c], spec.clamp[0]), spec.clamp[1])
    return result


def _filter(
    case: Case, tensors: dict[str, np.ndarray], seen: np.ndarray, cell: tuple[int, ...], f: int, c: int
) -> float:
    """Output channel c of filter f at one cell."""
    weight = tensors["perceive_weight"][f, c]  # depthwise [*k], dense [C_in, *k]
    kernel = weight.shape[-len(case.size) :]
    terms = [tensors["perceive_bias"][f, c]]
    for tap in itertools.product(*map(range, kernel)):
        source = [
            source_index(index + t - (k - 1) // 2, size, case.spec.padding)
            for index, t, k, size in zip(cell[1:], tap, kernel, case.size, strict=True)
        ]
        if None in source:
            continue
        values = seen[(cell[0], *source)]
        if case.spec.perception == "depthwise":
            terms.append(weight[tap] * values[c])
        else:
            terms += [weight[(i, *tap)] * values[i] for i in range(len(values))]
    return math.fsum(terms)


def _normalise(norm: str, tensors: dict[str, np.ndarray], hidden: dict[tuple[int, ...], np.ndarray]) -> None:
    """Subtract the mean, divide by the standard deviation, scale and shift, in place."""
    groups = [list(hidden)] if norm == "batch" else [[c for c in hidden if c[0] == b] for b in {c[0] for c in hidden}]
    for group in groups:
        values = np.stack([hidden[cell] for cell in group])
        mean, variance = values.mean(0), values.var(0)
        for cell in group:
            centred = (hidden[cell] - mean) / np.sqrt(variance + 1e-5)
            hidden[cell] = centred * tensors["norm_weight"] + tensors["norm_bias"]
