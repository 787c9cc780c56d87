"""The ways into the engine. Each takes a random call, and says "refused" or "agrees"; anything else is a finding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from fuzz.calls import NUMBERS, OPTIONS, PARAMS, TENSORS, Call, draw_call, hostile_number, spoil, spoil_tensor
from helpers import assert_matches

import ncakern
from ncakern import RolloutParams, RolloutSpec, arrays, ops
from ncakern._kernel import call_options
from ncakern.functional import step_gradients

# What a message may name: the arguments of all ways in.
NAMES = (*TENSORS, *OPTIONS, *NUMBERS, "threads", "out", "d_out", "kept", "stats", "params", "spec", "modulation")
NAMES += (
    "backend",
    "batch",
    "channels",
    "filters",
    "hidden",
    "size",
    "kernel",
    "storage",
    "isa",
    "inner",
    "shape",
    "step",
)
NAMES += ("num_filters", "kernel_size", "ndim", "fire_threshold", "use_amx")
REFUSALS = (TypeError, ValueError, RuntimeError, KeyError)
# What torch answers when it is to make a tensor of an odd array; our code has not been called then.
FOREIGN = (TypeError, ValueError, MemoryError)
# Values are of order one. Among thousands of small cases plain PyTorch is right by luck in some: so much is rounding.
ROUNDING = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


class Finding(Exception):
    """The engine did what it must not."""


def attempt(call: Callable[[], Any]) -> Any:
    """The result, or None if the call was refused in the proper way."""
    try:
        return call()
    except MemoryError:
        return None
    except REFUSALS as error:
        text = str(error)
        if "allocate" not in text and not any(name in text for name in NAMES):
            raise Finding(f"message names no argument: {type(error).__name__}: {text[:300]}") from error
        return None


# ---- what is right -------------------------------------------------------------------------------------------------


def reference(
    call: Call, dtype: torch.dtype, d_out: np.ndarray | None, state_dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """The reference's result on the values of a call, and with d_out the gradients of its arrays."""

    def leaf(name: str, value: Any) -> torch.Tensor | None:
        if value is None:
            return None
        to = dtype if name in ("state", "perceive_from") or dtype == torch.float64 else torch.float32
        values = torch.from_numpy(np.array(value, np.float32))
        if name in ("state", "perceive_from"):
            values = values.to(state_dtype)
        return values.to(to).requires_grad_(d_out is not None)

    leaves = {name: leaf(name, value) for name, value in call.arrays.items()}
    numbers = {name: value for name, value in call.numbers.items() if name != "keep_every"}
    scale, shift = leaves["scale"], leaves["shift"]
    out = ncakern.nca_rollout_reference(
        leaves["state"],
        RolloutParams(**{name: leaves[name] for name in PARAMS}),
        RolloutSpec(**call.options),
        perceive_from=leaves["perceive_from"],
        modulation=None if scale is None and shift is None else (scale, shift),
        **numbers,
    )
    if d_out is None:
        return {"out": out}
    present = {name: t for name, t in leaves.items() if t is not None}
    found = torch.autograd.grad(out, list(present.values()), torch.from_numpy(d_out).to(out), allow_unused=True)
    zeros = [torch.zeros_like(t) if g is None else g for t, g in zip(present.values(), found, strict=True)]
    return {"out": out, **dict(zip([f"d_{name}" for name in present], zeros, strict=True))}


def compare(found: dict[str, Any], call: Call, d_out: np.ndarray | None, dtype: torch.dtype = torch.float32) -> str:
    """Every tensor found against float64, or where something is not finite, in what is."""
    try:
        plain = reference(call, dtype, d_out, dtype)
    except (TypeError, ValueError, RuntimeError) as error:
        raise Finding(f"accepted what the reference refuses: {error}") from error
    exact = reference(call, torch.float64, d_out, dtype)
    for name, value in found.items():
        actual = torch.as_tensor(value)
        if actual.shape != plain[name].shape:
            raise Finding(f"{name} has shape {tuple(actual.shape)}, expected {tuple(plain[name].shape)}")
        is_finite = plain[name].isfinite()
        try:
            if is_finite.all():
                if not (actual.numel() and (actual.double() - exact[name]).abs().max() <= ROUNDING[dtype]):
                    assert_matches(actual, plain[name], exact[name], name=name)
            elif name == "out" and not torch.equal(actual.isfinite(), is_finite):
                raise Finding(f"{name}: not finite elsewhere than in the reference")
        except AssertionError as error:
            raise Finding(str(error)) from error
    return "agrees"


# ---- ways in -------------------------------------------------------------------------------------------------------


