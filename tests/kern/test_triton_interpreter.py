"""The triton backend in Triton's interpreter, against float64: the cases of every backend, on a few hundred cells.

The interpreter takes as long for a cell as for a tile, about 50 microseconds per operation of a program. So: few tiles,
one step where the steps are not the subject, one sample where the samples are not. Cases that take the way of another
one through the kernels, at another size, are marked long.
"""

from dataclasses import replace

import pytest
import torch
from helpers import Case, assert_matches, is_for_triton, make_inputs, run_case, run_with_gradients
from kern.test_backends import CASES

import ncakern

pytestmark = pytest.mark.usefixtures("triton_interpreter")

_MAX_CELLS = 9  # of an axis
_MAX_ROWS = 4  # of a plane of a volume: one tile; and of any axis where the subject is several steps


def _shrink(case: Case) -> Case:
    """The same features on a small grid."""
    needs_samples = case.spec.norm == "instance" or case.has_modulation or bool(case.call)
    needs_steps = case.keep_every != 1
    return replace(
        case,
        kernel=(7, 5, 3) if case.kernel == (7, 7, 7) else case.kernel,  # 105 taps instead of 343
        size=tuple(
            min(cells, _MAX_ROWS if needs_steps or axis == len(case.size) - 2 > 0 else _MAX_CELLS)
            for axis, cells in enumerate(case.size)
        ),
        batch=2 if needs_samples else 1,
        steps=3 if needs_steps else 1,
        keep_every=2 if isinstance(case.keep_every, int) and 1 < case.keep_every <= case.steps else case.keep_every,
    )


SHRUNK = list({case.id: case for case in map(_shrink, CASES) if is_for_triton(case)}.values())
# What one step of one sample on a small grid leaves out.
MORE = [
    Case(size=(3, 70), channels=16, hidden=64, batch=2, steps=2),
    Case(size=(3, 6, 19), channels=16, hidden=64, batch=2, steps=2, options={"norm": "batch", "frozen_channels": 1}),
    Case(size=(9, 17), channels=32, hidden=40, num_filters=2, steps=2, options={"perception": "dense"}),
]
# Seconds each. Beside each stands what covers its way through the kernels.
LONG = {
    "B2-S3x70-C16-h64-F1-k3x3-n2",  # many tiles: test_triton_small.py
    "B2-S3x6x19-C16-h64-F1-k3x3x3-n2-batch-frozen_channels1",  # likewise
    "B2-S9x17-C32-h40-F2-k3x3-n2-dense",  # likewise: test_triton_large.py
    "B1-S4x4x9-C16-h64-F1-k7x5x3-n1-batch",  # seven planes: the circular case; perception kept: test_triton_small.py
    "B1-S4x4x5-C16-h64-F1-k7x5x3-n1",  # seven planes: the circular case
    "B1-S4x4-C16-h64-F1-k7x7-n1",  # likewise
    "B2-S4x4-C5-h7-F1-k3x3-n3-instance-fire_rate0.7-keepsqrt",  # states computed again: batch norm
    "B1-S4x4-C16-h64-F1-k3x3-n3-keep2",  # likewise
    "B1-S4x4-C5-h7-F1-k3x3-n3-dense-keep9",  # likewise
    "B2-S5x4x3-C4-h7-F1-k3x3x3-n1-batch-modulation",  # 2D with instance norm; weights folded: test_triton_norm.py
    "B2-S3x4x5-C6-h7-F1-k3x3x3-n1-instance-fire_rate1.0",  # 2D with instance norm, 3D with batch norm
}


def _params(cases: list[Case]) -> list:
    assert {case.id for case in cases} >= LONG
    return [pytest.param(case, id=case.id, marks=[pytest.mark.long] * (case.id in LONG)) for case in cases]


@pytest.mark.parametrize("case", _params([*SHRUNK, *MORE]))
def test_result_gradients_and_mask(case: Case) -> None:
    inputs = make_inputs(case).to(case.dtype, torch.float32)
    exact = run_with_gradients(case, inputs.to(torch.float64, torch.float64), backend="reference")
    plain = run_with_gradients(case, inputs, backend="reference")
    actual = run_with_gradients(case, inputs, backend="triton")
    assert actual["out"].dtype == case.dtype
    for name, tensor in actual.items():
        assert_matches(tensor, plain[name], exact[name], name=name)
    if case.steps == 1:
        _assert_only_firing_cells_moved(case, inputs.state.detach(), actual["out"])


def _assert_only_firing_cells_moved(case: Case, state: torch.Tensor, out: torch.Tensor) -> None:
    stream = dict(case.call)
    step, shape = stream.pop("first_step", 0), tuple(state.shape[:-1])
    fires = ncakern.fire_mask(shape, seed=7, step=step, fire_rate=case.spec.fire_rate, **stream)
    frozen = case.spec.frozen_channels
    assert torch.equal(out[~fires], state[~fires])
    assert torch.equal(out[..., :frozen], state[..., :frozen])
    moved = (out != state)[fires][:, frozen:]
    assert moved.numel() == 0 or moved.float().mean() > 0.5


def test_keeping_states_changes_no_bit_and_inputs_are_not_written() -> None:
    case = Case(size=(1, 5), channels=5, steps=3, batch=1, options={"norm": "batch", "padding": "zeros"})
    inputs = make_inputs(case)
    before = {name: tensor.detach().clone() for name, tensor in inputs.named().items()}
    runs = [
        run_with_gradients(replace(case, keep_every=keep_every), inputs, backend="triton") for keep_every in (1, 1, 2)
    ]
    with torch.no_grad():
        assert torch.equal(run_case(case, inputs, backend="triton"), runs[0]["out"])
    for name in runs[0]:
        assert torch.equal(runs[0][name], runs[1][name]), name
        assert torch.equal(runs[0][name], runs[2][name]), name
    for name, tensor in inputs.named().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # numpy, inside the interpreter
@pytest.mark.parametrize("options", [{}, {"perception": "dense", "activation": "leaky_relu"}], ids=str)
def test_nan_and_infinity_spread_as_in_the_reference(options: dict) -> None:
    case = Case(size=(9, 9), steps=1, options={"fire_rate": 1.0, **options})
    inputs = make_inputs(case)
    with torch.no_grad():
        inputs.state[0, 4, 4, 1] = float("nan")
        inputs.state[1, 2, 2, 0] = float("inf")
    expected = run_case(case, inputs, backend="reference")
    actual = run_case(case, inputs, backend="triton")
    assert torch.equal(actual.isfinite(), expected.isfinite())


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        (Case(size=(3, 3), has_out_bias=True), "has no out_bias"),
        (Case(size=(3, 3), options={"clamp": (0, 1)}), "has no clamp"),
        (Case(size=(3, 3), options={"activation": "gelu"}), "computes the activations relu and leaky_relu; got gelu"),
    ],
    ids=["out_bias", "clamp", "activation"],
)
def test_what_it_does_not_compute_is_refused_by_name(case: Case, reason: str) -> None:
    inputs = make_inputs(case)
    assert not is_for_triton(case)
    assert ncakern.explain(inputs.state, inputs.params, case.spec, 1)["triton"] == reason
