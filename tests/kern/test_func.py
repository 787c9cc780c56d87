"""torch.func and export: vmap gives the bits of a loop, gradients work whatever was kept, forward mode is refused."""

from collections.abc import Callable

import pytest
import torch
from helpers import Case, make_inputs
from kern.standin import StandIn
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vmap

import ncakern
from ncakern import NCA, _dispatch, ops

OPTIONS = [{}, {"norm": "batch"}, {"norm": "instance", "frozen_channels": 1}, {"perception": "dense", "num_filters": 2}]
STEPS = 3


@pytest.fixture(params=["standin", "cpu"], autouse=True)
def _backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind the name "cpu" a stand-in of plain PyTorch or the real thing."""
    if request.param == "standin":
        monkeypatch.setitem(_dispatch.BACKENDS, "cpu", StandIn())
    elif ncakern.backends()["cpu"] is not None:
        pytest.skip(ncakern.backends()["cpu"])


def make_net(**options) -> NCA:
    torch.manual_seed(0)
    nca = NCA(2, 6, 9, **options)
    torch.nn.init.normal_(nca.out_weight, std=0.3)
    return nca


def run(nca: NCA, state: Tensor, seed: int | Tensor = 5) -> Tensor:
    return nca(state, STEPS, seed=seed, keep_every=2, backend="cpu")


def states(*shape: int) -> Tensor:
    return torch.rand(*shape, 4, 5, 6)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_vmap_over_states_is_a_loop(options: dict) -> None:
    nca, x = make_net(**options), states(3, 2)
    expected = torch.stack([run(nca, state) for state in x])
    assert torch.equal(vmap(lambda state: run(nca, state))(x), expected)
    assert torch.equal(
        vmap(lambda state: run(nca, state), in_dims=1, out_dims=1)(x.movedim(0, 1)), expected.movedim(0, 1)
    )
    nested = vmap(vmap(lambda state: run(nca, state)))(x[:, :, None])
    assert torch.equal(nested[2, 1], run(nca, x[2, 1][None]))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_gradients_through_vmap_over_states(options: dict) -> None:
    nca, x = make_net(**options), states(3, 2).requires_grad_()
    leaves = [x, *nca.parameters()]
    mapped = torch.autograd.grad(vmap(lambda state: run(nca, state))(x).square().sum(), leaves)
    looped = torch.autograd.grad(torch.stack([run(nca, state) for state in x]).square().sum(), leaves)
    assert torch.equal(mapped[0], looped[0])
    for ours, theirs in zip(mapped, looped, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_an_ensemble_trains_through_stacked_parameters(options: dict) -> None:
    nets, x = [make_net(**options) for _ in range(3)], states(2)
    for index, net in enumerate(nets):
        net.load_state_dict({name: value + 0.01 * index for name, value in net.state_dict().items()})
    params, buffers = stack_module_state(nets)
    settings = {"seed": 5, "keep_every": 2, "backend": "cpu"}
    out = vmap(lambda p, b: functional_call(nets[0], (p, b), (x, STEPS), settings))(params, buffers)
    out.square().sum().backward()
    for index, net in enumerate(nets):
        alone = run(net, x)
        assert torch.equal(out[index], alone)
        alone.square().sum().backward()
        for name, value in net.named_parameters():
            assert torch.equal(params[name].grad[index], value.grad), name


def test_vmap_over_seeds_and_modulations() -> None:
    case = Case(size=(4, 5), has_modulation=True)
    inputs = make_inputs(case)
    scale, shift = (torch.stack([m, 2 * m]).detach() for m in inputs.modulation)
    seeds = torch.tensor([3, 4])

    def rollout(seed: Tensor, *modulation: Tensor) -> Tensor:
        return ncakern.nca_rollout(
            inputs.state, inputs.params, case.spec, STEPS, seed=seed, modulation=modulation, backend="cpu"
        )

    mapped = vmap(rollout)(seeds, scale, shift)
    assert all(torch.equal(mapped[i], rollout(seeds[i], scale[i], shift[i])) for i in range(2))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_gradients_per_sample(options: dict) -> None:
    nca, x = make_net(**options), states(3, 1)
    params = dict(nca.named_parameters())

    def loss(params: dict, state: Tensor) -> Tensor:
        settings = {"seed": 5, "keep_every": 2, "backend": "cpu"}
        return functional_call(nca, params, (state, STEPS), settings).square().mean()

    mapped = vmap(grad(loss), (None, 0))(params, x)
    for index, state in enumerate(x):
        alone = torch.autograd.grad(loss(params, state), list(params.values()))
        assert all(torch.equal(mapped[name][index], g) for name, g in zip(params, alone, strict=True))
    found = grad(lambda s: vmap(lambda state: loss(params, state))(s).sum())(x)
    leaf = x.clone().requires_grad_()
    assert torch.equal(found, torch.autograd.grad(sum(loss(params, state) for state in leaf), leaf)[0])
    assert jacrev(lambda s: run(nca, s).sum((0, 1, 2)))(x[0]).shape == (6, *x[0].shape)


def test_vmap_over_nothing_has_the_right_shape() -> None:
    nca = make_net()
    assert vmap(lambda state: run(nca, state))(states(0, 2)).shape == (0, 2, 4, 5, 6)


def _with_duals(call: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(call(forward_ad.make_dual(x, torch.ones_like(x))))


@pytest.mark.parametrize(
    "differentiate",
    [
        lambda call, x: jvp(call, (x,), (x,)),
        lambda call, x: jvp(lambda y: vmap(call)(y[None]), (x,), (x,)),
        lambda call, x: vmap(lambda y: jvp(call, (y,), (y,)))(x[None]),
        lambda call, x: jacfwd(lambda y: call(y).sum())(x),
        lambda call, x: hessian(lambda y: call(y).sum())(x),
        _with_duals,
    ],
    ids=["jvp", "jvp of vmap", "vmap of jvp", "jacfwd", "hessian", "dual numbers"],
)
def test_forward_mode_is_refused_with_what_to_use(differentiate: Callable) -> None:
    nca, x = make_net(), states(1)
    with pytest.raises(RuntimeError, match=r"no forward-mode derivative.*use backend='reference'"):
        differentiate(lambda state: run(nca, state), x)


def test_forward_mode_works_on_the_reference() -> None:
    nca, x = make_net(), states(1)
    _, tangent = jvp(lambda s: nca(s, STEPS, seed=5, backend="reference"), (x,), (torch.ones_like(x),))
    loss = jacrev(lambda s: nca(s, STEPS, seed=5, backend="reference"))(x)
    torch.testing.assert_close(tangent, loss.flatten(4).sum(-1), rtol=1e-4, atol=1e-4)


def test_gradient_of_a_gradient_is_refused_under_torch_func() -> None:
    nca, x = make_net(), states(1)
    with pytest.raises(RuntimeError, match=r"no gradient of a gradient.*use backend='reference'"):
        grad(lambda s: grad(lambda t: run(nca, t).square().sum())(s).sum())(x)


class Net(torch.nn.Module):
    def __init__(self, **options) -> None:
        super().__init__()
        self.nca = make_net(**options)

    def forward(self, state: Tensor) -> Tensor:
        return run(self.nca, state)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", ["no_grad", "frozen"])
def test_programs_exported_for_inference_have_gradients(options: dict, kind: str) -> None:
    net, x = Net(**options), states(2)
    expected = torch.autograd.grad(net(y := x.clone().requires_grad_()).square().sum(), [y, *net.parameters()])
    if kind == "no_grad":
        with torch.no_grad():
            program = torch.export.export(net, (x,)).module()
    else:
        program = torch.export.export(net.requires_grad_(False), (x,)).module().requires_grad_()
    found = torch.autograd.grad(program(y).square().sum(), [y, *program.parameters()])
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize(
    "case",
    [Case(size=(3, 5), steps=5, keep_every=2, options=o) for o in ({}, {"norm": "batch"}, {"norm": "instance"})],
    ids=lambda case: case.id,
)
def test_what_was_not_kept_is_computed_again(case: Case) -> None:
    inputs = make_inputs(case)
    tensors = (inputs.state, *inputs.params[:4], inputs.params.norm_weight, inputs.params.norm_bias)
    tensors = [None if t is None else t.detach() for t in (*tensors, inputs.params.out_weight, None, None, None, None)]
    options = [getattr(case.spec, name) for name in ops._SPEC_NAMES]
    arguments = (*tensors, torch.tensor(5), *options, case.steps, 0, 0, [0, 0], list(case.size), case.keep_every, "cpu")
    out, kept, stats = ops.nca_rollout(*arguments, True)
    _, nothing, no_stats = ops.nca_rollout(*arguments, False)
    expected = ops.nca_rollout_bwd(torch.ones_like(out), kept, stats, *arguments)
    for given in ((nothing, no_stats), (nothing, stats), (kept, no_stats)):
        assert all(map(torch.equal, ops.nca_rollout_bwd(torch.ones_like(out), *given, *arguments), expected))
    with pytest.raises(ValueError, match="kept must have shape"):
        ops.nca_rollout_bwd(torch.ones_like(out), kept[:1], stats, *arguments)