def run_arrays(rng: np.random.Generator, call: Call) -> str:
    """`ncakern.arrays.nca_rollout`."""
    state = call.arrays["state"]
    outs = (None, None, None, state, np.empty((2, 3, 3, 2), np.float64), np.empty((1, 1, 1, 1), np.float32), 3)
    out = outs[rng.integers(len(outs))]
    if isinstance(state, np.ndarray) and rng.random() < 0.1:
        out = np.frombuffer(bytes(state.nbytes % 10**6), np.float32)
    threads = hostile_number(rng) if rng.random() < 0.1 else int(rng.integers(1, 4))
    has_modulation = call.arrays["scale"] is not None or call.arrays["shift"] is not None
    before = np.array(out) if isinstance(out, np.ndarray) and not out.flags.writeable else None
    original = np.array(state) if isinstance(state, np.ndarray) and state.size < 10**6 else None

    def rollout() -> Any:
        params = arrays.ArrayParams(**{name: call.arrays[name] for name in PARAMS})
        numbers = {name: value for name, value in call.numbers.items() if name != "keep_every"}
        others = {"perceive_from": call.arrays["perceive_from"], "out": out, "threads": threads}
        return arrays.nca_rollout(state, params, RolloutSpec(**call.options), **numbers, **others)

    found = attempt(rollout)
    if before is not None and not np.array_equal(before, out):
        raise Finding("a read-only array has changed")
    if found is None:
        return "refused"
    call.arrays["state"] = original
    if has_modulation:
        call.arrays |= {"scale": None, "shift": None}
    return compare({"out": found}, call, None)


def run_tensors(rng: np.random.Generator, call: Call) -> str:
    """`ncakern.nca_rollout` with gradients, at times under vmap, or with tensors that only torch has."""
    dtype = [torch.float32, torch.float32, torch.bfloat16, torch.float16][rng.integers(4)]
    special = str(rng.choice([n for n, v in call.arrays.items() if isinstance(v, np.ndarray)] or ["state"]))
    is_special = rng.random() < 0.2
    is_mapped = rng.random() < 0.2 and call.arrays["perceive_from"] is None
    state = call.arrays["state"]
    draws = np.random.default_rng(int(rng.integers(2**31)))
    has_shape = isinstance(state, np.ndarray) and state.size < 10**6
    d_out = draws.standard_normal(state.shape).astype(np.float32) if has_shape else None
    used: dict[str, torch.Tensor] = {}

    def tensor(name: str) -> Any:
        value = call.arrays[name]
        if not isinstance(value, np.ndarray):
            return value
        values = torch.from_numpy(
            value if value.flags.writeable and not np.ma.isMaskedArray(value) else np.array(value)
        )
        if name in ("state", "perceive_from"):
            values = values.to(dtype)
        if is_special and name == special:
            return spoil_tensor(rng, values)
        if values.is_floating_point():
            used[name] = values.requires_grad_()
        return values

    def rollout() -> Any:
        given = {name: tensor(name) for name in TENSORS}
        modulation = None if given["scale"] is None and given["shift"] is None else (given["scale"], given["shift"])
        params, spec = RolloutParams(**{name: given[name] for name in PARAMS}), RolloutSpec(**call.options)
        settings = {"modulation": modulation, "perceive_from": given["perceive_from"], **call.numbers}
        if is_mapped and modulation is None and torch.is_tensor(given["state"]):
            mapped = torch.func.vmap(lambda s: ncakern.nca_rollout(s, params, spec, **settings))
            return mapped(given["state"][None])[0]
        return ncakern.nca_rollout(given["state"], params, spec, **settings)

    out = attempt(_converting(rollout))
    if out is None:
        return "refused"
    if is_special or out.is_meta:
        return "agrees" if out.shape == state.shape else "refused"
    used = {name: value for name, value in used.items() if call.arrays[name] is not None}
    found = attempt(
        lambda: torch.autograd.grad(out, list(used.values()), torch.from_numpy(d_out).to(out), allow_unused=True)
    )
    if found is None:
        raise Finding("a result without gradients")
    zeros = [torch.zeros_like(t) if g is None else g for t, g in zip(used.values(), found, strict=True)]
    return compare({"out": out.detach(), **{f"d_{n}": g for n, g in zip(used, zeros, strict=True)}}, call, d_out, dtype)


def _converting(call: Callable[[], Any]) -> Callable[[], Any]:
    """What torch refuses to take from numpy, or to map, is no concern of ours."""

    def run() -> Any:
        try:
            return call()
        except (TypeError, ValueError) as error:
            foreign = ("convert np.ndarray", "byte order", "negative strides", "can't convert", "vmap(", "in_dims")
            if any(text in str(error) for text in foreign):
                return None
            raise

    return run


