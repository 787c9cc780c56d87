"""Every fast backend on every case: the result and all gradients against float64, and the bits that must be equal."""

import pytest
import torch
from helpers import Case, assert_matches, make_inputs, run_case, run_with_gradients

import ncakern

BF16, FP16 = torch.bfloat16, torch.float16

CASES = [
    # Depthwise, no norm: ugly sizes, every padding, kernels down to the padding limit.
    Case(size=(33, 47), channels=16, hidden=64, batch=1),
    Case(size=(17, 3), channels=5, hidden=7, num_filters=2, options={"activation": "leaky_relu"}),
    Case(size=(1, 17), channels=5, hidden=9, kernel=(1, 3)),
    Case(size=(1, 1), batch=5, kernel=(1, 1), channels=3, hidden=5),
    Case(size=(4, 4), kernel=(7, 7), channels=16, hidden=64),
    Case(size=(1, 5), kernel=(7, 5), channels=6, options={"padding": "replicate"}),
    Case(size=(3, 7), kernel=(5, 3), num_filters=3, options={"padding": "zeros", "fire_rate": 0.3}),
    Case(size=(3, 3), kernel=(7, 7), channels=7, options={"padding": "circular"}),
    Case(size=(3, 5, 7), channels=16, hidden=64, options={"frozen_channels": 1}),
    Case(size=(2, 3, 17), channels=5, hidden=33, kernel=(3, 1, 5), options={"padding": "reflect"}),
    Case(size=(4, 4, 5), kernel=(7, 7, 7), channels=16, hidden=64, steps=2, batch=1),
    # Norms.
    Case(size=(17, 19), channels=16, hidden=64, options={"norm": "batch", "frozen_channels": 1}),
    Case(size=(5, 6, 7), channels=16, hidden=64, options={"norm": "batch", "frozen_channels": 1}),
    Case(size=(4, 5, 9), channels=16, hidden=64, kernel=(7, 7, 7), steps=2, options={"norm": "batch"}),
    Case(size=(5, 7), channels=5, num_filters=2, batch=3, options={"norm": "instance", "padding": "zeros"}),
    Case(size=(3, 4, 5), channels=6, options={"norm": "instance", "fire_rate": 1.0}),
    Case(size=(9, 11), channels=5, hidden=9, options={"norm": "batch", "activation": "leaky_relu"}),
    # Dense perception.
    Case(size=(17, 13), channels=32, hidden=128, num_filters=2, options={"perception": "dense"}),
    Case(size=(9, 5), channels=64, hidden=512, num_filters=2, steps=2, batch=1, options={"perception": "dense"}),
    Case(size=(3, 17), channels=5, hidden=7, options={"perception": "dense", "padding": "zeros"}),
    Case(size=(7, 3), channels=5, num_filters=3, options={"perception": "dense", "norm": "batch"}),
    Case(size=(3, 4, 5), channels=6, kernel=(3, 5, 1), options={"perception": "dense", "padding": "replicate"}),
    Case(size=(5, 6), channels=6, options={"perception": "dense", "norm": "instance", "padding": "circular"}),
    # Activations: every way through the kernel, and inputs far from zero.
    Case(size=(17, 19), channels=16, hidden=64, batch=1, options={"activation": "silu"}),
    Case(size=(17, 3), channels=5, hidden=130, num_filters=2, options={"activation": "gelu", "padding": "zeros"}),
    Case(size=(3, 17), channels=5, hidden=7, options={"activation": "tanh", "padding": "replicate"}),
    Case(size=(4, 5, 6), channels=16, hidden=64, options={"activation": "gelu", "norm": "batch", "frozen_channels": 1}),
    Case(size=(5, 7), channels=5, batch=3, options={"activation": "silu", "norm": "instance", "padding": "circular"}),
    Case(size=(7, 5), channels=6, num_filters=2, options={"activation": "tanh", "perception": "dense"}),
    Case(size=(3, 4, 5), channels=6, options={"activation": "gelu", "perception": "dense", "norm": "batch"}),
    Case(size=(6, 7), channels=5, steps=5, keep_every=2, has_modulation=True, options={"activation": "silu"}),
    Case(size=(9, 11), channels=5, dtype=BF16, options={"activation": "gelu", "perception": "dense"}),
    # A bias of the update, alone and with others.
    Case(size=(17, 19), channels=16, hidden=64, batch=1, has_out_bias=True),
    Case(size=(3, 17), channels=5, hidden=130, num_filters=3, has_out_bias=True, options={"padding": "zeros"}),
    Case(size=(3, 4, 5), channels=6, has_out_bias=True, options={"norm": "batch", "frozen_channels": 2}),
    Case(size=(5, 7), channels=5, has_out_bias=True, has_modulation=True, options={"norm": "instance"}),
    Case(size=(7, 5), channels=6, has_out_bias=True, options={"perception": "dense", "padding": "circular"}),
    Case(size=(3, 4, 5), channels=6, has_out_bias=True, options={"perception": "dense", "norm": "batch"}),
    Case(size=(6, 5), has_out_bias=True, has_perceive_from=True, steps=1, options={"activation": "gelu"}),
    Case(size=(6, 7), channels=5, steps=5, keep_every=2, has_out_bias=True, options={"activation": "tanh"}),
    Case(size=(9, 11), channels=5, has_out_bias=True, dtype=BF16, options={"padding": "replicate"}),
    Case(size=(7, 9), channels=16, hidden=64, has_out_bias=True, options={"fire_rate": 0.0}),
    # A clamp, alone and with others; half of the numbers drawn are outside.
    Case(size=(17, 19), channels=16, hidden=64, batch=1, options={"clamp": (-0.9, 0.8)}),
    Case(size=(3, 17), channels=5, hidden=130, num_filters=3, options={"clamp": (-0.9, 0.8), "padding": "zeros"}),
    Case(size=(3, 5, 4), channels=6, options={"clamp": (-0.9, 0.8), "norm": "batch", "frozen_channels": 2}),
    Case(size=(5, 7), channels=5, has_modulation=True, options={"clamp": (0, 1), "norm": "instance"}),
    Case(size=(7, 5), channels=6, options={"clamp": (-0.9, 0.8), "perception": "dense", "padding": "circular"}),
    Case(size=(3, 4, 5), channels=6, options={"clamp": (-0.9, 0.8), "perception": "dense", "norm": "batch"}),
    Case(size=(6, 5), has_perceive_from=True, steps=1, options={"clamp": (-0.9, 0.8), "perception": "dense"}),
    Case(size=(6, 5), has_perceive_from=True, steps=1, options={"clamp": (-0.9, 0.8), "norm": "batch"}),
    Case(size=(6, 7), channels=5, steps=5, keep_every=2, has_out_bias=True, options={"clamp": (-0.9, 0.8)}),
    Case(size=(6, 7), channels=5, steps=5, keep_every=3, options={"clamp": (-0.9, 0.8), "norm": "instance"}),
    Case(size=(9, 11), channels=5, dtype=BF16, options={"clamp": (-0.9, 0.8), "activation": "gelu"}),
    Case(size=(9, 5), channels=6, dtype=BF16, options={"clamp": (-0.9, 0.8), "perception": "dense"}),
    Case(size=(9, 11), channels=5, dtype=FP16, keep_every=2, options={"clamp": (-float("inf"), 0.5), "norm": "batch"}),
    Case(size=(7, 9), channels=16, hidden=64, options={"clamp": (-0.9, 0.8), "fire_rate": 0.0}),
    # Fire rates at the ends, modulation, perception of something else, tiles.
    Case(size=(7, 9), channels=16, hidden=64, options={"fire_rate": 1.0}),
    Case(size=(7, 9), channels=16, hidden=64, options={"fire_rate": 0.0}),
    Case(size=(7, 9), channels=16, hidden=64, options={"frozen_channels": 16}),
    Case(size=(7, 9), has_modulation=True, batch=3),
    Case(size=(5, 4, 3), has_modulation=True, options={"norm": "batch"}),
    Case(size=(6, 7), channels=16, hidden=64, has_perceive_from=True, steps=1),
    Case(size=(6, 5), has_perceive_from=True, has_modulation=True, steps=1, options={"norm": "instance"}),
    Case(size=(5, 3), has_perceive_from=True, steps=1, options={"perception": "dense"}),
    Case(size=(5, 9), call={"origin": (4, 7), "extent": (11, 19), "first_step": 9, "first_sample": 3}),
    Case(size=(3, 5, 9), call={"origin": (1, 2, 7), "extent": (7, 8, 18)}),
    # States kept every few steps.
    Case(size=(6, 7), channels=16, hidden=64, steps=5, keep_every=2),
    Case(size=(6, 7), channels=5, steps=6, keep_every=3, options={"norm": "batch"}),
    Case(size=(6, 7), channels=5, steps=9, keep_every="sqrt", options={"norm": "instance", "fire_rate": 0.7}),
    Case(size=(6, 7), channels=5, steps=4, keep_every=9, options={"perception": "dense"}),
    # Storage in 16 bits.
    Case(size=(9, 11), channels=16, hidden=64, dtype=BF16),
    Case(size=(4, 5, 6), channels=16, hidden=64, dtype=BF16, options={"norm": "batch", "frozen_channels": 1}),
    Case(size=(9, 5), channels=32, hidden=128, num_filters=2, dtype=BF16, options={"perception": "dense"}),
    Case(size=(9, 11), channels=5, dtype=FP16, keep_every=2),
]


