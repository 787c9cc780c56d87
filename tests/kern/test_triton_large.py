"""The kernels for any sizes, in Triton's interpreter, against float64: also on sizes that others usually run."""

import dataclasses
from types import ModuleType

import pytest
import torch
from helpers import Case, assert_matches, make_inputs, run_case, run_with_gradients

import ncakern
from ncakern.backends.triton import tiles_large

pytestmark = pytest.mark.usefixtures("triton_interpreter")

BF16, FP16 = torch.bfloat16, torch.float16
DENSE = {"perception": "dense"}

CASES = [
    # Dense filters: one to three of them, every padding, hidden units and outputs that fill no block.
    Case(size=(3, 5), channels=5, hidden=17, num_filters=2, batch=1, steps=2, options=DENSE),
    Case(size=(5, 3), channels=3, hidden=5, num_filters=3, steps=1, options={**DENSE, "padding": "zeros"}),
    Case(
        size=(1, 4), channels=18, hidden=33, batch=1, steps=1, kernel=(1, 5), options={**DENSE, "padding": "replicate"}
    ),
    Case(
        size=(2, 3, 3),
        channels=3,
        hidden=5,
        batch=1,
        steps=1,
        kernel=(3, 1, 3),
        options={**DENSE, "padding": "circular"},
    ),
    Case(size=(3, 3), channels=33, hidden=70, num_filters=2, batch=1, steps=1, options={**DENSE, "frozen_channels": 2}),
    # Depthwise ones.
    Case(size=(3, 4), channels=5, hidden=17, num_filters=2, steps=2, options={"activation": "leaky_relu"}),
    Case(size=(1, 3), channels=17, hidden=5, kernel=(1, 5), batch=1, steps=1),
    Case(size=(2, 3, 2), channels=3, hidden=5, batch=1, steps=1, options={"padding": "circular", "frozen_channels": 1}),
    Case(size=(1, 1), channels=1, hidden=1, kernel=(1, 1), batch=3, steps=2),
    # Norms, which every cell feels.
    Case(size=(4, 5), channels=5, hidden=17, num_filters=2, steps=2, options={**DENSE, "norm": "batch"}),
    Case(size=(3, 4), channels=3, hidden=5, batch=3, steps=1, options={"norm": "instance", "padding": "zeros"}),
    Case(size=(2, 2, 3), channels=3, hidden=5, batch=1, steps=1, options={"norm": "batch", "padding": "replicate"}),
    # Modulation, perception of something else, tiles, the ends of the fire rate.
    Case(size=(3, 3), channels=3, hidden=5, batch=2, steps=1, has_modulation=True, options=DENSE),
    Case(size=(3, 4), channels=3, hidden=5, steps=1, has_modulation=True, options={"norm": "batch"}),
    Case(size=(4, 3), channels=3, hidden=5, steps=1, has_perceive_from=True, options=DENSE),
    Case(size=(3, 3), channels=3, hidden=5, steps=1, has_perceive_from=True, options={"norm": "instance"}),
    Case(
        size=(2, 9),
        channels=3,
        steps=1,
        call={"origin": (4, 7), "extent": (11, 19), "first_step": 9, "first_sample": 3},
    ),
    Case(size=(2, 3, 5), channels=3, steps=1, batch=1, call={"origin": (1, 2, 7), "extent": (7, 8, 18)}),
    Case(size=(3, 3), channels=3, hidden=5, steps=1, options={**DENSE, "fire_rate": 1.0}),
    Case(size=(3, 3), channels=3, hidden=5, steps=1, options={**DENSE, "fire_rate": 0.0}),
    # Storage in 16 bits.
    Case(size=(5, 7), channels=5, hidden=17, steps=2, dtype=BF16, options={"norm": "batch"}),
]
# 16 bits once more: test_triton_interpreter.py has them for dense filters, and float16 for depthwise ones.
LONG = [
    Case(size=(5, 7), channels=16, hidden=40, num_filters=2, batch=1, dtype=BF16, options=DENSE),
    Case(size=(4, 5), channels=5, hidden=17, steps=2, dtype=FP16, options=DENSE),
]


