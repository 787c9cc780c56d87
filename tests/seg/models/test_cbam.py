"""CBAM against PyTorch's layers, and the rollout through it: gradients, memory, fire bits."""

import doctest

import pytest
import torch
from torch import nn

from ncakern import NCA, nca_rollout
from ncaseg.models.medsegdiffnca import cbam
from ncaseg.models.medsegdiffnca.attended_rollout import attended_rollout
from ncaseg.models.medsegdiffnca.cbam import CBAM, attend, compute_gates
from ncaseg.models.medsegdiffnca.cbam_backward import attend_backward


def by_layers(state, module):
    """The same attention from PyTorch's own layers, channels first."""
    x = state.movedim(-1, 1)
    ndim = x.ndim - 2
    pool_max = (nn.AdaptiveMaxPool2d if ndim == 2 else nn.AdaptiveMaxPool3d)(1)
    pool_mean = (nn.AdaptiveAvgPool2d if ndim == 2 else nn.AdaptiveAvgPool3d)(1)
    p = module.params
    first, second = nn.Linear(*reversed(p.squeeze_weight.shape)), nn.Linear(*reversed(p.expand_weight.shape))
    conv = (nn.Conv2d if ndim == 2 else nn.Conv3d)(2, 1, 7, padding=3, bias=False)
    with torch.no_grad():
        for layer, weight, bias in ((first, *p[:2]), (second, *p[2:4])):
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
        conv.weight.copy_(p.spatial_weight)
    gates = sum(second(torch.relu(first(pool(x).flatten(1)))) for pool in (pool_max, pool_mean))
    y = x * torch.sigmoid(gates).reshape(*x.shape[:2], *[1] * ndim)
    maps = torch.cat([y.max(1, keepdim=True).values, y.mean(1, keepdim=True)], 1)
    return (y * torch.sigmoid(conv(maps))).movedim(1, -1)


@pytest.mark.parametrize("size", [(9, 7), (5, 3, 4)])
def test_attention_is_that_of_the_layers(size):
    module = CBAM(len(size), 32)
    state = torch.randn(3, *size, 32)
    torch.testing.assert_close(module(state), by_layers(state, module))


@pytest.mark.parametrize("size", [(9, 7), (8, 6), (5, 3, 4)])
def test_closed_gradient_is_that_of_plain_autograd_also_where_maxima_tie(size):
    module = CBAM(len(size), 24, 4).double()
    state = torch.randint(-2, 3, (3, *size, 24)).double().requires_grad_()  # most maxima are shared
    state.data[0, 0] = 0
    d_out = torch.randn_like(state)
    expected = torch.autograd.grad(attend(state, module.params), [state, *module.params], d_out)
    assert all(gradient.any() for gradient in expected)
    with torch.no_grad():
        gates = compute_gates(state, module.params, out=torch.empty_like(state))
        d_state, d_params = attend_backward(d_out, state, module.params, gates, torch.empty_like(state))
    for found, known in zip([d_state, *d_params], expected, strict=True):
        torch.testing.assert_close(found, known, rtol=1e-10, atol=1e-12)


def test_a_buffer_changes_no_bit():
    module, state = CBAM(2, 24), torch.randn(2, 9, 8, 24)
    with_graph = module(state.clone().requires_grad_())
    with torch.no_grad():
        assert torch.equal(attend(state, module.params, out=torch.empty_like(state)), with_graph)


def test_parameter_count():
    assert sum(p.numel() for p in CBAM(2, 64).parameters()) == 678
    assert doctest.testmod(cbam).failed == 0


def make(channels=16, hidden=24, ndim=2, dtype=torch.float32):
    nca = NCA(ndim, channels, hidden, perception="dense", num_filters=2).to(dtype)
    nn.init.normal_(nca.out_weight, std=0.1)
    return nca, CBAM(ndim, channels).to(dtype)


def plain(state, nca, module, steps, *, seed, first_step=0, first_sample=0, residual=True):
    for i in range(steps):
        seen = module(state) + state if residual else module(state)
        stream = {"seed": seed, "first_step": first_step + i, "first_sample": first_sample}
        state = nca_rollout(state, nca.params, nca.spec, 1, perceive_from=seen, **stream)
    return state