@pytest.fixture(params=[name for name in ncakern.backends() if name not in ("triton", "reference")])
def backend(request: pytest.FixtureRequest) -> str:
    reason = ncakern.backends()[request.param]
    if reason is not None:
        pytest.skip(f"backend {request.param}: {reason}")
    return request.param


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_result_and_gradients_match_float64(case: Case, backend: str) -> None:
    inputs = make_inputs(case).to(case.dtype, torch.float32)
    # The float64 run starts from the very numbers the others start from, after their rounding.
    exact = run_with_gradients(case, inputs.to(torch.float64, torch.float64), backend="reference")
    plain = run_with_gradients(case, inputs, backend="reference")
    actual = run_with_gradients(case, inputs, backend=backend)
    assert actual["out"].dtype == case.dtype
    for name, tensor in actual.items():
        assert_matches(tensor, plain[name], exact[name], name=name)


def _one_unit(activation: str, values: torch.Tensor, backend: str) -> tuple[torch.Tensor, torch.Tensor]:
    """What one hidden unit makes of each value, and its derivative there: one sample a value, of one cell."""
    one, zero = torch.ones(1, 1, dtype=values.dtype), torch.zeros(1, 1, dtype=values.dtype)
    params = ncakern.RolloutParams(one.reshape(1, 1, 1, 1), zero, torch.cat((zero, zero), 1), zero[0], one)
    spec = ncakern.RolloutSpec(activation=activation, fire_rate=1.0)
    shift = values[:, None].clone().requires_grad_()
    state = torch.zeros(len(values), 1, 1, 1, dtype=values.dtype)
    out = ncakern.nca_rollout(
        state, params, spec, 1, seed=0, modulation=(torch.ones_like(shift.detach()), shift), backend=backend
    )
    return out.detach().flatten(), torch.autograd.grad(out.sum(), shift)[0].flatten()