@pytest.fixture
def launcher(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The family under test, made to take every problem."""
    from ncakern.backends.triton import launch, launch_large

    monkeypatch.setattr(launch, "_choose_family", lambda rollout: launch_large)
    return launch_large


@pytest.fixture
def small_tiles(launcher: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles so small that a tiny problem has several of each kind, and each sum several parts of several tiles."""

    def choose(*sizes: int, **options: object) -> tiles_large.LargeTile:
        chosen = dataclasses.asdict(tiles_large.choose_large_tile(*sizes, **options))
        least = dict.fromkeys(("BLOCK", "HC", "CT", "FCT"), 16)
        shrunk = {kernel: tile | {k: least[k] for k in tile if k in least} for kernel, tile in chosen.items()}
        return tiles_large.LargeTile(**shrunk)

    monkeypatch.setattr(launcher, "choose_large_tile", choose)
    monkeypatch.setattr(launcher, "num_splits", lambda programs, cells, block: 2)


def check(case: Case) -> None:
    """The result and all gradients against float64; what must keep its bits."""
    inputs = make_inputs(case).to(case.dtype, torch.float32)
    exact = run_with_gradients(case, inputs.to(torch.float64, torch.float64), backend="reference")
    plain = run_with_gradients(case, inputs, backend="reference")
    actual = run_with_gradients(case, inputs, backend="triton")
    assert actual["out"].dtype == case.dtype
    for name, tensor in actual.items():
        assert_matches(tensor, plain[name], exact[name], name=name)
    if case.steps == 1:
        stream = {"first_step": 0, **case.call}
        shape, step = tuple(inputs.state.shape[:-1]), stream.pop("first_step")
        fires = ncakern.fire_mask(shape, seed=7, step=step, fire_rate=case.spec.fire_rate, **stream)
        frozen = case.spec.frozen_channels
        assert torch.equal(actual["out"][~fires], inputs.state[~fires])
        assert torch.equal(actual["out"][..., :frozen], inputs.state[..., :frozen])


@pytest.mark.parametrize(
    "case", [*CASES, *(pytest.param(case, marks=pytest.mark.long) for case in LONG)], ids=lambda case: case.id
)
def test_result_and_gradients_match_float64(case: Case, launcher: ModuleType) -> None:
    check(case)


@pytest.mark.parametrize(
    "case",
    [
        Case(size=(7, 9), channels=18, hidden=37, batch=2, steps=1, kernel=(3, 1), options=DENSE),
        Case(
            size=(7, 9),
            channels=9,
            hidden=19,
            num_filters=2,
            batch=1,
            steps=1,
            kernel=(1, 3),
            options={"norm": "batch"},
        ),
    ],
    ids=lambda case: case.id,
)
def test_many_tiles_match_float64(case: Case, small_tiles: None) -> None:
    check(case)


def test_three_tf32_products_match_float64(launcher: ModuleType, tensor_cores: None) -> None:
    options = {**DENSE, "fire_rate": 1.0}  # 256 cells in one sum
    check(Case(size=(8, 32), channels=5, hidden=17, batch=1, steps=1, options=options))


@pytest.mark.parametrize("fire_rate", [0.0, 0.3, 1.0])
def test_work_list_is_the_fire_mask(fire_rate: float, monkeypatch: pytest.MonkeyPatch) -> None:
    from ncakern.backends.triton import work_list

    monkeypatch.setattr(work_list, "_BLOCK", 32)  # several blocks in a sample
    rollout = _describe(size=(3, 5, 9), fire_rate=fire_rate, origin=(2, 4, 3), extent=(9, 11, 13))
    expected = ncakern.fire_mask(
        (2, 3, 5, 9),
        seed=-5,
        step=2**32 - 1,
        fire_rate=fire_rate,
        first_sample=2**32 - 1,
        origin=(2, 4, 3),
        extent=(9, 11, 13),
    )
    listed, counts = work_list.work_list(rollout, 1, torch.device("cpu"))
    assert listed.dtype == torch.int32
    for b in range(2):
        assert listed[b, : counts[b]].tolist() == expected[b].flatten().nonzero().flatten().tolist()


def _describe(*, size: tuple[int, ...], fire_rate: float, **stream: tuple[int, ...]) -> object:
    """A rollout whose samples and steps count past the end of 32 bits."""
    from ncakern.backends.triton import launch

    inputs = make_inputs(Case(size=size))
    others = (*inputs.params[:4], None, None, inputs.params.out_weight, None, None, None)
    spec = ncakern.RolloutSpec(fire_rate=fire_rate)
    draw, left = launch._write_draw(inputs.state, spec, seed=-5, first_step=2**32 - 2, first_sample=2**32 - 1, **stream)
    return launch._describe(inputs.state, others, spec=spec, draw=draw, left=left)


def test_statistics_hold_far_from_zero(launcher: ModuleType) -> None:
    case = Case(size=(5, 7), channels=5, hidden=17, batch=1, steps=1, options={**DENSE, "norm": "batch"})
    inputs = make_inputs(case)
    with torch.no_grad():
        inputs.state.add_(100)
    exact = run_with_gradients(case, inputs.to(torch.float64, torch.float64), backend="reference")
    plain = run_with_gradients(case, inputs, backend="reference")
    for name, tensor in run_with_gradients(case, inputs, backend="triton").items():
        assert_matches(tensor, plain[name], exact[name], name=name)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # numpy, inside the interpreter
@pytest.mark.parametrize("options", [{}, DENSE], ids=str)
def test_nan_and_infinity_spread_as_in_the_reference(options: dict, launcher: ModuleType) -> None:
    case = Case(size=(7, 7), steps=1, options={"fire_rate": 1.0, **options})
    inputs = make_inputs(case)
    with torch.no_grad():
        inputs.state[0, 4, 4, 1] = float("nan")
        inputs.state[1, 2, 2, 0] = float("inf")
    expected = run_case(case, inputs, backend="reference")
    assert torch.equal(run_case(case, inputs, backend="triton").isfinite(), expected.isfinite())


def test_autocast_does_not_reach_inside(launcher: ModuleType) -> None:
    case = Case(size=(3, 3), channels=3, hidden=5, batch=1, steps=1, options={**DENSE, "norm": "batch"})
    inputs = make_inputs(case)
    expected = run_with_gradients(case, inputs, backend="triton")
    with torch.autocast("cpu", dtype=BF16):
        actual = run_with_gradients(case, inputs, backend="triton")
    for name in expected:
        assert torch.equal(actual[name], expected[name]), name


def test_two_runs_give_the_same_bits(launcher: ModuleType) -> None:
    case = Case(size=(3, 5), channels=5, batch=1, steps=2, keep_every=2, options={**DENSE, "norm": "batch"})
    inputs = make_inputs(case)
    first, second = (run_with_gradients(case, inputs, backend="triton") for _ in range(2))
    for name in first:
        assert torch.equal(first[name], second[name]), name


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"channels": 513, "filters": 1, "cells": 9}, "513"),
        ({"channels": 400, "filters": 3, "cells": 9}, "3 * 400"),
        ({"channels": 16, "filters": 1, "cells": 2**31}, "2147483648"),
    ],
)
def test_refuses_with_a_reason(sizes: dict[str, int], message: str) -> None:
    reason = tiles_large.why_not(**sizes)
    assert reason is not None and message in reason
