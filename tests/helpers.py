"""What tests share: small problems with readable names, and the one comparison against float64."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import ncakern

# A result may be this many times as wrong as plain float32 PyTorch is on the same case. Below about 2 the order of a
# sum already decides; 4 leaves room for that and for nothing else.
TIMES_PLAIN_ERROR = 4.0
# Plain PyTorch can be exact by luck (a single product, a sum of two). So much of the largest value is always allowed:
# two roundings to float32.
FLOOR = 2 * torch.finfo(torch.float32).eps


def assert_matches(actual: Tensor, plain: Tensor, exact: Tensor, *, name: str, floor: float = FLOOR) -> None:
    """Compare ``actual`` with the float64 result ``exact``, allowing 4 times the error of ``plain``.

    Four criteria: the largest error of an element, the L2 error, the direction (cosine), and no slice of the first axis
    that is zero in one and not in the other.

    Args:
        actual: the result under test.
        plain: the same computed by the reference in the dtype under test.
        exact: the same computed by the reference in float64.
        name: what is compared, for the message.
        floor: error that is always allowed, relative to the largest element (for L2: to the norm).
    """
    assert actual.shape == exact.shape, f"{name}: shape {tuple(actual.shape)}, expected {tuple(exact.shape)}"
    assert torch.isfinite(actual).all(), f"{name}: {(~torch.isfinite(actual)).sum()} values are not finite"
    actual, plain, exact = actual.detach().double(), plain.detach().double(), exact.detach().double()
    if exact.numel() == 0:
        return
    error, plain_error = actual - exact, plain - exact
    _note_margin(name, *(tensor.abs().max().item() for tensor in (error, plain_error, exact)))
    for what, size in (("largest error", lambda t: t.abs().max()), ("L2 error", torch.linalg.vector_norm)):
        bound = TIMES_PLAIN_ERROR * size(plain_error) + floor * size(exact)
        assert size(error) <= bound, (
            f"{name}: {what} {size(error):.3e}, allowed {bound:.3e} (plain {size(plain_error):.3e})"
        )
    noise = size(plain_error)
    if size(exact) > 100 * noise and size(exact) > 0:  # else there is nothing but rounding, and no direction
        cosine = (actual * exact).sum() / (size(actual) * size(exact))
        assert cosine > 0.999, f"{name}: cosine with the float64 result is {cosine:.6f}"
    # A row counts as there if it is more than rounding: exact zeros are right where float64 itself shows only noise.
    peaks = {n: t.abs().reshape(len(t), -1).amax(1) for n, t in (("a", actual), ("x", exact), ("e", plain_error))}
    missing = (peaks["a"] == 0) & (peaks["x"] > 100 * peaks["e"])
    assert not missing.any(), f"{name}: rows {missing.nonzero().flatten().tolist()} are zero and must not be"
    extra = (peaks["a"] > 0) & (peaks["x"] == 0) & (peaks["e"] == 0)
    assert not extra.any(), f"{name}: rows {extra.nonzero().flatten().tolist()} must be zero and are not"


def _note_margin(name: str, error: float, plain_error: float, largest: float) -> None:
    """Append what was compared to the file that NCAKERN_MARGINS names, for `benchmarks.gpu.margins`; else nothing."""
    path = os.environ.get("NCAKERN_MARGINS")
    if path:
        test = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition("::")[2].partition(" (")[0]
        row = {"test": test, "name": name, "error": error, "plain": plain_error, "largest": largest}
        with open(path, "a", encoding="utf-8") as file:  # a line is one write: processes may share the file
            file.write(json.dumps(row) + "\n")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One small problem. ``options`` go to :class:`ncakern.RolloutSpec`, ``call`` to the rollout."""

    size: tuple[int, ...]
    channels: int = 4
    hidden: int = 7
    num_filters: int = 1
    kernel: tuple[int, ...] = ()
    batch: int = 2
    steps: int = 3
    dtype: torch.dtype = torch.float32
    has_modulation: bool = False
    has_perceive_from: bool = False
    has_out_bias: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    call: dict[str, Any] = field(default_factory=dict)
    keep_every: int | str = 1

    @property
    def spec(self) -> ncakern.RolloutSpec:
        return ncakern.RolloutSpec(**self.options)

    @property
    def id(self) -> str:
        kernel = self.kernel or (3,) * len(self.size)
        parts = [f"B{self.batch}", "S" + "x".join(map(str, self.size)), f"C{self.channels}", f"h{self.hidden}"]
        parts += [f"F{self.num_filters}", "k" + "x".join(map(str, kernel)), f"n{self.steps}"]
        parts += [str(self.dtype).removeprefix("torch.")] * (self.dtype != torch.float32)
        parts += [str(v) if isinstance(v, str) else f"{k}{v}" for k, v in self.options.items()]
        parts += ["modulation"] * self.has_modulation + ["perceive_from"] * self.has_perceive_from
        parts += ["out_bias"] * self.has_out_bias
        parts += [f"keep{self.keep_every}"] * (self.keep_every != 1) + ["tile"] * ("origin" in self.call)
        return "-".join(parts)


