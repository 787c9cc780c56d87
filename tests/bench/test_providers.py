"""What is timed computes the same thing: every provider against the definition, all cells firing."""

import functools
import importlib.util
from dataclasses import replace

import pytest
import torch
from helpers import assert_matches

import ncakern
from benchmarks.harness.cases import load_cases
from benchmarks.harness.measure import MODES, make_call, saved_bytes, time_interleaved
from benchmarks.rollout.providers import PROVIDERS, Eager, make, make_nca

CASES = load_cases()
DENSE_CASES = [name for name, case in CASES.items() if PROVIDERS["kernel-bf16"].suits(case)]
BF16_ROUNDOFF = 2.0**-8  # the most that rounding to 8 significant bits changes a number by, relative to it


def small(name):
    """The case with 7 to 9 cells per axis, all of which fire in every step."""
    case = CASES[name]
    return replace(case, size=(9, 8, 7)[: len(case.size)], fire_rate=1.0, steps=2)


def gradients(module, state):
    leaf = state.clone().requires_grad_()
    out = module(leaf)
    out.square().sum().backward()
    return out.detach(), leaf.grad


def reference(nca, case):
    """The definition as a function of the state."""
    return lambda leaf: ncakern.nca_rollout_reference(leaf, nca.params, nca.spec, case.steps, seed=0)


def of_reference(case, state):
    """The definition's result, its gradient of the state, and those of the parameters by name; in the state's dtype."""
    nca = make_nca(case).to(state.dtype)
    out, d_state = gradients(reference(nca, case), state)
    return out, d_state, {key: parameter.grad for key, parameter in nca.named_parameters()}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("provider", ["eager", "plain", "kernel"])
def test_provider_matches_reference(name, provider):
    case = small(name)
    state = PROVIDERS[provider].state(case)
    exact, plain = of_reference(case, state.double()), of_reference(case, state)
    for what, *found in zip(("out", "d_state"), gradients(make(provider, case), state), plain, exact, strict=False):
        assert_matches(*found, name=what)


@pytest.mark.skipif(importlib.util.find_spec("cax") is None, reason="CAX is not installed")
@pytest.mark.parametrize("name", DENSE_CASES)
def test_cax_is_the_same_function_of_the_same_weights(name):
    case = small(name)
    nca, cax, state = make_nca(case).double(), make("cax", case), PROVIDERS["cax"].state(case)
    expected, d_expected = gradients(reference(nca, case), state.double())
    out, d_state = gradients(cax, state)
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(d_state.double(), d_expected, rtol=1e-4, atol=1e-4)
    d_hidden, d_filters = nca.hidden_weight.grad, nca.perceive_weight.grad.flatten(0, 1).movedim((1, 0), (-2, -1))
    found = {tuple(value.shape): value for value in cax.parameter_gradients()}
    for wanted in (d_hidden.t()[None, None], d_filters):
        atol = 1e-5 * wanted.abs().max().item()
        torch.testing.assert_close(found[tuple(wanted.shape)].double(), wanted, rtol=1e-4, atol=atol)


@pytest.mark.skipif(importlib.util.find_spec("cax") is None, reason="CAX is not installed")
def test_cax_updates_the_firing_share_of_the_cells_by_the_whole_change():
    case = replace(small("D"), size=(64, 64), steps=1)
    state = PROVIDERS["cax"].state(case)
    whole = make("cax", case)(state) - state
    half = make("cax", replace(case, fire_rate=0.5))(state) - state
    fires = half.abs().amax(-1) > 0
    assert 0.4 < fires.float().mean() < 0.6
    torch.testing.assert_close(half[fires], whole[fires], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_plain_is_the_same_function_of_the_parameters(name):
    """In float64, where the order of sums shows in the last digits only: the filters' biases cancel under a norm."""
    case = small(name)
    module, state = make("plain", case).double(), PROVIDERS["plain"].state(case).double()
    gradients(module, state)
    expected = of_reference(case, state)[2]
    largest = max(gradient.abs().max().item() for gradient in expected.values())
    for key, parameter in module.nca.named_parameters():
        if key == "hidden_bias" and case.norm != "none":
            assert parameter.grad is None  # it cancels
            continue
        torch.testing.assert_close(parameter.grad, expected[key], rtol=1e-10, atol=1e-13 * largest)


def test_plain_is_the_same_in_blocks_and_with_gradients():
    case = replace(small("A"), size=(24, 24, 24))  # more than one block of cells
    plain, state = make("plain", case), PROVIDERS["plain"].state(case)
    with torch.no_grad():
        torch.testing.assert_close(plain(state), plain(state.requires_grad_()))


def test_plain_refuses_a_case_that_it_is_not_written_for():
    with pytest.raises(ValueError, match="case"):
        make("plain", replace(CASES["A"], norm="none"))


@pytest.mark.parametrize("name", DENSE_CASES)
@pytest.mark.parametrize(
    "build", [PROVIDERS["kernel-bf16"].build, lambda *a: Eager(*a).bfloat16()], ids=["kernel", "eager"]
)
def test_bf16_provider_is_near_the_reference(name, build):
    """Every step rounds the state once, and in what is added to it up to six factors: the weights and inputs of three
    layers. With the first in proportion to the state and the others to the largest change, likewise going back.
    """
    case = small(name)
    nca, state = make_nca(case).double(), PROVIDERS["kernel-bf16"].state(case)
    expected, d_expected = gradients(reference(nca, case), state.double())
    out, d_state = gradients(build(make_nca(case), case), state)
    assert out.dtype == d_state.dtype == torch.bfloat16

    def bound(value, change):
        return case.steps * BF16_ROUNDOFF * (value.abs() + 6 * change.abs().max())

    error = bound(expected, expected - state.double())
    assert ((out.double() - expected).abs() <= error).all()
    # The gradient of the sum of squares is 2 out, and starts with twice its error.
    d_error = 2 * error + bound(d_expected, d_expected - 2 * expected)
    assert ((d_state.double() - d_expected).abs() <= d_error).all()


def test_saved_bytes_counts_each_storage_once_and_no_parameter():
    layer = torch.nn.Linear(8, 4)
    state = torch.rand(10, 8)
    assert saved_bytes(layer, state) == 4 * 10 * 8
    assert saved_bytes(torch.nn.Sequential(layer, torch.nn.Sigmoid()), state) == 4 * 10 * (8 + 4)


def test_kernel_saves_states_only():
    case = CASES["A-hippocampus"]
    state = torch.rand(1, *case.size, case.channels)
    assert saved_bytes(make("kernel", case), state) <= 1.1 * 4 * case.channels * case.cell_steps


def test_time_interleaved_counts_rounds():
    calls = []
    work = {name: functools.partial(calls.append, name) for name in "ab"}
    timings = time_interleaved(work, seconds=0, min_rounds=5)
    assert calls == ["a", "b", *"ab" * 5]
    assert timings["a"].num_rounds == 5
    assert timings["a"].p20_ms <= timings["a"].p50_ms <= timings["a"].p80_ms


def test_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="mode"):
        make_call(torch.nn.Identity(), torch.rand(1), "backward")
    assert MODES == ("forward", "training")
