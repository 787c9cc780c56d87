"""The cache of captured rollouts with a stand-in for a graph; that a rollout in it is bit for bit the one without."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from helpers import Case, make_inputs, run_case, run_with_gradients
from torch import Tensor

from ncakern.backends.triton import graphs


class StandIn:
    """Records a function and its result, as a graph does, and computes that result again in place when replayed."""

    def __init__(self) -> None:
        self.captures, self.replays = 0, 0

    def __call__(self, function: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        self.captures += 1
        out = torch.full_like(function(), float("nan"))  # a capture runs nothing

        def replay() -> None:
            self.replays += 1
            out.copy_(function())

        return replay, out


def add(a: Tensor, b: Tensor) -> Tensor:
    return a + b


def test_a_key_runs_then_is_captured_then_replayed() -> None:
    capture = StandIn()
    cache = graphs.GraphCache(capture)
    results = []
    for number in range(4):
        results.append(cache.run("key", (torch.full((2,), float(number)), torch.ones(2)), add))
        assert (capture.captures, capture.replays) == (min(number, 1), max(0, number - 1))
    # Each is a tensor of its own, from the arguments of its call.
    assert [result.tolist() for result in results] == [[1.0 + number] * 2 for number in range(4)]


def test_arguments_are_copied_and_not_written() -> None:
    cache = graphs.GraphCache(StandIn())
    argument = torch.zeros(2)
    for _ in range(3):
        cache.run("key", (argument,), lambda own: own.add_(1) if own is not argument else own + 1)
    assert not argument.any()


@pytest.mark.parametrize("modes", [(True, True, False), (False, False, True)], ids=["inference", "no_grad"])
def test_inference_mode_and_no_grad_share_a_graph(modes: tuple[bool, ...]) -> None:
    capture = StandIn()
    cache = graphs.GraphCache(capture)
    for number, is_inference in enumerate(modes):
        with torch.inference_mode(is_inference), torch.no_grad():
            result = cache.run("key", (torch.full((2,), float(number)), torch.ones(2)), add)
            assert result.tolist() == [1.0 + number] * 2
    assert (capture.captures, capture.replays) == (1, 1)


def test_the_least_recently_used_graph_goes() -> None:
    capture = StandIn()
    cache = graphs.GraphCache(capture, size=2)
    one = torch.ones(1)
    for key in "aabbaac":  # a and b are captured, a is used again, c takes the place of b
        cache.run(key, (one, one), add)
    assert len(cache) == 1 and capture.captures == 2
    cache.run("a", (one, one), add)
    assert capture.captures == 2 and capture.replays == 3
    cache.run("b", (one, one), add)
    assert capture.captures == 2  # as on its first call
    cache.clear()
    assert len(cache) == 0


def test_an_error_leaves_the_cache_as_it_was() -> None:
    def fail(function: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        raise RuntimeError("not captured")

    cache = graphs.GraphCache(fail)
    one = torch.ones(1)
    cache.run("key", (one, one), add)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="not captured"):
            cache.run("key", (one, one), add)
    assert len(cache) == 0


@pytest.fixture
def capture(triton_interpreter: None, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """Rollouts on the CPU go through a cache with a stand-in, whatever their device; no test shares it."""
    stand_in = StandIn()
    monkeypatch.setattr(graphs, "CACHE", graphs.GraphCache(stand_in))
    monkeypatch.setattr(graphs, "is_wanted", lambda state, keep: not keep)
    monkeypatch.setattr(graphs, "stream_key", lambda state: 0)
    return stand_in


ZEROS = {"padding": "zeros"}
SMALL = Case(size=(1, 5), channels=3, hidden=5, steps=1, batch=1, options=ZEROS)  # the interpreter is slow
ROLLOUTS = [
    replace(SMALL, steps=2, options={**ZEROS, "norm": "batch"}),
    replace(SMALL, options={**ZEROS, "perception": "dense"}),
    replace(SMALL, has_modulation=True, has_perceive_from=True),
]


@pytest.mark.parametrize("case", ROLLOUTS, ids=lambda case: case.id)
def test_replays_equal_rollouts_of_other_states_seeds_and_parameters(
    case: Case, capture: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = make_inputs(case)
    calls: list[dict] = [{"seed": seed, "first_step": seed} for seed in range(2)]
    if case.spec.norm == "none":  # with a norm, only whole images
        calls = [call | {"origin": (0, 4 * call["seed"]), "extent": (1, 99)} for call in calls]

    def run(call: dict) -> Tensor:
        return run_case(replace(case, call=call), inputs, backend="triton")

    def run_all() -> list[Tensor]:
        found = [run(call) for call in calls]
        for tensor in inputs.named().values():
            tensor.mul_(2)  # as an optimiser does: in place
        found.append(run(calls[0]))
        for tensor in inputs.named().values():
            tensor.div_(2)
        return found

    with torch.no_grad():
        run(calls[0])
        run(calls[0])
        replayed = run_all()
        assert (capture.captures, capture.replays) == (1, 3)
        monkeypatch.setattr(graphs, "is_wanted", lambda state, keep: False)
        direct = run_all()
    for a, b in zip(replayed, direct, strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(direct[0], direct[1]) and not torch.equal(direct[0], direct[2])


def test_each_kind_of_call_has_its_own_graph(capture: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    others = [
        replace(SMALL, size=(1, 6)),
        replace(SMALL, hidden=6),
        replace(SMALL, steps=2),
        replace(SMALL, batch=2),
        replace(SMALL, options={**ZEROS, "activation": "leaky_relu"}),
        replace(SMALL, has_modulation=True),
        replace(SMALL, dtype=torch.float16),
        replace(SMALL, call={"origin": (0, 1), "extent": (1, 9)}),  # another place in a group of four cells
    ]
    with torch.no_grad():
        for each in (SMALL, *others):
            inputs = make_inputs(each).to(each.dtype, torch.float32)
            run_case(each, inputs, backend="triton")
        monkeypatch.setenv("NCAKERN_TRITON_PRECISION", "tf32x3")
        run_case(SMALL, make_inputs(SMALL), backend="triton")
    assert capture.captures == 0  # each was the first of its kind


def test_a_rollout_with_gradients_is_not_captured(capture: StandIn) -> None:
    for _ in range(2):
        run_with_gradients(SMALL, make_inputs(SMALL), backend="triton")
    assert capture.captures == 0 and len(graphs.CACHE) == 0


def test_when_a_graph_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    def state(**changes: object) -> SimpleNamespace:
        numbers = {"is_cuda": True, "numel": lambda: 1000, "element_size": lambda: 4}
        return SimpleNamespace(**(numbers | changes))

    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert graphs.is_wanted(state(), keep=False)
    assert not graphs.is_wanted(state(), keep=True)
    assert not graphs.is_wanted(state(is_cuda=False), keep=False)
    assert not graphs.is_wanted(state(numel=lambda: 0), keep=False)
    assert not graphs.is_wanted(state(numel=lambda: graphs.MAX_BYTES), keep=False)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert not graphs.is_wanted(state(), keep=False)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setenv("NCAKERN_CUDA_GRAPHS", "0")
    assert not graphs.is_wanted(state(), keep=False)


def test_a_capture_uses_a_stream_of_the_current_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch would take one stream for all captures, made on the device of the first of them."""
    used = []

    @contextlib.contextmanager
    def record(graph: object, *, stream: object = None, **options: object) -> Iterator[None]:
        used.append(stream)
        yield

    device = iter(["first", "second"])
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: None))
    monkeypatch.setattr(torch.cuda, "Stream", lambda: f"a stream of the {next(device)} device")
    monkeypatch.setattr(torch.cuda, "graph", record)
    for _ in range(2):
        _, out = graphs._capture(lambda: torch.ones(1))
        assert out.item() == 1
    assert used == ["a stream of the first device", "a stream of the second device"]