@pytest.mark.parametrize("activation", ncakern._spec.ACTIVATIONS)
@pytest.mark.parametrize("largest", [1.0, 6.0, 90.0, 1e4])
def test_activations_match_float64_in_their_whole_range(activation: str, largest: float, backend: str) -> None:
    values = torch.linspace(-largest, largest, 4001)
    results = [
        _one_unit(activation, values.to(dtype), name)
        for dtype, name in ((torch.float32, backend), (torch.float32, "reference"), (torch.float64, "reference"))
    ]
    for name, actual, plain, exact in zip(("value", "derivative"), *results, strict=True):
        assert_matches(actual[None], plain[None], exact[None], name=name)


@pytest.mark.parametrize("activation", ncakern._spec.ACTIVATIONS)
def test_activations_spread_infinity_and_nan(activation: str, backend: str) -> None:
    nan, infinity = float("nan"), float("inf")
    below = {"relu": 0.0, "leaky_relu": -infinity, "silu": nan, "gelu": nan, "tanh": -1.0}  # -infinity * 0 is no number
    above = 1.0 if activation == "tanh" else infinity
    values, expected = [nan, infinity, -infinity, -0.0], [nan, above, below[activation], 0.0]
    actual, _ = _one_unit(activation, torch.tensor(values), backend)
    torch.testing.assert_close(actual, torch.tensor(expected), equal_nan=True)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_fire_mask_and_frozen_channels_are_exact(case: Case, backend: str) -> None:
    inputs = make_inputs(case).to(case.dtype, torch.float32)
    one_step = Case(**{**vars(case), "steps": 1})
    out = run_case(one_step, inputs, backend=backend)
    fires = ncakern.fire_mask(
        tuple(inputs.state.shape[:-1]),
        seed=7,
        step=case.call.get("first_step", 0),
        fire_rate=case.spec.fire_rate,
        first_sample=case.call.get("first_sample", 0),
        origin=case.call.get("origin"),
        extent=case.call.get("extent"),
    )
    frozen = case.spec.frozen_channels
    bounds = case.spec.clamp or (-float("inf"), float("inf"))
    unmoved = torch.cat((inputs.state[..., :frozen], inputs.state[..., frozen:].float().clamp(*bounds)), -1)
    assert torch.equal(out[~fires], unmoved.to(case.dtype)[~fires])
    assert torch.equal(out[..., :frozen], inputs.state[..., :frozen])
    # Nearly every free number of a firing cell moves. All of a cell's hidden units can be off, so not every one.
    moved = (out != inputs.state)[fires][:, frozen:]
    assert moved.numel() == 0 or moved.float().mean() > 0.5


