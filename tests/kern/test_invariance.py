"""What must not change a result: threads, batch mates, tiles, the way a rollout is split."""

from dataclasses import replace

import pytest
import torch
from helpers import Case, Inputs, assert_matches, make_inputs, run_case, run_with_gradients

import ncakern

CASES = [
    Case(size=(33, 47), channels=16, hidden=64, batch=1),
    Case(size=(9, 7, 11), channels=16, hidden=64, options={"norm": "batch", "frozen_channels": 1}),
    Case(size=(5, 9), channels=5, batch=3, options={"norm": "instance"}),
    Case(size=(17, 9), channels=5, num_filters=2, options={"perception": "dense", "padding": "zeros"}),
    Case(size=(11, 9), channels=5, hidden=70, options={"activation": "gelu", "padding": "circular"}),
    Case(size=(11, 13), channels=5, options={"clamp": (-0.9, 0.8), "padding": "zeros"}),
    Case(size=(9, 12), channels=5, hidden=70, has_out_bias=True, options={"frozen_channels": 2}),
    Case(size=(13, 8), channels=7, kernel=(5, 7), dtype=torch.bfloat16, options={"padding": "replicate"}),
]
NO_NORM = [case for case in CASES if case.spec.norm == "none"]


@pytest.fixture(params=[name for name in ncakern.backends() if name != "triton"])
def backend(request: pytest.FixtureRequest) -> str:
    reason = ncakern.backends()[request.param]
    if reason is not None:
        pytest.skip(f"backend {request.param}: {reason}")
    return request.param


def _assert_same(actual: torch.Tensor, expected: torch.Tensor, backend: str) -> None:
    """Bits on a fast backend. The reference calls matrix products whose order of summation depends on the shape."""
    if backend != "reference":
        assert torch.equal(actual, expected)
    else:
        rounding = 1e-5 if actual.dtype == torch.float32 else 2e-2
        torch.testing.assert_close(actual, expected, rtol=rounding, atol=rounding)


def _inputs(case: Case) -> Inputs:
    return make_inputs(case).to(case.dtype, torch.float32)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_threads_change_no_forward_bit(case: Case, backend: str) -> None:
    inputs = _inputs(case)
    expected = run_case(case, inputs, backend=backend)  # one thread
    for threads in (2, 3):
        torch.set_num_threads(threads)
        _assert_same(run_case(case, inputs, backend=backend), expected, backend)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
@pytest.mark.parametrize("threads", [2, 3])
def test_gradients_are_right_for_any_number_of_threads(case: Case, threads: int) -> None:
    if ncakern.backends()["cpu"] is not None:
        pytest.skip(ncakern.backends()["cpu"])
    inputs = _inputs(case)
    exact = run_with_gradients(case, inputs.to(torch.float64, torch.float64), backend="reference")
    plain = run_with_gradients(case, inputs, backend="reference")
    torch.set_num_threads(threads)
    for name, tensor in run_with_gradients(case, inputs, backend="cpu").items():
        assert_matches(tensor, plain[name], exact[name], name=name)


@pytest.mark.parametrize("case", NO_NORM, ids=lambda case: case.id)
def test_a_sample_alone_equals_the_sample_in_a_batch(case: Case, backend: str) -> None:
    case = replace(case, batch=3)
    inputs = _inputs(case)
    together = run_case(case, inputs, backend=backend)
    for sample in range(3):
        alone = replace(inputs, state=inputs.state[sample : sample + 1])
        out = run_case(case, alone, backend=backend, first_sample=sample)
        _assert_same(out[0], together[sample], backend)


def test_instance_norm_equals_batch_norm_one_by_one(backend: str) -> None:
    together = Case(size=(5, 6, 7), channels=16, hidden=64, batch=3, options={"norm": "instance"})
    one = replace(together, batch=1, options={"norm": "batch"})
    inputs = make_inputs(together)
    out = run_case(together, inputs, backend=backend)
    for sample in range(3):
        alone = replace(inputs, state=inputs.state[sample : sample + 1])
        expected = run_case(one, alone, backend=backend, first_sample=sample)
        torch.testing.assert_close(out[sample], expected[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_five_and_five_steps_equal_ten(case: Case, backend: str) -> None:
    inputs = _inputs(case)
    ten, five = replace(case, steps=10), replace(case, steps=5)
    half = replace(inputs, state=run_case(five, inputs, backend=backend))
    _assert_same(run_case(five, half, backend=backend, first_step=5), run_case(ten, inputs, backend=backend), backend)


TILED = [
    Case(size=(21, 33), channels=16, hidden=64, steps=3),
    Case(size=(19, 23), channels=5, kernel=(5, 3), num_filters=2, steps=2, options={"padding": "zeros"}),
    Case(size=(17, 30), channels=8, hidden=16, steps=2, options={"perception": "dense", "padding": "replicate"}),
    Case(size=(9, 11, 23), channels=16, hidden=64, steps=2),
    Case(
        size=(19, 26),
        channels=8,
        hidden=16,
        steps=2,
        has_out_bias=True,
        options={"activation": "silu", "clamp": (-0.9, 0.8)},
    ),
]


@pytest.mark.parametrize("case", TILED, ids=lambda case: case.id)
def test_tiles_with_a_halo_equal_the_whole(case: Case, backend: str) -> None:
    inputs = make_inputs(case)
    whole = run_case(case, inputs, backend=backend)
    kernel = case.kernel or (3,) * len(case.size)
    halo = [case.steps * (k - 1) // 2 for k in kernel]
    starts = [(0, size // 3, 2 * size // 3) for size in case.size]
    for tile in zip(*starts, strict=True):  # a corner, the middle, and what remains
        stop = [start + size // 3 if start < size // 2 else size for start, size in zip(tile, case.size, strict=True)]
        low = [max(0, a - h) for a, h in zip(tile, halo, strict=True)]
        high = [min(size, b + h) for b, h, size in zip(stop, halo, case.size, strict=True)]
        with_halo = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        part = replace(inputs, state=inputs.state[(slice(None), *with_halo)])
        out = run_case(case, part, backend=backend, origin=tuple(low), extent=case.size)
        inner = tuple(slice(a - o, b - o) for a, b, o in zip(tile, stop, low, strict=True))
        expected = whole[(slice(None), *(slice(a, b) for a, b in zip(tile, stop, strict=True)))]
        _assert_same(out[(slice(None), *inner)], expected, backend)


def test_drawn_seeds_follow_manual_seed(backend: str) -> None:
    case = Case(size=(9, 9))
    inputs = make_inputs(case)

    def draw() -> torch.Tensor:
        return run_case(case, inputs, backend=backend, seed=None)

    torch.manual_seed(5)
    first, second = draw(), draw()
    torch.manual_seed(5)
    assert torch.equal(draw(), first) and not torch.equal(second, first)
