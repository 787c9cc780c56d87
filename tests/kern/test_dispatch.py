"""Which backend runs, what a refusal says, and what the environment changes."""

import pytest
import torch
from helpers import Case, make_inputs, run_case

import ncakern
from ncakern import _dispatch
from ncakern._env import VARIABLES, read_env


class FakeBackend:
    """Runs float32 only, and never gets to run here."""

    def why_not(self, problem: ncakern.Problem) -> str | None:
        return None if problem.dtype == "float32" else f"needs float32; got {problem.dtype}"


class AbsentBackend:
    """A backend that this machine lacks."""

    def why_not(self, problem: ncakern.Problem) -> str | None:
        return "it is not built"


@pytest.fixture
def problem() -> ncakern.Problem:
    return _dispatch._plain_problem("cpu")


def _install(monkeypatch: pytest.MonkeyPatch, **backends: object) -> None:
    for name, backend in backends.items():
        monkeypatch.setitem(_dispatch.BACKENDS, name, backend)
    monkeypatch.setattr(_dispatch, "_reported", set())


def test_auto_takes_the_first_that_can(monkeypatch: pytest.MonkeyPatch, problem: ncakern.Problem) -> None:
    _install(monkeypatch, triton=FakeBackend(), cpu=FakeBackend())
    assert _dispatch.choose_backend(problem) == "triton"
    _install(monkeypatch, triton=AbsentBackend())
    assert _dispatch.choose_backend(problem) == "cpu"


def test_auto_runs_float64_on_the_reference_without_a_word(
    monkeypatch: pytest.MonkeyPatch, problem: ncakern.Problem
) -> None:
    _install(monkeypatch, triton=FakeBackend(), cpu=FakeBackend())
    monkeypatch.setenv("NCAKERN_STRICT", "1")
    assert _dispatch.choose_backend(problem._replace(dtype="float64")) == "reference"


def test_fallback_warns_once_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, problem: ncakern.Problem, recwarn: pytest.WarningsRecorder
) -> None:
    _install(monkeypatch, triton=AbsentBackend(), cpu=AbsentBackend())
    with pytest.warns(RuntimeWarning, match=r"falls back to the slow reference \(triton: it is not built; cpu: it is"):
        assert _dispatch.choose_backend(problem) == "reference"
    recwarn.clear()
    assert _dispatch.choose_backend(problem) == "reference"
    assert not recwarn.list


def test_strict_makes_the_fallback_an_error(monkeypatch: pytest.MonkeyPatch, problem: ncakern.Problem) -> None:
    _install(monkeypatch, triton=AbsentBackend(), cpu=AbsentBackend())
    monkeypatch.setenv("NCAKERN_STRICT", "1")
    with pytest.raises(RuntimeError, match=r"NCAKERN_STRICT=1: no fast backend can run"):
        _dispatch.choose_backend(problem)


def test_explicit_choice_never_falls_back(monkeypatch: pytest.MonkeyPatch, problem: ncakern.Problem) -> None:
    _install(monkeypatch, cpu=FakeBackend())
    with pytest.raises(ValueError, match=r"backend='cpu' cannot run this call: needs float32; got float64"):
        _dispatch.choose_backend(problem._replace(dtype="float64"), "cpu")
    _install(monkeypatch, cpu=AbsentBackend())
    with pytest.raises(RuntimeError, match=r"backend='cpu' is not available: it is not built"):
        _dispatch.choose_backend(problem, "cpu")


def test_environment_names_the_backend_of_auto_only(monkeypatch: pytest.MonkeyPatch, problem: ncakern.Problem) -> None:
    _install(monkeypatch, cpu=FakeBackend())
    monkeypatch.setenv("NCAKERN_BACKEND", "reference")
    assert _dispatch.choose_backend(problem) == "reference"
    assert _dispatch.choose_backend(problem, "cpu") == "cpu"


def test_absent_module_and_broken_module_say_so(problem: ncakern.Problem) -> None:
    absent = _dispatch.Unavailable("triton", ModuleNotFoundError("no", name="ncakern.backends.triton"))
    broken = _dispatch.Unavailable("triton", ImportError("libfoo.so: cannot open"))
    assert absent.why_not(problem) == "it is not part of this version of ncakern"
    assert broken.why_not(problem) == "it cannot be imported: libfoo.so: cannot open"


def test_explain_gives_a_reason_for_each_backend() -> None:
    inputs = make_inputs(Case(size=(3, 3))).to(torch.float64, torch.float64)
    reasons = ncakern.explain(inputs.state, inputs.params, ncakern.RolloutSpec(), 3)
    assert list(reasons) == list(ncakern.backends()) == ["triton", "cpu", "reference"]
    assert reasons["reference"] is None
    assert reasons["cpu"] and reasons["triton"]


@pytest.mark.parametrize("name", list(VARIABLES))
def test_environment_is_parsed_strictly(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name} must be one of .*; got 'yes'"):
        read_env({name: "yes"})
    assert read_env({}) == ("auto", "auto", "auto", "auto", True, False)


def test_a_wrong_environment_is_noticed_by_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCAKERN_BACKEND", "gpu")
    case = Case(size=(3, 3))
    with pytest.raises(ValueError, match="NCAKERN_BACKEND"):
        run_case(case, make_inputs(case), backend="auto")