@pytest.mark.parametrize(
    ("case", "mean"),
    [
        # Statistics from moments would cancel here: the mean is 100 times the deviation.
        (Case(size=(6, 9, 20), channels=16, hidden=64, options={"norm": "batch", "frozen_channels": 1}), 100.0),
        (Case(size=(6, 9, 20), channels=16, hidden=64, options={"norm": "instance"}), 100.0),
        # Long sums: float32 partial sums are folded many times.
        (Case(size=(31, 29, 33), channels=16, hidden=64, batch=1, options={"norm": "batch"}), 0.0),
        (Case(size=(67, 129), channels=32, hidden=128, num_filters=2, options={"perception": "dense"}), 0.0),
    ],
    ids=["mean100-batch", "mean100-instance", "30k-cells-batch", "17k-cells-dense"],
)
def test_large_means_and_long_sums_stay_accurate(case: Case, mean: float, backend: str) -> None:
    inputs = make_inputs(case)
    with torch.no_grad():
        inputs.state.add_(mean)
        # Among so many hidden values some lie within rounding of the kink of the ReLU; here all lie above it.
        bias = inputs.params.hidden_bias if inputs.params.norm_bias is None else inputs.params.norm_bias
        bias.add_(30.0)
    exact = run_with_gradients(case, inputs.to(torch.float64, torch.float64), backend="reference")
    plain = run_with_gradients(case, inputs, backend="reference")
    for name, tensor in run_with_gradients(case, inputs, backend=backend).items():
        assert_matches(tensor, plain[name], exact[name], name=name)


def test_two_runs_give_the_same_gradient_bits(backend: str) -> None:
    case = Case(size=(17, 19), channels=16, hidden=64, options={"norm": "batch"})
    inputs = make_inputs(case)
    first, second = (run_with_gradients(case, inputs, backend=backend) for _ in range(2))
    for name in first:
        assert torch.equal(first[name], second[name]), name


def test_keep_every_changes_no_forward_bit(backend: str) -> None:
    case = Case(size=(6, 7), channels=16, hidden=64, steps=7)
    inputs = make_inputs(case)
    expected = run_case(case, inputs, backend=backend)
    for keep_every in (2, 3, 7, 100, "sqrt"):
        assert torch.equal(run_case(case, inputs, backend=backend, keep_every=keep_every), expected)


def test_inputs_are_never_written(backend: str) -> None:
    case = Case(size=(6, 7), has_modulation=True, options={"norm": "batch"})
    inputs = make_inputs(case)
    before = {name: tensor.detach().clone() for name, tensor in inputs.named().items()}
    run_with_gradients(case, inputs, backend=backend)
    for name, tensor in inputs.named().items():
        assert torch.equal(tensor, before[name]), name


