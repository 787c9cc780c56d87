"""Mean and covariance of the perception over some cells, from the kernel, against float64."""

import numpy as np
import pytest
from helpers import Case, make_inputs
from numpy.lib.stride_tricks import sliding_window_view

import ncakern
from ncakern._env import VARIABLES
from ncakern.arrays import ArrayParams, perception_moments

pytestmark = pytest.mark.skipif(ncakern.backends()["cpu"] is not None, reason="the extension is not built")

NUMPY_PADDING = {"reflect": "reflect", "zeros": "constant", "replicate": "edge", "circular": "wrap"}
CASES = [
    Case(size=(13, 110), channels=5, options={"norm": "batch"}),
    Case(size=(9, 11, 13), channels=16, batch=3, options={"norm": "instance", "padding": "zeros"}),
    Case(
        size=(5, 7, 9), channels=4, num_filters=2, kernel=(1, 3, 5), options={"norm": "batch", "padding": "replicate"}
    ),
    Case(size=(12, 10), channels=6, options={"norm": "instance", "perception": "dense", "padding": "circular"}),
]


def arrays_of(case: Case) -> tuple[np.ndarray, ArrayParams]:
    inputs = make_inputs(case)
    # Far from zero: a variance from raw second moments would lose its digits.
    params = ArrayParams(*[None if t is None else t.detach().numpy() for t in inputs.params])
    return inputs.state.detach().numpy() + np.float32(30), params


def expected_moments(
    case: Case, state: np.ndarray, params: ArrayParams, box: tuple[slice, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """The same in float64, with every neighbourhood laid out in memory."""
    x, weight = state.astype(np.float64), params.perceive_weight.astype(np.float64)
    kernel = weight.shape[-len(case.size) :]
    pad = [(0, 0), *((k // 2, k // 2) for k in kernel), (0, 0)]
    axes = tuple(range(1, 1 + len(kernel)))
    near = sliding_window_view(np.pad(x, pad, NUMPY_PADDING[case.spec.padding]), kernel, axes)
    near, taps = near.reshape(*x.shape, -1), weight.reshape(*weight.shape[: -len(kernel)], -1)
    sums = {"depthwise": "...ct,fct->...fc", "dense": "...it,foit->...fo"}[case.spec.perception]
    y = np.einsum(sums, near, taps) + params.perceive_bias
    v = np.concatenate([x, y.reshape(*x.shape[:-1], -1)], axis=-1)[(slice(None), *box)]
    groups = v.reshape(len(v) if case.spec.norm == "instance" else 1, -1, v.shape[-1])
    return groups.mean(1), np.stack([np.cov(g, rowvar=False, bias=True) for g in groups])


def assert_close(found: tuple[np.ndarray, np.ndarray], expected: tuple[np.ndarray, np.ndarray]) -> None:
    for a, b, tolerance in zip(found, expected, (1e-6, 1e-5), strict=True):
        assert a.shape == b.shape and a.dtype == np.float64
        assert np.abs(a - b).max() <= tolerance * np.abs(b).max()


@pytest.mark.parametrize("isa", [name for name in VARIABLES["NCAKERN_ISA"][1] if name != "auto"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_each_instruction_set_matches_float64(isa: str, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    from ncakern.backends.cpu import variants

    if not variants().get(isa):
        pytest.skip(f"this machine does not run {isa}")
    monkeypatch.setenv("NCAKERN_ISA", isa)
    state, params = arrays_of(case)
    for inner in (None, tuple(slice(1, n - 2) for n in case.size), tuple(slice(n - 1, n) for n in case.size)):
        box = tuple(slice(0, n) for n in case.size) if inner is None else inner
        found = perception_moments(state, params, case.spec, inner=inner)
        assert_close(found, expected_moments(case, state, params, box))


def test_cells_that_inner_ones_do_not_see_have_no_part() -> None:
    case = CASES[1]
    state, params = arrays_of(case)
    inner = (slice(2, 5), slice(3, 8), slice(4, 9))
    expected = perception_moments(state, params, case.spec, inner=inner)
    hidden = state.copy()
    hidden[:] = np.nan
    seen = (slice(None), *(slice(s.start - 1, s.stop + 1) for s in inner))
    hidden[seen] = state[seen]
    assert all(map(np.array_equal, perception_moments(hidden, params, case.spec, inner=inner), expected))
    assert np.isfinite(expected[1]).all()


def test_threads_change_no_bit() -> None:
    case = Case(size=(40, 70), channels=8, options={"norm": "batch"})
    state, params = arrays_of(case)
    inner = (slice(3, 38), slice(1, 69))
    first, *others = (perception_moments(state, params, case.spec, inner=inner, threads=n) for n in (1, 2, 3))
    assert all(np.array_equal(a, b) for other in others for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"state": np.zeros((2, 13, 110), np.float32)}, ValueError, "state must be"),
        ({"state": np.zeros((2, 1, 110, 5), np.float32)}, ValueError, "state must have at least 2 cells"),
        ({"spec": ncakern.RolloutSpec()}, ValueError, "spec.norm must be 'batch' or 'instance'"),
        ({"norm_weight": np.zeros(3, np.float32)}, ValueError, "norm_weight must have shape"),
        ({"norm_bias": None}, TypeError, "norm_bias must be a numpy array"),
        ({"inner": (slice(0, 3),)}, ValueError, "inner must be slices"),
        ({"inner": (slice(0, 14), slice(0, 110))}, ValueError, "inner must be slices"),
        ({"inner": (slice(3, 3), slice(0, 110))}, ValueError, "inner must be slices"),
        ({"inner": (slice(None), slice(0, 110))}, ValueError, "inner must be slices"),
        ({"inner": (slice(-2, 13), slice(0, 110))}, ValueError, "inner must be slices"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_errors_name_the_argument(changes: dict, error: type, match: str) -> None:
    state, params = arrays_of(CASES[0])
    own = {name: changes[name] for name in changes if name in ArrayParams._fields}
    others = {name: value for name, value in changes.items() if name not in own}
    given = {"state": state, "params": params._replace(**own), "spec": CASES[0].spec, **others}
    with pytest.raises(error, match=match):
        perception_moments(**given)