def is_for_triton(case: Case) -> bool:
    """Whether the triton backend has all that the case asks for."""
    return not case.has_out_bias and case.spec.clamp is None and case.spec.activation in ("relu", "leaky_relu")


@dataclass(frozen=True)
class Inputs:
    """The tensors of a case, as leaves."""

    state: Tensor
    params: ncakern.RolloutParams
    perceive_from: Tensor | None
    modulation: tuple[Tensor, Tensor] | None

    def named(self) -> dict[str, Tensor]:
        tensors = {"state": self.state, **self.params._asdict(), "perceive_from": self.perceive_from}
        if self.modulation is not None:
            tensors |= {"scale": self.modulation[0], "shift": self.modulation[1]}
        return {name: tensor for name, tensor in tensors.items() if tensor is not None}

    def to(self, state_dtype: torch.dtype, dtype: torch.dtype, device: str | None = None) -> Inputs:
        """Fresh leaves of the same values in other dtypes, and on another device if one is given."""

        def leaf(tensor: Tensor | None, to: torch.dtype) -> Tensor | None:
            return None if tensor is None else tensor.detach().to(device, to, copy=True).requires_grad_()

        return Inputs(
            leaf(self.state, state_dtype),
            ncakern.RolloutParams(*[leaf(p, dtype) for p in self.params]),
            leaf(self.perceive_from, state_dtype),
            None if self.modulation is None else tuple(leaf(m, dtype) for m in self.modulation),
        )


def make_inputs(case: Case, *, seed: int = 0) -> Inputs:
    """Random tensors of a size that keeps a rollout tame: weights shrink with their fan-in."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        # Drawn in float32, so that each dtype under test rounds the same numbers.
        return (torch.randn(shape, generator=generator) * scale).requires_grad_()

    kernel = case.kernel or (3,) * len(case.size)
    channels, hidden, features = case.channels, case.hidden, (1 + case.num_filters) * case.channels
    is_dense = case.spec.perception == "dense"
    filter_shape = (channels, channels) if is_dense else (channels,)
    fan_in = torch.Size(kernel).numel() * (channels if is_dense else 1)
    state = draw(case.batch, *case.size, channels)
    has_norm = case.spec.norm != "none"
    params = ncakern.RolloutParams(
        perceive_weight=draw(case.num_filters, *filter_shape, *kernel, scale=fan_in**-0.5),
        perceive_bias=draw(case.num_filters, channels, scale=0.3),
        hidden_weight=draw(hidden, features, scale=features**-0.5),
        hidden_bias=draw(hidden, scale=0.3),
        out_weight=draw(channels, hidden, scale=0.5 * hidden**-0.5),
        norm_weight=draw(hidden) if has_norm else None,
        norm_bias=draw(hidden, scale=0.3) if has_norm else None,
    )
    perceive_from = draw(*state.shape) if case.has_perceive_from else None
    modulation = (draw(case.batch, hidden), draw(case.batch, hidden, scale=0.3)) if case.has_modulation else None
    if case.has_out_bias:
        params = params._replace(out_bias=draw(channels, scale=0.3))
    return Inputs(state, params, perceive_from, modulation)


def run_case(case: Case, inputs: Inputs, *, backend: str, seed: int = 7, **overrides: Any) -> Tensor:
    """The rollout of a case on given tensors."""
    arguments = {"seed": seed, "keep_every": case.keep_every, "backend": backend, **case.call, **overrides}
    return ncakern.nca_rollout(
        inputs.state,
        inputs.params,
        case.spec,
        case.steps,
        perceive_from=inputs.perceive_from,
        modulation=inputs.modulation,
        **arguments,
    )


def run_with_gradients(case: Case, inputs: Inputs, *, backend: str) -> dict[str, Tensor]:
    """The result under the name "out", and the gradient of a fixed random projection of it for each tensor."""
    out = run_case(case, inputs, backend=backend)
    generator = torch.Generator().manual_seed(99)
    d_out = torch.randn(out.shape, generator=generator).to(out)
    named = inputs.named()
    gradients = torch.autograd.grad(out, list(named.values()), d_out, allow_unused=True)
    zeros_for_unused = [torch.zeros_like(t) if g is None else g for t, g in zip(named.values(), gradients, strict=True)]
    return {"out": out, **dict(zip((f"d_{name}" for name in named), zeros_for_unused, strict=True))}


def available_backends() -> list[str]:
    """The backends that can run on this machine, with the reference last."""
    return [name for name, reason in ncakern.backends().items() if reason is None]
