"""Makes the Triton kernels run in Triton's interpreter, on machines without an accelerator. Import this first.

A Triton function is made for the interpreter or for the compiler when it is defined; Triton's own ones (`tl.sum`) when
triton is imported, and torch._dynamo imports triton. The variable that decides is set for the imports only: left in
place, it would make backend="auto" run the interpreter on every CPU tensor.
"""

import importlib
import importlib.util
import os

import torch

HAS_TRITON = importlib.util.find_spec("triton") is not None

if HAS_TRITON and not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
    importlib.import_module("ncakern.backends.triton.launch")
    del os.environ["TRITON_INTERPRET"]


def why_not() -> str | None:
    """Why kernels cannot run in the interpreter in this process; None if they can."""
    if not HAS_TRITON:
        return "needs triton; it comes with the extra 'test'"
    if torch.cuda.is_available():
        return "this process compiles its kernels for the accelerator; the tests marked gpu take its place"
    from triton import language, runtime

    if isinstance(language.sum, runtime.JITFunction):
        raise RuntimeError("triton was imported before tests/interpreter.py; name tests before anything else, or alone")
    return None
