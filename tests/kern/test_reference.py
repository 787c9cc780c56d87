"""The reference against scalar loops, finite differences, and the published method's numbers."""

import math

import pytest
import torch
from helpers import Case, make_inputs, run_case
from kern.oracle import rollout_by_loops

import ncakern

ORACLE_CASES = [
    Case(size=(3, 4)),
    Case(size=(4, 3), num_filters=2, options={"padding": "zeros"}),
    Case(size=(3, 5), kernel=(3, 5), options={"padding": "replicate", "activation": "leaky_relu"}),
    Case(size=(3, 4), kernel=(5, 3), options={"padding": "circular", "fire_rate": 0.3}),
    Case(size=(4, 4), kernel=(7, 1), options={"frozen_channels": 2}),
    Case(size=(3, 4), options={"activation": "silu"}),
    Case(size=(3, 4), options={"clamp": (-0.5, 0.7), "frozen_channels": 1}),
    Case(size=(2, 3, 2), steps=2, has_out_bias=True, options={"clamp": (0, 1), "norm": "batch"}),
    Case(size=(3, 4), has_out_bias=True, options={"frozen_channels": 1}),
    Case(size=(2, 3, 2), steps=2, has_out_bias=True, options={"norm": "instance"}),
    Case(size=(2, 3, 2), steps=2, options={"activation": "gelu", "norm": "batch"}),
    Case(size=(3, 4), has_modulation=True, options={"activation": "tanh", "perception": "dense"}),
    Case(size=(3, 4), num_filters=2, options={"perception": "dense", "padding": "reflect", "frozen_channels": 1}),
    Case(size=(3, 4), options={"perception": "dense", "padding": "zeros", "norm": "batch"}),
    Case(size=(2, 3, 4), steps=2, options={"norm": "batch", "frozen_channels": 1}),
    Case(size=(2, 4, 3), steps=2, kernel=(1, 3, 5), options={"norm": "instance", "fire_rate": 1.0}),
    Case(size=(2, 3, 2), steps=2, kernel=(3, 1, 3), options={"padding": "circular", "perception": "dense"}),
    Case(size=(2, 2, 3), steps=2, options={"padding": "replicate"}),
    Case(size=(3, 3), has_modulation=True, options={"norm": "instance"}),
    Case(size=(3, 3), has_modulation=True, has_perceive_from=True, steps=1),
    Case(size=(1, 1), kernel=(1, 1), options={"norm": "batch"}, batch=1),
    Case(size=(3, 4), call={"origin": (2, 5), "extent": (9, 11), "first_step": 4, "first_sample": 6}),
    Case(size=(2, 3, 3), steps=2, call={"origin": (1, 2, 3), "extent": (4, 6, 7)}),
]


@pytest.mark.parametrize("case", ORACLE_CASES, ids=lambda case: case.id)
def test_reference_equals_scalar_loops(case: Case) -> None:
    inputs = make_inputs(case).to(torch.float64, torch.float64)
    actual = run_case(case, inputs, backend="reference", seed=-5)
    expected = torch.from_numpy(rollout_by_loops(case, inputs, seed=-5))
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    frozen = case.spec.frozen_channels
    assert torch.equal(actual[..., :frozen], inputs.state[..., :frozen])


GRADIENT_CASES = [
    Case(size=(3, 2), channels=2, hidden=2, steps=2, options={"clamp": (-0.5, 0.7), "frozen_channels": 1}),
    Case(size=(3, 2), channels=2, hidden=2, steps=2, has_out_bias=True, options={"frozen_channels": 1}),
    Case(size=(3, 2), channels=2, hidden=2, steps=2, options={"activation": "silu"}),
    Case(size=(3, 2), channels=2, hidden=2, steps=2, options={"activation": "gelu", "norm": "batch"}),
    Case(size=(2, 2, 2), channels=2, hidden=2, steps=2, options={"activation": "tanh", "perception": "dense"}),
    Case(size=(3, 3), channels=2, hidden=3, steps=2, options={"frozen_channels": 1}),
    Case(size=(3, 2), channels=2, hidden=3, steps=2, options={"norm": "batch", "activation": "leaky_relu"}),
    Case(size=(2, 2, 2), channels=2, hidden=2, steps=2, options={"norm": "instance", "padding": "replicate"}),
    Case(size=(3, 3), channels=2, hidden=2, options={"perception": "dense", "padding": "circular"}),
    Case(size=(2, 2, 2), channels=2, hidden=2, steps=1, has_modulation=True, has_perceive_from=True),
]


@pytest.mark.parametrize("case", GRADIENT_CASES, ids=lambda case: case.id)
@pytest.mark.parametrize("check", [torch.autograd.gradcheck, torch.autograd.gradgradcheck])
def test_reference_derivatives_match_finite_differences(case: Case, check) -> None:
    inputs = make_inputs(case).to(torch.float64, torch.float64)
    names = list(inputs.named())

    def run(*tensors: torch.Tensor) -> torch.Tensor:
        given = dict(zip(names, tensors, strict=True))
        params = ncakern.RolloutParams(**{name: given.get(name) for name in ncakern.RolloutParams._fields})
        modulation = (given["scale"], given["shift"]) if "scale" in given else None
        return ncakern.nca_rollout_reference(
            given["state"],
            params,
            case.spec,
            case.steps,
            seed=3,
            perceive_from=given.get("perceive_from"),
            modulation=modulation,
        )

    assert check(run, tuple(inputs.named().values()), fast_mode=check is torch.autograd.gradgradcheck)