def run_operators(rng: np.random.Generator, call: Call) -> str:
    """`torch.ops.ncakern.*`, both of them, with what was kept damaged at times."""
    given, is_plain = {}, True
    for name, value in call.arrays.items():
        given[name] = value
        if isinstance(value, np.ndarray):
            try:
                given[name] = torch.from_numpy(np.array(value))
            except FOREIGN:
                return "refused"
            if rng.random() < 0.03:
                given[name], is_plain = spoil_tensor(rng, given[name]), False
    seed = call.numbers["seed"]
    if isinstance(seed, int) and abs(seed) < 2**63 and rng.random() < 0.9:
        seed = torch.tensor(int(seed))
    backend = ["cpu"] * 8 + ["reference", "triton", "auto", "", 3]
    numbers = [call.numbers[name] for name in ops._CALL_NAMES]
    numbers = [list(value) if isinstance(value, tuple) else value for value in numbers]
    arguments = (
        *[given[name] for name in ops._TENSOR_NAMES],
        seed,
        *[call.options[name] for name in ops._SPEC_NAMES],
        *numbers,
        backend[rng.integers(len(backend))],
    )
    result = attempt(lambda: torch.ops.ncakern.nca_rollout(*arguments, bool(rng.random() < 0.7)))
    out, kept, stats = (torch.ones(2, 5, 5, 3), torch.ones(0), torch.ones(0)) if result is None else result
    draws = np.random.default_rng(int(rng.integers(2**31)))
    d_out = draws.standard_normal(tuple(out.shape)).astype(np.float32)
    saved = [torch.from_numpy(d_out).to(out), kept, stats]
    is_damaged = rng.random() < 0.3
    if is_damaged:
        damages = (
            lambda t: t[:0],
            lambda t: t[..., :-1],
            lambda t: t.double(),
            lambda t: t.float(),
            lambda t: t.to("meta"),
            lambda t: t.reshape(-1),
            lambda t: torch.cat([t, t]),
            lambda t: None,
        )
        index = rng.integers(3)
        saved[index] = damages[rng.integers(len(damages))](saved[index])
    gradients = attempt(lambda: torch.ops.ncakern.nca_rollout_bwd(*saved, *arguments))
    if result is None or out.is_meta or not is_plain:
        return "refused"
    if gradients is None and not is_damaged:
        raise Finding("a result without gradients")
    # The dispatcher has made integers of whatever it takes for one.
    call.numbers = {n: tuple(map(int, v)) if np.ndim(v) else int(v) for n, v in call.numbers.items()}
    call.numbers["seed"], call.options["frozen_channels"] = int(seed), int(call.options["frozen_channels"])
    call.options = {n: v.decode() if isinstance(v, bytes) else v for n, v in call.options.items()}
    call.options["fire_rate"] = float(call.options["fire_rate"])
    found = {"out": out}
    if gradients is not None and not gradients[0].is_meta:
        named = zip(ops._TENSOR_NAMES, gradients, strict=True)
        found |= {f"d_{name}": g for name, g in named if given[name] is not None}
    return compare(found, call, d_out)


