"""Which backend runs a call: decided once, from metadata alone, with a reason for every refusal."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

import torch

from ncakern._env import read_env
from ncakern._spec import Problem, RolloutSpec

REFERENCE = "reference"
# The order of "auto", and the kind of device each backend is for. After them comes the reference, which runs everything
# everywhere and is no module of ncakern.backends.
DEVICES = {"triton": "cuda", "cpu": "cpu"}
NAMES = (*DEVICES, REFERENCE)


class Unavailable:
    """Stands for a backend whose module cannot be imported, and remembers why."""

    def __init__(self, name: str, error: ImportError) -> None:
        self.error = error
        is_absent = isinstance(error, ModuleNotFoundError) and error.name == f"ncakern.backends.{name}"
        self.reason = "it is not part of this version of ncakern" if is_absent else f"it cannot be imported: {error}"

    def why_not(self, problem: Problem) -> str | None:
        return self.reason


def _import_backend(name: str) -> Any:
    """The backend's module, which exports what `backends/__init__.py` says; or what stands for it."""
    try:
        return importlib.import_module(f"ncakern.backends.{name}")
    except ImportError as error:
        return Unavailable(name, error)


BACKENDS: dict[str, Any] = {name: _import_backend(name) for name in DEVICES}

_reported: set[str] = set()


def choose_backend(problem: Problem, backend: str = "auto") -> str:
    """The backend that runs ``problem``: the one asked for, or with "auto" the first that can.

    Raises:
        TypeError: ``backend`` is not a string.
        ValueError: there is no such backend, or the one asked for cannot run this call.
        RuntimeError: the one asked for is not built; or "auto" fell back to the reference and NCAKERN_STRICT is 1.
    """
    if not isinstance(backend, str):
        raise TypeError(f"backend must be a string; got {type(backend).__name__}")
    if backend not in ("auto", *NAMES):
        raise ValueError(f"backend must be one of {', '.join(('auto', *NAMES))}; got {backend!r}")
    env = read_env()
    if backend == "auto":
        backend = env.backend
    if problem.device == "meta" and backend != REFERENCE:
        return "cpu"  # there is nothing to compute with: the operators' rules for shapes answer
    if backend == "auto":
        for name in BACKENDS:
            if BACKENDS[name].why_not(problem) is None:
                return name
        _report_fallback(problem, strict=env.strict)
        return REFERENCE
    if backend == REFERENCE:
        return backend
    reason = BACKENDS[backend].why_not(problem)
    if reason is not None:
        missing = backends()[backend]
        if missing is not None:
            raise RuntimeError(f"backend={backend!r} is not available: {missing}")
        raise ValueError(f"backend={backend!r} cannot run this call: {reason}")
    return backend


def explain(problem: Problem) -> dict[str, str | None]:
    """Why each backend, in the order of choice, cannot run ``problem``; None for those that can."""
    return {name: BACKENDS[name].why_not(problem) for name in BACKENDS} | {REFERENCE: None}


def backends() -> dict[str, str | None]:
    """Why each backend, in the order of choice, cannot run on this machine at all; None for those that can.

    Example:
        >>> backends()["reference"] is None
        True
    """
    return {name: BACKENDS[name].why_not(_plain_problem(DEVICES[name])) for name in BACKENDS} | {REFERENCE: None}


def _plain_problem(device: str) -> Problem:
    """A call that every backend for ``device`` can run: whoever refuses it cannot run on this machine."""
    return Problem(
        device=device,
        dtype="float32",
        batch=1,
        size=(8, 8),
        channels=16,
        hidden=64,
        num_filters=1,
        kernel=(3, 3),
        spec=RolloutSpec(),
        steps=1,
    )


def _report_fallback(problem: Problem, *, strict: bool) -> None:
    """Say once per reason that the slow definition runs; float64 is exempt, as nothing else computes in it."""
    if problem.dtype == "float64":
        return
    reasons = "; ".join(f"{name}: {BACKENDS[name].why_not(problem)}" for name in BACKENDS)
    message = (
        f"no fast backend can run this call on device={problem.device}, so it falls back to the slow reference "
        f"({reasons}). Choose backend='reference' or set NCAKERN_BACKEND=reference if that is what you want"
    )
    if strict:
        raise RuntimeError(f"NCAKERN_STRICT=1: {message}")
    _warn_once(message)


@torch.compiler.assume_constant_result  # under torch.compile: said while tracing, not part of the graph
def _warn_once(message: str) -> None:
    if message not in _reported:
        _reported.add(message)
        warnings.warn(message, RuntimeWarning, stacklevel=5)