def _sine(shape: tuple[int, ...], scale: float, rate: float) -> torch.Tensor:
    index = torch.arange(1, math.prod(shape) + 1, dtype=torch.float64)
    return (scale * torch.sin(rate * index)).reshape(shape)


def _published_vector() -> tuple[ncakern.NCA, torch.Tensor]:
    """A layer in upstream's own axis order and a state of two samples; the expected numbers are M3D-NCA's."""
    nca = ncakern.load_upstream(
        {
            "p0.weight": _sine((4, 1, 3, 3, 3), 0.30, 0.7),
            "p0.bias": _sine((4,), 0.10, 1.1),
            "fc0.weight": _sine((6, 8), 0.50, 0.9),
            "fc0.bias": _sine((6,), 0.20, 1.3),
            "bn.weight": torch.ones(6),
            "bn.bias": torch.full((6,), 0.5),
            "fc1.weight": _sine((4, 6), 0.40, 0.6),
        },
        upstream_fire_rate=0.0,
        frozen_channels=1,
    ).double()
    state = torch.zeros(2, 4, 5, 6, 4, dtype=torch.float64)
    state[..., 0] = _sine((2, 4, 5, 6), 1.0, 0.37)
    return nca, state


@pytest.mark.parametrize(
    ("steps", "sums", "cell"),
    [
        (1, (1.25014, -127.31077, 29.90766, 73.67087), (-0.96671, 0.63059, -1.41770, 1.91208)),
        (2, (1.25014, -259.58877, 67.83741, 137.92123), (-0.96671, 1.28847, -2.93004, 3.96661)),
        (4, (1.25014, -532.99107, 156.18271, 252.87475), (-0.96671, 2.71906, -6.11710, 8.25207)),
    ],
)
def test_reference_reproduces_m3d_nca(steps: int, sums: tuple, cell: tuple) -> None:
    nca, state = _published_vector()
    for mode in (nca.train(), nca.eval()):
        out = mode(state, steps, seed=0)
        # The numbers are printed to five decimals; the layer that made them ran in float32.
        torch.testing.assert_close(out.sum((0, 1, 2, 3)), torch.tensor(sums).double(), rtol=2e-6, atol=2e-5)
        torch.testing.assert_close(out[0, 1, 2, 3], torch.tensor(cell).double(), rtol=2e-6, atol=1e-5)


@pytest.mark.parametrize(
    ("position", "cell"),
    [
        ((1, 3, 0, 5), (-0.98189, 2.51858, -5.19255, 6.79435)),
        ((0, 0, 4, 1), (-0.19398, -5.15904, 4.70092, -3.27213)),
    ],
)
def test_reference_reproduces_m3d_nca_at_borders(position: tuple, cell: tuple) -> None:
    nca, state = _published_vector()
    torch.testing.assert_close(nca(state, 4, seed=0)[position], torch.tensor(cell).double(), rtol=2e-6, atol=1e-5)


def test_batch_norm_couples_samples_as_published() -> None:
    nca, state = _published_vector()
    together, alone = nca(state, 4, seed=0), nca(state[:1], 4, seed=0)
    assert (together[:1] - alone).abs().max().item() == pytest.approx(0.2035, abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once_per_step(dtype: torch.dtype) -> None:
    case = Case(size=(4, 5), options={"fire_rate": 0.5}, steps=1)
    inputs = make_inputs(case).to(dtype, torch.float32)
    out = run_case(case, inputs, backend="reference")
    wide = run_case(case, inputs.to(torch.float32, torch.float32), backend="reference")
    assert out.dtype == dtype
    assert torch.equal(out, wide.to(dtype))


def test_cells_that_do_not_fire_keep_their_bits() -> None:
    case = Case(size=(9, 9), steps=1, dtype=torch.bfloat16)
    inputs = make_inputs(case).to(torch.bfloat16, torch.float32)
    out = run_case(case, inputs, backend="reference", seed=4)
    fires = ncakern.fire_mask((2, 9, 9), seed=4, step=0, fire_rate=0.5)
    assert torch.equal(out[~fires], inputs.state[~fires])
    assert not torch.equal(out[fires], inputs.state[fires])


def test_autocast_does_not_change_the_result() -> None:
    case = Case(size=(5, 5))
    inputs = make_inputs(case)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = run_case(case, inputs, backend="reference")
    assert torch.equal(inside, run_case(case, inputs, backend="reference"))


def test_no_steps_return_an_equal_copy() -> None:
    case = Case(size=(3, 3), steps=0)
    inputs = make_inputs(case)
    out = run_case(case, inputs, backend="reference")
    assert torch.equal(out, inputs.state) and out.data_ptr() != inputs.state.data_ptr()
