"""Kernel tests: uninitialised memory holds NaN, so that a value nobody wrote is seen; one thread by default."""

import os
from collections.abc import Iterator

import interpreter
import pytest
import torch

if torch.cuda.is_available():
    # What torch asks for before cuBLAS may run under use_deterministic_algorithms, which fills fresh memory with NaN.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@pytest.fixture
def triton_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the triton backend run on CPU tensors."""
    reason = interpreter.why_not()
    if reason is not None:
        pytest.skip(reason)
    monkeypatch.setenv("TRITON_INTERPRET", "1")


@pytest.fixture
def tensor_cores(triton_interpreter: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let TF32 products in the interpreter err as those of tensor cores do, and form float32 ones by three of them."""
    from triton.runtime.interpreter import InterpreterBuilder

    plain = InterpreterBuilder.create_dot
    monkeypatch.setattr(InterpreterBuilder, "create_dot", interpreter.tensor_core_dot(plain))
    monkeypatch.setenv("NCAKERN_TRITON_PRECISION", "tf32x3")


@pytest.fixture(autouse=True)
def _nan_filled_memory() -> Iterator[None]:
    # In this mode torch fills what torch.empty, empty_like and new_empty return with NaN.
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    # The cases are tiny: on a busy machine more threads would spend their time waiting for each other.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
