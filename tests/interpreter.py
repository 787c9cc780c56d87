"""Makes the Triton kernels run in Triton's interpreter, on machines without an accelerator. Import this first.

A Triton function is made for the interpreter or for the compiler when it is defined; Triton's own ones (`tl.sum`) when
triton is imported, and torch._dynamo imports triton. The variable that decides is set for the imports only: left in
place, it would make backend="auto" run the interpreter on every CPU tensor.
"""

import importlib
import importlib.util
import os
from typing import Any

import numpy as np
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


def tensor_core_dot(plain: Any) -> Any:
    """What to put in place of ``plain``, InterpreterBuilder.create_dot, to model tensor cores in TF32 products.

    They read 10 bits of mantissa, and after each eight terms cut off what does not fit into a float32. So the error of
    a long sum grows with its length, not with the root of it. See Fasi, Higham, Mikaitis and Pranesh, "Numerical
    behavior of NVIDIA tensor cores", PeerJ Computer Science 7, 2021.
    """
    from triton._C.libtriton import ir
    from triton.runtime.interpreter import TensorHandle

    def dot(builder: Any, a: Any, b: Any, acc: Any, precision: Any, *options: Any) -> Any:
        if precision != ir.INPUT_PRECISION.TF32:
            return plain(builder, a, b, acc, precision, *options)
        left, right, total = _read_tf32(a.data), _read_tf32(b.data), acc.data
        with np.errstate(all="ignore"):
            for first in range(0, left.shape[1], 8):
                terms = slice(first, first + 8)
                total = _cut(total + left[:, terms] @ right[terms])
        return TensorHandle(total, acc.dtype.scalar)

    return dot


def _read_tf32(x: np.ndarray) -> np.ndarray:
    return (np.ascontiguousarray(x).view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32).astype(np.float64)


def _cut(x: np.ndarray) -> np.ndarray:
    """float64 to float32, towards zero."""
    near = x.astype(np.float32)
    return np.where(np.abs(near) > np.abs(x), np.nextafter(near, np.float32(0)), near)
