"""The module: its parameters, their start, and that it is one functional call."""

import copy
import math
from dataclasses import replace

import pytest
import torch

import ncakern
from ncakern import NCA


@pytest.mark.parametrize("norm", ["none", "batch", "instance"])
def test_untrained_module_returns_its_input(norm: str) -> None:
    nca = NCA(3, 4, 6, norm=norm)
    state = torch.randn(2, 3, 4, 5, 4)
    assert torch.equal(nca(state, 5), state)


def test_only_the_last_layer_learns_at_first() -> None:
    nca = NCA(2, 4, 6)
    nca(torch.randn(1, 5, 5, 4), 3, seed=0).square().sum().backward()
    assert {name for name, p in nca.named_parameters() if p.grad.abs().sum() > 0} == {"out_weight"}


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        # M3D-NCA: 16 channels, hidden 64, depthwise, batch norm; levels with k = 7 and k = 3, 12,480 together.
        ({"ndim": 3, "channels": 16, "hidden": 64, "kernel_size": 7, "norm": "batch"}, 8768),
        ({"ndim": 3, "channels": 16, "hidden": 64, "kernel_size": 3, "norm": "batch"}, 3712),
        # Med-NCA: 35,008 per level.
        ({"ndim": 2, "channels": 32, "hidden": 128, "num_filters": 2, "perception": "dense"}, 35008),
    ],
    ids=["m3d-k7", "m3d-k3", "med"],
)
def test_parameter_counts_are_the_published_ones(arguments: dict, count: int) -> None:
    assert sum(p.numel() for p in NCA(**arguments).parameters()) == count


@pytest.mark.parametrize("perception", ["depthwise", "dense"])
def test_start_is_that_of_pytorch_layers(perception: str) -> None:
    nca = NCA(2, 32, 64, perception=perception, num_filters=2)
    conv = torch.nn.Conv2d(32, 32, 3, groups=32 if perception == "depthwise" else 1)
    linear = torch.nn.Linear(96, 64)
    for ours, theirs in (
        (nca.perceive_weight, conv.weight),
        (nca.perceive_bias, conv.bias),
        (nca.hidden_weight, linear.weight),
        (nca.hidden_bias, linear.bias),
    ):
        # Both are uniform; the standard deviation of n draws is known to about 1 / sqrt(2 n).
        tolerance = 4 / math.sqrt(2 * min(ours.numel(), theirs.numel()))
        assert ours.std().item() == pytest.approx(theirs.std().item(), rel=tolerance)
    fan_in = 9 if perception == "depthwise" else 9 * 32
    assert nca.perceive_weight.abs().max() <= fan_in**-0.5
    assert not nca.out_weight.any()


def test_a_bias_of_the_update_starts_at_zero_and_is_trained() -> None:
    nca = NCA(2, 5, 7, out_bias=True)
    assert nca.out_bias is not None and nca.out_bias.shape == (5,) and not nca.out_bias.any()
    nca(torch.rand(1, 4, 4, 5), 2, seed=0).sum().backward()
    assert nca.out_bias.grad.abs().min() > 0
    assert "out_bias" in nca.state_dict() and "out_bias" not in NCA(2, 5, 7).state_dict()


def test_module_is_one_functional_call() -> None:
    nca = NCA(2, 5, 7, norm="batch", num_filters=2, kernel_size=(3, 5), frozen_channels=2)
    torch.nn.init.normal_(nca.out_weight)
    state, modulation = torch.randn(2, 6, 7, 5), (torch.randn(2, 7), torch.randn(2, 7))
    options = {"seed": 3, "first_step": 2, "first_sample": 1, "keep_every": 2, "modulation": modulation}
    expected = ncakern.nca_rollout(state, nca.params, nca.spec, 4, **options)
    assert torch.equal(nca(state, 4, **options), expected)
    perceive_from = torch.randn_like(state)
    options = {"seed": 3, "origin": (0, 0), "extent": (6, 7), "perceive_from": perceive_from, "backend": "reference"}
    expected = ncakern.nca_rollout(state, nca.params, nca.spec, 1, **options)
    assert torch.equal(nca(state, 1, **options), expected)


def test_spec_can_be_replaced() -> None:
    nca = NCA(2, 4, 6, norm="batch")
    torch.nn.init.normal_(nca.out_weight)
    state = torch.randn(2, 5, 5, 4)
    before = nca(state, 2, seed=0)
    nca.spec = replace(nca.spec, norm="instance")
    assert not torch.equal(nca(state, 2, seed=0), before)


def test_state_dict_and_deepcopy_carry_everything() -> None:
    nca = NCA(2, 4, 6, norm="batch")
    torch.nn.init.normal_(nca.out_weight)
    other = NCA(2, 4, 6, norm="batch")
    other.load_state_dict(nca.state_dict())
    state = torch.randn(1, 5, 5, 4)
    for twin in (other, copy.deepcopy(nca)):
        assert torch.equal(twin(state, 3, seed=1), nca(state, 3, seed=1))


def test_training_and_evaluation_are_the_same() -> None:
    nca = NCA(2, 4, 6, norm="batch")
    torch.nn.init.normal_(nca.out_weight)
    state = torch.randn(2, 5, 5, 4)
    assert torch.equal(nca.train()(state, 3, seed=1), nca.eval()(state, 3, seed=1))


def test_repr_names_the_sizes() -> None:
    text = repr(NCA(2, 4, 6, frozen_channels=1))
    assert "channels=4, hidden=6" in text and "frozen_channels=1" in text
