"""What is timed computes the same thing: every provider against the definition, all cells firing."""

import functools
from dataclasses import replace

import pytest
import torch
from cases import load_cases
from measure import MODES, make_call, saved_bytes, time_interleaved
from providers import make, make_nca

import ncakern

CASES = load_cases()


def small(name):
    """The case with 7 to 9 cells per axis, all of which fire in every step."""
    case = CASES[name]
    return replace(case, size=(9, 8, 7)[: len(case.size)], fire_rate=1.0, steps=2)


def gradients(module, state):
    leaf = state.clone().requires_grad_()
    out = module(leaf)
    out.square().sum().backward()
    return out.detach(), leaf.grad


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("provider", ["eager", "plain", "kernel"])
def test_provider_matches_reference(name, provider):
    case = small(name)
    nca = make_nca(case).double()
    state = torch.rand(1, *case.size, case.channels, generator=torch.Generator().manual_seed(1))
    expected, d_expected = gradients(
        lambda leaf: ncakern.nca_rollout_reference(leaf, nca.params, nca.spec, case.steps, seed=0), state.double()
    )
    out, d_state = gradients(make(provider, case), state)
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(d_state.double(), d_expected, rtol=1e-4, atol=1e-4)


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