def gradients(out, state, *modules):
    names = [name for module in modules for name, _ in module.named_parameters()]
    tensors = [p for module in modules for p in module.parameters()]
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    return dict(zip(["state", *names], torch.autograd.grad((out * weight).sum(), [state, *tensors]), strict=True))


@pytest.mark.parametrize(("keep_every", "residual"), [(1, True), (3, True), (3, False)])
@pytest.mark.parametrize(
    ("dtype", "size"), [(torch.float64, (6, 5)), (torch.float32, (9, 7)), (torch.float32, (4, 3, 5))]
)
def test_gradients_are_those_of_plain_autograd(dtype, size, keep_every, residual):
    nca, module = make(ndim=len(size), dtype=dtype)
    state = torch.randn(2, *size, 16, dtype=dtype, requires_grad=True)
    key = {"seed": 5, "first_step": 7, "first_sample": 3, "residual": residual}
    ours = attended_rollout(state, nca, module, 5, keep_every=keep_every, **key)
    theirs = plain(state, nca, module, 5, **key)
    assert torch.equal(ours, theirs)
    expected = gradients(theirs, state, nca, module)
    tolerance = {"rtol": 1e-10, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-4}
    for name, found in gradients(ours, state, nca, module).items():
        scale = expected[name].abs().max()
        assert scale > 0, name
        torch.testing.assert_close(
            found / scale, expected[name] / scale, **tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_gradients_by_finite_differences():
    nca, module = make(channels=4, hidden=3, dtype=torch.float64)
    state = torch.randn(1, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: attended_rollout(s, nca, module, 3, seed=1), state)


def test_the_gradient_that_a_caller_hands_in_keeps_its_bits():
    nca, module = make(dtype=torch.float64)
    state = torch.randn(1, 6, 5, 16, dtype=torch.float64, requires_grad=True)
    d_out = torch.randn_like(state)
    before = d_out.clone()
    attended_rollout(state, nca, module, 3, seed=0).backward(d_out)
    assert torch.equal(d_out, before)


def test_only_states_are_kept():
    nca, module = make()
    state = torch.zeros(2, 33, 20, 16).normal_().requires_grad_()
    kept = {}

    def note(tensor):
        kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    steps, cells = 6, 2 * 33 * 20
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        out = attended_rollout(state, nca, module, steps, seed=0)
    parameters = sum(p.numel() * 4 for p in [*nca.parameters(), *module.parameters()])
    assert 0 < sum(kept.values()) - parameters <= 1.2 * 4 * 16 * steps * cells
    kept.clear()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        plain(state, nca, module, steps, seed=0)
    assert sum(kept.values()) > 3 * 4 * 16 * steps * cells  # the measure sees what plain autograd keeps
    out.sum().backward()


def test_attention_feeds_perception_only():
    nca, module = make()
    state = torch.randn(1, 8, 8, 16)
    idle = NCA(2, 16, 24, perception="dense", num_filters=2)  # an untrained step adds nothing
    assert torch.equal(attended_rollout(state, idle, module, 3, seed=0), state)
    with_residual = attended_rollout(state, nca, module, 3, seed=0)
    without = attended_rollout(state, nca, module, 3, seed=0, residual=False)
    assert not torch.equal(with_residual, without)
    assert torch.equal(without, plain(state, nca, module, 3, seed=0, residual=False))


def test_a_sample_is_the_same_alone_and_in_a_batch():
    nca, module = make(channels=32)
    state = torch.randn(5, 33, 21, 32)
    with torch.no_grad():
        together = attended_rollout(state, nca, module, 4, seed=0, first_sample=2)
        for i in range(5):
            alone = attended_rollout(state[i : i + 1], nca, module, 4, seed=0, first_sample=2 + i)
            assert torch.equal(alone, together[i : i + 1])


def test_no_gradient_and_no_step():
    nca, module = make()
    state = torch.randn(1, 5, 5, 16)
    nothing = attended_rollout(state, nca, module, 0, seed=0)
    assert torch.equal(nothing, state) and nothing is not state
    module.requires_grad_(False)
    attended_rollout(state, nca, module, 2, seed=0).sum().backward()
    assert nca.out_weight.grad is not None and all(p.grad is None for p in module.parameters())
