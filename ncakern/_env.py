"""Every run-time NCAKERN_* variable, in one table, parsed strictly."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

# name -> (default, allowed values, meaning)
VARIABLES: dict[str, tuple[str, tuple[str, ...], str]] = {
    "NCAKERN_BACKEND": ("auto", ("auto", "triton", "cpu", "reference"), "what backend='auto' means"),
    "NCAKERN_ISA": ("auto", ("auto", "scalar", "avx2", "avx512", "neon"), "instruction set of the cpu backend"),
    "NCAKERN_CPU_PRECISION": (
        "auto",
        ("auto", "ieee"),
        "products of the cpu backend; auto: with a bfloat16 state bfloat16 where there is AMX; ieee: float32",
    ),
    "NCAKERN_TRITON_PRECISION": (
        "auto",
        ("auto", "tf32x3", "tf32", "ieee"),
        "products of the triton backend; auto: tf32x3, with a bfloat16 state tf32, on hardware without TF32 ieee",
    ),
    "NCAKERN_CUDA_GRAPHS": (
        "1",
        ("0", "1"),
        "1: the triton backend replays rollouts without gradients on small grids from CUDA graphs",
    ),
    "NCAKERN_STRICT": ("0", ("0", "1"), "1: falling back to the reference is an error"),
}


class Env(NamedTuple):
    """The parsed variables."""

    backend: str
    isa: str
    cpu_precision: str
    triton_precision: str
    cuda_graphs: bool
    strict: bool


def read_env(environ: Mapping[str, str] | None = None) -> Env:
    """Read the table from ``environ`` (default ``os.environ``).

    Raises:
        ValueError: a variable holds a value that is not in the table.
    """
    source = os.environ if environ is None else environ
    values = {}
    for name, (default, allowed, _) in VARIABLES.items():
        values[name] = source.get(name, default)
        if values[name] not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {values[name]!r}")
    return Env(
        backend=values["NCAKERN_BACKEND"],
        isa=values["NCAKERN_ISA"],
        cpu_precision=values["NCAKERN_CPU_PRECISION"],
        triton_precision=values["NCAKERN_TRITON_PRECISION"],
        cuda_graphs=values["NCAKERN_CUDA_GRAPHS"] == "1",
        strict=values["NCAKERN_STRICT"] == "1",
    )