def test_nan_and_infinity_spread_as_in_the_reference(backend: str) -> None:
    case = Case(size=(9, 9), steps=2, options={"fire_rate": 1.0})
    inputs = make_inputs(case)
    with torch.no_grad():
        inputs.state[0, 4, 4, 1] = float("nan")
        inputs.state[1, 2, 2, 0] = float("inf")
    expected = run_case(case, inputs, backend="reference")
    actual = run_case(case, inputs, backend=backend)
    assert torch.equal(actual.isfinite(), expected.isfinite())


@pytest.mark.parametrize("norm", ["none", "instance"])
def test_nothing_reaches_a_frozen_channel(norm: str, backend: str) -> None:
    case = Case(size=(5, 9), channels=5, steps=2, options={"fire_rate": 1.0, "frozen_channels": 2, "norm": norm})
    inputs = make_inputs(case)
    with torch.no_grad():
        inputs.state[0, 2, 2, 4] = float("nan")
        inputs.state[1, 2, 2, 3] = float("inf")
    out = run_case(case, inputs, backend=backend)
    assert torch.equal(out[..., :2], inputs.state[..., :2])
    assert not out.isfinite().all()

    # Nor does the gradient of what a frozen channel receives go anywhere else.
    inputs = make_inputs(case)
    out = run_case(case, inputs, backend=backend)
    d_out = torch.zeros_like(out)
    d_out[..., 1] = float("nan")
    gradients = torch.autograd.grad(out, [inputs.state, inputs.params.hidden_weight], d_out)
    assert gradients[0][..., 0].eq(0).all() and gradients[0][..., 2:].eq(0).all()
    assert gradients[1].eq(0).all()


@pytest.mark.parametrize("perception", ["depthwise", "dense"])
@pytest.mark.parametrize(("channels", "hidden"), [(1, 1), (3, 5), (5, 70), (16, 64)])
def test_infinity_reaches_what_it_reaches_in_the_reference(perception: str, channels: int, hidden: int) -> None:
    """What pads channels to whole vectors has zero weights, and infinity times zero is not a number."""
    torch.manual_seed(0)
    nca = ncakern.NCA(2, channels, hidden, perception=perception, padding="zeros")
    torch.nn.init.normal_(nca.out_weight)
    state = torch.zeros(1, 5, 7, channels)
    state[0, 2, 3, 0] = float("inf")
    actual, expected = (nca(state, 1, seed=1, backend=backend) for backend in ("cpu", "reference"))
    assert torch.equal(actual.isnan(), expected.isnan())
    assert torch.equal(actual.isinf(), expected.isinf())


@pytest.mark.parametrize("norm", ["batch", "instance"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bias_that_is_not_finite_spreads_although_a_norm_cancels_it(norm: str, value: float, backend: str) -> None:
    case = Case(size=(5, 6), steps=1, options={"norm": norm, "frozen_channels": 1})
    inputs = make_inputs(case)
    with torch.no_grad():
        inputs.params.hidden_bias[2] = value
    expected = run_with_gradients(case, inputs, backend="reference")
    actual = run_with_gradients(case, inputs, backend=backend)
    assert actual["out"].isnan().any()
    for name in ("out", "d_hidden_weight", "d_state"):
        assert torch.equal(actual[name].isfinite(), expected[name].isfinite()), name


@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
def test_gradients_pass_where_a_hidden_value_is_not_a_number(activation: str, backend: str) -> None:
    case = Case(size=(5, 6), steps=1, options={"activation": activation, "fire_rate": 1.0})
    inputs = make_inputs(case)
    with torch.no_grad():
        inputs.state[0, 2, 2, 1] = float("nan")
    expected = run_with_gradients(case, inputs, backend="reference")
    actual = run_with_gradients(case, inputs, backend=backend)
    for name in ("d_state", "d_hidden_bias", "d_hidden_weight"):
        torch.testing.assert_close(actual[name], expected[name], rtol=1e-5, atol=1e-5, equal_nan=True, msg=name)
