"""The operator layer: schema, shape rules and autograd under torch's own checks, and torch.compile."""

from collections.abc import Callable

import pytest
import torch
from helpers import Case, Inputs, make_inputs, run_case, run_with_gradients
from kern.standin import StandIn

import ncakern
from ncakern import _dispatch, ops

CASES = [
    Case(size=(3, 5), steps=3, keep_every=2),
    Case(size=(3, 4), steps=2, options={"norm": "batch"}, has_modulation=True),
    Case(size=(2, 3, 3), steps=2, options={"norm": "instance"}),
    Case(size=(3, 3), steps=1, has_perceive_from=True, options={"perception": "dense"}),
    Case(size=(3, 5), steps=3, dtype=torch.bfloat16),
    Case(size=(3, 4), steps=2, has_out_bias=True, options={"clamp": (-0.9, 0.8)}),
]


@pytest.fixture(params=["standin", "cpu"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name "cpu", behind which is a stand-in of plain PyTorch or the real thing."""
    if request.param == "standin":
        monkeypatch.setitem(_dispatch.BACKENDS, "cpu", StandIn())
    elif ncakern.backends()["cpu"] is not None:
        pytest.skip(ncakern.backends()["cpu"])
    return "cpu"


def _operator_arguments(case: Case, inputs: Inputs, backend: str, *, keep: bool) -> tuple:
    scale, shift = inputs.modulation or (None, None)
    params = inputs.params
    tensors = (inputs.state, *params[:4], params.norm_weight, params.norm_bias, params.out_weight)
    spec = [getattr(case.spec, name) for name in ops._SPEC_NAMES]
    call = (case.steps, 0, 0, [0] * len(case.size), list(case.size), case.keep_every)
    return (*tensors, inputs.perceive_from, scale, shift, params.out_bias, torch.tensor(5), *spec, *call, backend, keep)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_operator_passes_opcheck(case: Case, backend: str) -> None:
    inputs = make_inputs(case).to(case.dtype, torch.float32)
    result = torch.library.opcheck(ops.nca_rollout, _operator_arguments(case, inputs, backend, keep=True))
    assert set(result.values()) == {"SUCCESS"}


def test_operator_passes_opcheck_on_a_permuted_layout(backend: str) -> None:
    case = CASES[0]
    inputs = make_inputs(case)
    channels_first = inputs.state.detach().movedim(-1, 1).contiguous()
    permuted = Inputs(channels_first.movedim(1, -1).requires_grad_(), inputs.params, None, None)
    assert not permuted.state.is_contiguous()
    result = torch.library.opcheck(ops.nca_rollout, _operator_arguments(case, permuted, backend, keep=True))
    assert set(result.values()) == {"SUCCESS"}
    assert torch.equal(run_case(case, permuted, backend=backend), run_case(case, inputs, backend=backend))


def test_backward_operator_passes_opcheck(backend: str) -> None:
    case = CASES[1]
    inputs = make_inputs(case)
    arguments = [
        a.detach() if isinstance(a, torch.Tensor) else a for a in _operator_arguments(case, inputs, backend, keep=True)
    ]
    out, kept, stats = ops.nca_rollout(*arguments)
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    result = torch.library.opcheck(
        ops.nca_rollout_bwd, (torch.ones_like(out), kept, stats, *arguments[:-1]), test_utils=checks
    )
    assert set(result.values()) == {"SUCCESS"}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_states_are_kept_only_for_gradients(case: Case, backend: str) -> None:
    inputs = make_inputs(case).to(case.dtype, torch.float32)
    _, kept, stats = ops.nca_rollout(*_operator_arguments(case, inputs, backend, keep=False))
    assert kept.numel() == stats.numel() == 0
    _, kept, stats = ops.nca_rollout(*_operator_arguments(case, inputs, backend, keep=True))
    assert len(kept) == -(-case.steps // case.keep_every) - 1
    groups = {"none": 0, "batch": 1, "instance": case.batch}[case.spec.norm]
    assert stats.shape[:2] == (case.steps if groups else 0, groups) and stats.dtype == torch.float64


@pytest.mark.parametrize("case", CASES[:4], ids=lambda case: case.id)
def test_operator_layer_routes_every_gradient(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_dispatch.BACKENDS, "cpu", StandIn())
    inputs = make_inputs(case)
    expected = run_with_gradients(case, inputs, backend="reference")
    for name, tensor in run_with_gradients(case, inputs, backend="cpu").items():
        torch.testing.assert_close(tensor, expected[name], msg=name)


def test_gradients_reach_parameters_of_half_precision(backend: str) -> None:
    case = Case(size=(3, 5))
    inputs = make_inputs(case).to(torch.bfloat16, torch.bfloat16)
    for name, gradient in run_with_gradients(case, inputs, backend=backend).items():
        assert gradient.dtype == torch.bfloat16 and gradient.isfinite().all(), name


def test_gradient_of_an_expanded_tensor(backend: str) -> None:
    case = Case(size=(3, 5))
    inputs = make_inputs(case)
    (actual,) = torch.autograd.grad(run_case(case, inputs, backend=backend).sum(), [inputs.state])
    (expected,) = torch.autograd.grad(run_case(case, inputs, backend="reference").sum(), [inputs.state])
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_double_backward_says_what_to_do(backend: str) -> None:
    case = Case(size=(3, 5))
    inputs = make_inputs(case)
    (d_state,) = torch.autograd.grad(
        run_case(case, inputs, backend=backend).square().sum(), [inputs.state], create_graph=True
    )
    with pytest.raises(RuntimeError, match=r"no gradient of a gradient.*use backend='reference'"):
        d_state.sum().backward()


@pytest.fixture
def compiled() -> Callable:
    torch._dynamo.reset()
    yield lambda function: torch.compile(function, fullgraph=True, backend="aot_eager")
    torch._dynamo.reset()


@pytest.mark.parametrize("case", CASES[:2], ids=lambda case: case.id)
def test_compiled_rollout_equals_eager(case: Case, backend: str, compiled: Callable) -> None:
    inputs = make_inputs(case)

    def loss(seed: int) -> torch.Tensor:
        return run_case(case, inputs, backend=backend, seed=seed).square().mean()

    compiled_loss = compiled(loss)
    for seed in (1, 2):
        expected, actual = loss(seed), compiled_loss(seed)
        assert torch.equal(actual, expected)
        named = inputs.named()
        expected_gradients = torch.autograd.grad(expected, list(named.values()))
        for name, a, b in zip(
            named, torch.autograd.grad(actual, list(named.values())), expected_gradients, strict=True
        ):
            assert torch.equal(a, b), name


def test_compiled_rollout_draws_seeds_and_takes_tensors(backend: str, compiled: Callable) -> None:
    case = Case(size=(5, 5))
    inputs = make_inputs(case)

    @compiled
    def run(seed: torch.Tensor | None) -> torch.Tensor:
        return run_case(case, inputs, backend=backend, seed=seed)

    for seed in (3, 4):
        assert torch.equal(run(torch.tensor(seed)), run_case(case, inputs, backend=backend, seed=seed))
    assert not torch.equal(run(None), run(None))
    torch.manual_seed(8)
    first = run(None)
    torch.manual_seed(8)
    assert torch.equal(run(None), first)


def test_compiled_auto_chooses_inside_the_graph(backend: str, compiled: Callable) -> None:
    nca = ncakern.NCA(2, 4, 6)
    torch.nn.init.normal_(nca.out_weight)
    run = compiled(lambda state: nca(state, 2, seed=1))
    for size in ((5, 6), (7, 8), (9, 4)):  # the second and third compile once, with symbolic sizes
        state = torch.randn(1, *size, 4)
        assert torch.equal(run(state), nca(state, 2, seed=1))


def test_compiled_reference_equals_eager(compiled: Callable) -> None:
    case = Case(size=(3, 4), steps=1)
    inputs = make_inputs(case)
    run = compiled(lambda: run_case(case, inputs, backend="reference", seed=1))
    torch.testing.assert_close(run(), run_case(case, inputs, backend="reference", seed=1))
