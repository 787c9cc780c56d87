"""The forward pass with bfloat16 products on AMX tiles, where this CPU has them: accurate, exact where it must be."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from helpers import Case, Inputs, assert_matches, make_inputs, run_case, run_with_gradients
from torch import Tensor

import ncakern
from ncakern.backends import cpu
from ncakern.reference import _per_sample, _perceive

DENSE = {"perception": "dense"}
CASES = [
    Case(size=(17, 13), channels=32, hidden=128, num_filters=2, options=DENSE),
    Case(size=(9, 5), channels=64, hidden=512, num_filters=2, steps=2, batch=1, options=DENSE),
    Case(size=(33, 47), channels=16, hidden=40, options=DENSE | {"frozen_channels": 3, "activation": "leaky_relu"}),
    Case(size=(3, 17), channels=5, hidden=7, options=DENSE | {"padding": "zeros"}),
    Case(size=(13, 9), channels=18, hidden=40, has_out_bias=True, options=DENSE | {"frozen_channels": 2}),
    Case(size=(1, 19), channels=17, hidden=33, num_filters=3, kernel=(1, 5), options=DENSE | {"fire_rate": 1.0}),
    Case(size=(3, 4, 5), channels=6, kernel=(3, 5, 1), options=DENSE | {"padding": "replicate"}),
    Case(size=(5, 6), channels=6, batch=3, has_modulation=True, options=DENSE | {"padding": "circular"}),
    Case(size=(5, 3), channels=9, has_perceive_from=True, has_modulation=True, steps=1, options=DENSE),
    Case(size=(21, 18), channels=20, hidden=50, steps=7, options=DENSE | {"fire_rate": 0.3}),
    Case(size=(1, 1), kernel=(1, 1), channels=1, hidden=1, options=DENSE | {"fire_rate": 0.0}),
]
BF16 = torch.bfloat16


@pytest.fixture(autouse=True)
def _needs_amx() -> None:
    if ncakern.backends()["cpu"] is not None:
        pytest.skip(ncakern.backends()["cpu"])
    reason = cpu.why_not_amx("bfloat16", ncakern.RolloutSpec(perception="dense"))
    if reason is not None:
        pytest.skip(f"AMX: {reason}")


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def _inputs(case: Case) -> Inputs:
    return make_inputs(case).to(BF16, torch.float32)


def _low(tensor: Tensor) -> Tensor:
    return tensor.to(BF16).double()


def _step_of_rounded_operands(case: Case, inputs: Inputs) -> Tensor:
    """One step in float64, but for what the tiles round to bfloat16: weights, perception and hidden values."""
    params, spec = inputs.params.to(torch.float64), case.spec
    state = inputs.state.double()
    seen = state if inputs.perceive_from is None else inputs.perceive_from.double()
    rounded = params._replace(perceive_weight=_low(inputs.params.perceive_weight))
    features = _low(_perceive(seen, rounded, spec))
    scale, shift = inputs.modulation or (torch.ones(case.batch, case.hidden), torch.zeros(case.batch, case.hidden))
    weight = _low(scale[:, :, None] * inputs.params.hidden_weight)
    bias = scale * inputs.params.hidden_bias + shift
    u = torch.einsum("bhv,b...v->b...h", weight, features) + _per_sample(bias.double(), state.dim())
    active = _low(torch.relu(u) if spec.activation == "relu" else torch.nn.functional.leaky_relu(u, 0.01))
    out_bias = 0.0 if params.out_bias is None else params.out_bias
    moved = (state + active @ _low(inputs.params.out_weight).T + out_bias).to(BF16)
    moved[..., : spec.frozen_channels] = inputs.state[..., : spec.frozen_channels]
    fires = ncakern.fire_mask(tuple(state.shape[:-1]), seed=7, step=0, fire_rate=spec.fire_rate)
    return torch.where(fires[..., None], moved, inputs.state)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_one_step_rounds_what_it_says_and_nothing_else(case: Case) -> None:
    inputs = _inputs(case)
    expected = _step_of_rounded_operands(case, inputs)
    actual = run_case(replace(case, steps=1), inputs, backend="cpu")
    # A float32 sum may round to the neighbour of what the float64 sum rounds to, and rarely does.
    torch.testing.assert_close(actual, expected, rtol=torch.finfo(BF16).eps, atol=1e-3)
    assert (actual == expected).double().mean() > 0.97


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_rollouts_keep_the_bound_of_every_backend(case: Case) -> None:
    inputs = _inputs(case)
    exact = run_case(case, inputs.to(torch.float64, torch.float64), backend="reference")
    plain = run_case(case, inputs, backend="reference")
    assert_matches(run_case(case, inputs, backend="cpu"), plain, exact, name="out")


@pytest.mark.parametrize("case", CASES[:3], ids=lambda case: case.id)
def test_the_change_of_a_small_state_is_accurate_to_bfloat16(case: Case) -> None:
    # The state is small beside its change, so that its own rounding to storage says little.
    case = replace(case, steps=1, options=case.options | {"fire_rate": 1.0, "frozen_channels": 0})
    inputs = make_inputs(case)
    inputs.state.mul_(1e-2)
    inputs = inputs.to(BF16, torch.float32)
    exact = run_case(case, inputs.to(torch.float64, torch.float64), backend="reference")
    change = exact - inputs.state.double()
    error = run_case(case, inputs, backend="cpu").double() - exact
    assert error.norm() <= torch.finfo(BF16).eps * change.norm()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_masks_and_frozen_channels_are_exact(case: Case) -> None:
    inputs = _inputs(case)
    out = run_case(replace(case, steps=1), inputs, backend="cpu")
    fires = ncakern.fire_mask(tuple(out.shape[:-1]), seed=7, step=0, fire_rate=case.spec.fire_rate)
    frozen = case.spec.frozen_channels
    assert torch.equal(out[~fires], inputs.state[~fires])
    assert torch.equal(out[..., :frozen], inputs.state[..., :frozen])
    moved = (out != inputs.state)[fires][:, frozen:]
    assert moved.numel() == 0 or moved.float().mean() > 0.5


@pytest.mark.parametrize("case", CASES[:5], ids=lambda case: case.id)
def test_threads_and_splits_change_no_bit(case: Case) -> None:
    case, inputs = replace(case, steps=4), _inputs(case)
    expected = run_case(case, inputs, backend="cpu")  # one thread
    for threads in (2, 3):
        torch.set_num_threads(threads)
        assert torch.equal(run_case(case, inputs, backend="cpu"), expected)
    half = replace(inputs, state=run_case(replace(case, steps=2), inputs, backend="cpu"))
    assert torch.equal(run_case(replace(case, steps=2), half, backend="cpu", first_step=2), expected)
    alone = replace(inputs, state=inputs.state[-1:])
    assert torch.equal(run_case(case, alone, backend="cpu", first_sample=case.batch - 1)[0], expected[-1])


def test_a_tile_with_a_halo_equals_the_whole() -> None:
    case = Case(size=(17, 30), channels=8, hidden=16, steps=2, options=DENSE)
    inputs = _inputs(case)
    whole = run_case(case, inputs, backend="cpu")
    part = replace(inputs, state=inputs.state[:, 3:13, 7:])
    out = run_case(case, part, backend="cpu", origin=(3, 7), extent=case.size)
    assert torch.equal(out[:, 2:-2, 2:], whole[:, 5:11, 9:])


@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
def test_nan_and_infinity_spread_but_not_into_frozen_channels(activation: str) -> None:
    options = DENSE | {"fire_rate": 1.0, "frozen_channels": 2, "activation": activation}
    case = Case(size=(9, 9), channels=5, steps=2, options=options)
    inputs = make_inputs(case)
    inputs.state[0, 4, 4, 3] = float("nan")
    inputs.state[1, 2, 2, 4] = float("-inf")
    inputs = inputs.to(BF16, torch.float32)
    expected, actual = (run_case(case, inputs, backend=backend) for backend in ("reference", "cpu"))
    assert torch.equal(actual.isfinite(), expected.isfinite()) and not actual.isfinite().all()
    assert torch.equal(actual.isnan(), expected.isnan())
    assert torch.equal(actual[..., :2], inputs.state[..., :2])


def test_padding_of_channels_and_units_makes_no_nan() -> None:
    # An infinite neighbour switches the only unit off: nothing but that neighbour is not finite.
    params = ncakern.RolloutParams(
        perceive_weight=torch.ones(1, 1, 1, 1, 3),
        perceive_bias=torch.zeros(1, 1),
        hidden_weight=-torch.ones(1, 2),
        hidden_bias=torch.zeros(1),
        out_weight=torch.ones(1, 1),
    )
    spec = ncakern.RolloutSpec(perception="dense", padding="zeros", fire_rate=1.0)
    state = torch.tensor([0, 0, float("inf"), 0, 0], dtype=BF16).reshape(1, 1, 5, 1)
    assert torch.equal(ncakern.nca_rollout(state, params, spec, 1, seed=0, backend="cpu"), state)


def test_the_switch_gives_float32_products(monkeypatch: pytest.MonkeyPatch) -> None:
    case = replace(CASES[0], steps=1)
    inputs = _inputs(case)
    on_tiles = run_case(case, inputs, backend="cpu")
    # One step from the same numbers in float32, rounded once: the bits of float32 products.
    expected = run_case(case, inputs.to(torch.float32, torch.float32), backend="cpu").to(BF16)
    monkeypatch.setenv("NCAKERN_CPU_PRECISION", "ieee")
    assert torch.equal(run_case(case, inputs, backend="cpu"), expected)
    assert not torch.equal(on_tiles, expected)


def test_calls_with_gradients_take_float32_products(monkeypatch: pytest.MonkeyPatch) -> None:
    case, inputs = CASES[0], _inputs(CASES[0])
    with torch.enable_grad():
        out = run_with_gradients(case, inputs, backend="cpu")["out"]
    monkeypatch.setenv("NCAKERN_CPU_PRECISION", "ieee")
    assert torch.equal(run_case(case, inputs, backend="cpu"), out)


@pytest.mark.parametrize(
    ("dtype", "options", "keep", "variable", "reason"),
    [
        ("float32", DENSE, False, "", "needs a state of dtype bfloat16; got float32"),
        ("bfloat16", {}, False, "", "needs dense perception and norm none; got depthwise and none"),
        ("bfloat16", DENSE | {"norm": "batch"}, False, "", "needs dense perception and norm none; got dense and batch"),
        ("bfloat16", DENSE, True, "", "gradients may be asked for"),
        ("bfloat16", DENSE, False, "NCAKERN_CPU_PRECISION=ieee", "NCAKERN_CPU_PRECISION is ieee"),
        ("bfloat16", DENSE, False, "NCAKERN_ISA=avx2", "needs the instruction set avx512; in use is avx2"),
    ],
)
def test_what_does_not_run_on_tiles_has_a_reason(
    dtype: str, options: dict[str, str], keep: bool, variable: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if variable:
        monkeypatch.setenv(*variable.split("="))
    answer = cpu.why_not_amx(dtype, ncakern.RolloutSpec(**options), keep=keep)
    assert answer is not None and answer.startswith(reason)