def run_extension(rng: np.random.Generator, call: Call) -> str:
    """`ncakern._cpu.fwd` and `bwd`: the arrays and options of a valid call, spoiled afterwards."""
    from ncakern import _cpu

    if call.numbers["steps"] == 0 or not isinstance(call.arrays["state"], np.ndarray):
        return "refused"
    # Past the Python side, so both are valid here, and hostile below.
    spec = RolloutSpec(**call.options)
    shape, weight, hidden = (np.shape(call.arrays[n]) for n in ("state", "perceive_weight", "hidden_bias"))
    numbers = {**call.numbers, "first_step": call.numbers["first_step"] % 2**32}
    numbers["first_sample"] %= 2**32
    options = call_options(
        shape, weight, hidden[0], spec=spec, storage="float32", threads=int(rng.integers(1, 4)), **numbers
    )
    is_backward = rng.random() < 0.5
    given = {name: value for name, value in call.arrays.items() if value is not None}
    steps, keep_every = numbers["steps"], numbers["keep_every"]
    num_kept = -(-steps // keep_every) - 1
    width = weight[0] * shape[-1] + shape[-1]
    groups = {"none": 0, "batch": 1, "instance": shape[0]}[spec.norm]
    if num_kept:
        given["kept"] = np.zeros((num_kept, *shape), np.float32)
    if groups:
        given["stats"] = np.zeros((steps, groups, width + width**2))
    forward = {**given, "out": np.empty(shape, np.float32)}
    arrays_given = forward
    if is_backward:
        _cpu.fwd(forward, options)
        draws = np.random.default_rng(int(rng.integers(2**31)))
        d_out = draws.standard_normal(shape).astype(np.float32)
        written = {f"d_{name}": np.empty_like(value) for name, value in call.arrays.items() if value is not None}
        arrays_given = {**given, "d_out": d_out, **written}
    is_spoiled = _spoil_dicts(rng, arrays_given, options)
    run = _cpu.bwd if is_backward else _cpu.fwd
    if attempt(lambda: (run(arrays_given, options), True)) is None:
        return "refused"
    if is_spoiled:
        return "refused"  # another valid call: it did not crash, and its figures are nobody's
    if is_backward:
        return compare({name: arrays_given[name] for name in written}, call, d_out)
    return compare({"out": forward["out"]}, call, None)


def _spoil_dicts(rng: np.random.Generator, given: dict[str, Any], options: dict[str, Any]) -> bool:
    from fuzz.calls import hostile_array

    num_changes = int(rng.integers(0, 3))
    for _ in range(num_changes):
        if rng.random() < 0.5:
            name = str(rng.choice(list(given)))
            if rng.random() < 0.2:
                del given[name]
            elif given[name].dtype == np.float32:
                given[name] = hostile_array(rng, given[name])
            else:
                given[name] = given[name][:-1]
            continue
        name = str(rng.choice(list(options)))
        value = hostile_number(rng)
        if isinstance(options[name], list):
            value = [hostile_number(rng) if rng.random() < 0.4 else old for old in options[name]]
        # A deliberate length of days is no finding.
        if name != "steps" or not isinstance(value, int) or not 1000 < value < 2**31:
            options[name] = value
    return num_changes > 0


def run_others(rng: np.random.Generator, call: Call) -> str:
    """The other public functions: they answer or refuse, and what they answer has the right shape."""
    number = lambda: hostile_number(rng) if rng.random() < 0.3 else int(rng.integers(1, 6))  # noqa: E731
    which = rng.integers(5)
    if which == 0:
        shape = tuple(number() for _ in range(rng.integers(2, 6)))
        shape = tuple(min(n, 50) if isinstance(n, int) else n for n in shape)
        rate = call.options["fire_rate"]
        found = attempt(
            lambda: ncakern.fire_mask(shape, seed=number(), step=number(), fire_rate=rate, first_sample=number())
        )
        if found is not None and tuple(found.shape) != tuple(int(n) for n in shape):
            raise Finding(f"fire_mask of shape {tuple(found.shape)} for {shape}")
        return "refused" if found is None else "agrees"
    if which == 1:
        small = [min(n, 8) if isinstance(n, int) else n for n in (number(), number(), number(), number())]
        nca = attempt(lambda: ncakern.NCA(*small[:3], num_filters=small[3], **call.options))
        return "refused" if nca is None else "agrees"
    params = [call.arrays[name] for name in arrays.ArrayParams._fields]
    if which == 2:
        inner = [slice(0, number()) for _ in range(rng.integers(1, 4))] if rng.random() < 0.5 else None
        found = attempt(
            lambda: arrays.perception_moments(
                call.arrays["state"],
                arrays.ArrayParams(*params),
                RolloutSpec(**call.options),
                inner=inner,
                threads=number(),
            )
        )
        return "refused" if found is None else "agrees"
    try:
        state, *tensors = [
            torch.from_numpy(np.array(v)) if isinstance(v, np.ndarray) else v for v in (call.arrays["state"], *params)
        ]
        seen = call.arrays["perceive_from"]
        seen = torch.from_numpy(np.array(seen)) if isinstance(seen, np.ndarray) else seen
    except FOREIGN:
        return "refused"
    given = RolloutParams(*tensors)
    if which == 3:
        found = attempt(lambda: ncakern.explain(state, given, RolloutSpec(**call.options), call.numbers["steps"]))
        return "refused" if found is None else "agrees"
    seed = call.numbers["seed"]
    d_out = torch.ones_like(state) if torch.is_tensor(state) and rng.random() < 0.8 else torch.ones(1)
    spec = attempt(lambda: RolloutSpec(**call.options))
    if spec is None:
        return "refused"
    found = attempt(lambda: step_gradients(d_out, state, given, spec, perceive_from=seen, seed=seed))
    return "refused" if found is None else "agrees"


TARGETS: Sequence[Callable[[np.random.Generator, Call], str]] = (
    run_arrays,
    run_tensors,
    run_operators,
    run_extension,
    run_others,
)


def run_input(index: int) -> tuple[str, str]:
    """Input number ``index``: the way in, and "refused" or "agrees".

    Raises:
        Finding: the engine accepted what it must refuse, gave a wrong result, or a message without a name.
    """
    rng = np.random.default_rng([16, index])
    target = TARGETS[index % len(TARGETS)]
    call = draw_call(rng)
    if target is not run_extension:
        try:
            call = spoil(rng, call, int(rng.choice([0, 0, 1, 1, 2])))
        except MemoryError:
            return target.__name__.removeprefix("run_"), "refused"
    return target.__name__.removeprefix("run_"), target(rng, call)
