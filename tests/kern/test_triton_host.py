"""The host's side of the triton backend: which kernels it launches, with launches recorded and not run."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import Case, make_inputs, run_case
from kern.test_ops import _operator_arguments

from ncakern import ops

DENSE = {"perception": "dense"}


@pytest.fixture
def launches(triton_interpreter: None, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the kernels that have been launched; none of them runs, so results hold what memory held."""
    from triton.runtime import interpreter

    found: list[str] = []

    def record(executor: Any, *args: Any, **keywords: Any) -> None:
        found.append(executor.fn.__name__)

    monkeypatch.setattr(interpreter.GridExecutor, "__call__", record)
    return found


@pytest.mark.parametrize(("is_dynamic", "options"), [(False, {}), (True, DENSE)], ids=["static", "dynamic-dense"])
def test_compiled_rollout_launches_what_an_eager_one_does(is_dynamic: bool, options: dict, launches: list[str]) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(run_case, fullgraph=True, backend="aot_eager", dynamic=is_dynamic)
    for size in ((3, 5), (4, 6)):
        case = Case(size=size, steps=2, options=options)
        inputs = make_inputs(case)
        found = []
        for run in (run_case, compiled):
            launches.clear()
            out = run(case, inputs, backend="triton")
            torch.autograd.grad(out.sum(), list(inputs.named().values()))
            found.append(list(launches))
        assert found[0] == found[1] and any("bwd" in name for name in found[0])
    torch._dynamo.reset()


@pytest.mark.parametrize("seed", [7, -5, 2**63 - 1])
def test_a_seed_on_the_device_is_read_there(seed: int, triton_interpreter: None) -> None:
    from ncakern.backends.triton import launch

    state, spec = torch.zeros(1, 2, 3, 4), Case(size=(2, 3)).spec
    call = {"first_step": 1, "first_sample": 2, "origin": (0, 0), "extent": (2, 3)}
    expected, _ = launch._write_draw(state, spec, seed=seed, **call)
    words, _ = launch._write_draw(state, spec, seed=torch.tensor(seed), **call)
    assert words.tolist() == expected.tolist()


def test_the_host_waits_for_no_seed_on_the_device() -> None:
    here, there = torch.tensor(3), SimpleNamespace(is_cuda=True)
    assert ops._seed(there, there) is there
    assert ops._seed(here, there) == ops._seed(here, here) == 3


def test_gradients_need_nothing_kept(triton_interpreter: None) -> None:
    """As in a graph that was traced without gradients: the forward pass runs again."""
    options = {"padding": "zeros", "norm": "batch"}
    case = Case(size=(1, 3), channels=3, hidden=5, steps=2, batch=1, options=options)
    given = [
        a.detach() if isinstance(a, torch.Tensor) else a
        for a in _operator_arguments(case, make_inputs(case), "triton", keep=True)
    ]
    out, kept, stats = ops.nca_rollout(*given)
    expected = ops.nca_rollout_bwd(torch.ones_like(out), kept, stats, *given[:-1])
    actual = ops.nca_rollout_bwd(torch.ones_like(out), kept[:0], stats.new_empty(0, 0, 0), *given[:-1])
    assert len(kept) and stats.numel()
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
