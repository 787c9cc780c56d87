"""The numpy entry: the bits of the cpu backend, in place too, and every error names its argument."""

import numpy as np
import pytest
import torch
from helpers import Case, make_inputs, run_case

import ncakern
from ncakern import _kernel
from ncakern.arrays import ArrayParams, default_threads, nca_rollout

pytestmark = pytest.mark.skipif(ncakern.backends()["cpu"] is not None, reason="the extension is not built")

CASES = [
    Case(size=(7, 9), channels=5, hidden=11, steps=3, batch=2),
    Case(size=(5, 6, 7), channels=16, hidden=33, steps=2, options={"norm": "batch", "frozen_channels": 1}),
    Case(size=(4, 6, 5), channels=4, hidden=9, steps=4, batch=3, options={"norm": "instance", "padding": "zeros"}),
    Case(size=(6, 5), channels=3, hidden=8, steps=2, num_filters=2, options={"perception": "dense"}),
    Case(size=(6, 5), channels=3, hidden=8, steps=1, has_perceive_from=True),
    Case(size=(6, 5), channels=3, hidden=8, has_out_bias=True, options={"activation": "tanh", "clamp": (-0.9, 0.8)}),
    Case(size=(6, 5), channels=3, hidden=8, steps=2, call={"origin": (3, 4), "extent": (20, 17), "first_step": 5}),
]


def arrays_of(case: Case) -> tuple[np.ndarray, ArrayParams, np.ndarray | None]:
    inputs = make_inputs(case)
    params = ArrayParams(*[None if t is None else t.detach().numpy() for t in inputs.params])
    source = None if inputs.perceive_from is None else inputs.perceive_from.detach().numpy()
    return inputs.state.detach().numpy(), params, source


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
@pytest.mark.parametrize("in_place", [False, True])
def test_bits_are_those_of_the_cpu_backend(case: Case, in_place: bool) -> None:
    state, params, source = arrays_of(case)
    with torch.no_grad():
        expected = run_case(case, make_inputs(case), backend="cpu").numpy()
    own = state.copy()
    out = own if in_place else None
    result = nca_rollout(own, params, case.spec, case.steps, seed=7, perceive_from=source, out=out, **case.call)
    assert np.array_equal(result, expected) and not np.array_equal(result, state)
    assert (result is own) == in_place
    assert in_place or np.array_equal(own, state)


def test_no_step_is_a_copy() -> None:
    state, params, _ = arrays_of(CASES[0])
    result = nca_rollout(state, params, CASES[0].spec, 0, seed=0)
    assert np.array_equal(result, state) and result is not state


def test_layout_of_the_input_does_not_matter() -> None:
    case = CASES[0]
    state, params, _ = arrays_of(case)
    permuted = np.asfortranarray(state)
    a, b = (nca_rollout(given, params, case.spec, 2, seed=1) for given in (state, permuted))
    assert np.array_equal(a, b)


@pytest.mark.parametrize(("value", "threads"), [("3", 3), ("2,4", 2), ("", None), ("x", None)])
def test_threads_follow_the_environment(monkeypatch: pytest.MonkeyPatch, value: str, threads: int | None) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert default_threads() == threads if threads is not None else default_threads() >= 1


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"state": [1.0]}, TypeError, "state must be a numpy array"),
        ({"state": np.zeros((1, 4, 4, 5))}, TypeError, "state must be float32"),
        ({"state": np.zeros((4, 4, 5), np.float32)}, ValueError, "state must be"),
        ({"state": np.zeros((1, 1, 4, 5), np.float32)}, ValueError, "state must have at least 2 cells"),
        ({"steps": 1.5}, TypeError, "steps must be an int"),
        ({"steps": -1}, ValueError, "steps must be at least 0"),
        ({"seed": None}, TypeError, "seed must be an int"),
        ({"origin": (0, 0)}, ValueError, "extent must be given together with origin"),
        ({"origin": (0,), "extent": (9, 9)}, ValueError, "origin must have one entry per spatial axis"),
        ({"origin": (5, 5), "extent": (9, 9)}, ValueError, "origin must place the tile inside"),
        ({"out": np.zeros((2, 7, 9, 5))}, TypeError, "out must be a contiguous float32"),
        ({"out": np.zeros((2, 7, 9, 4), np.float32)}, ValueError, "out must have shape"),
        ({"perceive_from": np.zeros((2, 7, 9, 5), np.float32)}, ValueError, "steps must be 1"),
        ({"perceive_weight": np.zeros((1, 5, 2, 3), np.float32)}, ValueError, "perceive_weight must have an odd"),
        ({"hidden_bias": np.zeros(3, np.float32)}, ValueError, "hidden_bias must have shape"),
        ({"out_weight": np.zeros((5, 11))}, TypeError, "out_weight must be float32"),
        ({"out_bias": np.zeros(11, np.float32)}, ValueError, "out_bias must have shape"),
        ({"norm_bias": np.zeros(11, np.float32)}, ValueError, "norm_bias must be None"),
        ({"spec": ncakern.RolloutSpec(frozen_channels=6)}, ValueError, "frozen_channels must be at most 5"),
        ({"spec": ncakern.RolloutSpec(norm="batch")}, TypeError, "norm_weight must be a numpy array"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_errors_name_the_argument(changes: dict, error: type, match: str) -> None:
    state, params, _ = arrays_of(CASES[0])
    own = {name: changes.pop(name) for name in list(changes) if name in ArrayParams._fields}
    given = {"state": state, "params": params._replace(**own), "spec": CASES[0].spec, "steps": 2, "seed": 0, **changes}
    with pytest.raises(error, match=match):
        nca_rollout(**given)


def test_without_the_extension_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    state, params, _ = arrays_of(CASES[0])
    monkeypatch.setattr(_kernel, "import_extension", lambda: ImportError("no such module"))
    with pytest.raises(RuntimeError, match=r"_cpu is not built .*\(no such module\); reinstall with a C\+\+ compiler"):
        nca_rollout(state, params, CASES[0].spec, 1, seed=0)
