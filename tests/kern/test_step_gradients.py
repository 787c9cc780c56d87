"""The gradients of one step from its inputs are those that autograd finds through the step."""

import pytest
import torch

import ncakern
from ncakern import ops
from ncakern.functional import step_gradients

STREAM = {"seed": 3, "first_step": 4, "first_sample": 5}


def make(norm="none", frozen=0, state_dtype=torch.float32, dtype=torch.float32):
    nca = ncakern.NCA(2, 5, 7, perception="dense", num_filters=2, norm=norm, frozen_channels=frozen).to(dtype)
    torch.nn.init.normal_(nca.out_weight, std=0.3)
    state, seen, d_out = (torch.randn(2, 6, 4, 5, dtype=state_dtype) for _ in range(3))
    return nca, state.requires_grad_(), seen.requires_grad_(), d_out


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"frozen": 2},
        {"norm": "batch"},
        {"norm": "instance"},
        {"state_dtype": torch.bfloat16},
        {"state_dtype": torch.bfloat16, "dtype": torch.bfloat16},
        {"state_dtype": torch.float64, "dtype": torch.float64},
    ],
    ids=str,
)
def test_they_are_those_of_autograd(options):
    nca, state, seen, d_out = make(**options)
    present = [tensor for tensor in nca.params if tensor is not None]
    out = ncakern.nca_rollout(state, nca.params, nca.spec, 1, perceive_from=seen, **STREAM)
    expected = torch.autograd.grad(out, [state, seen, *present], d_out)
    d_state, d_seen, d_params = step_gradients(d_out, state, nca.params, nca.spec, perceive_from=seen, **STREAM)
    assert [g is None for g in d_params] == [p is None for p in nca.params]
    found = [d_state, d_seen, *(g for g in d_params if g is not None)]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == theirs.dtype and not ours.requires_grad
        assert torch.equal(ours, theirs)
    assert d_seen.any() and d_params.out_weight.any()


@pytest.mark.skipif(ncakern.backends()["cpu"] is not None, reason=str(ncakern.backends()["cpu"]))
def test_the_step_itself_is_not_computed(monkeypatch):
    def refuse(*_):
        raise AssertionError("the forward operator was called")

    nca, state, seen, d_out = make()
    monkeypatch.setattr(ops, "nca_rollout", refuse)
    step_gradients(d_out, state, nca.params, nca.spec, perceive_from=seen, **STREAM)


def test_wrong_arguments_are_named():
    nca, state, seen, d_out = make()
    with pytest.raises(ValueError, match="perceive_from"):
        step_gradients(d_out, state, nca.params, nca.spec, perceive_from=seen[:1], **STREAM)
