"""Who computes a rollout on an accelerator, and in which arithmetic."""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

import ncakern
from benchmarks.harness.cases import Case
from benchmarks.rollout.providers import Compiled, Eager, Kernel, make_nca


@dataclass(frozen=True)
class GpuProvider:
    """A provider of benchmarks.rollout, and how it computes.

    Args:
        build: the module of a case.
        arithmetic: of matrix products on float32: "fp32" (for the kernel three TF32 products, else IEEE), "tf32"; or
            "bf16", a bfloat16 state and float32 sums.
    """

    build: Callable[[ncakern.NCA, Case], nn.Module]
    arithmetic: str

    def make(self, case: Case) -> nn.Module:
        return self.build(make_nca(case), case).cuda()

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.arithmetic == "bf16" else torch.float32

    @contextlib.contextmanager
    def settings(self) -> Iterator[None]:
        """Run what is inside, the backward pass too, in this arithmetic."""
        switches, variable = (torch.backends.cuda.matmul, torch.backends.cudnn), "NCAKERN_TRITON_PRECISION"
        before = [switch.allow_tf32 for switch in switches], os.environ.get(variable)
        for switch in switches:
            switch.allow_tf32 = self.arithmetic == "tf32"
        os.environ[variable] = "tf32" if self.arithmetic == "tf32" else "tf32x3"
        try:
            yield
        finally:
            for switch, value in zip(switches, before[0], strict=True):
                switch.allow_tf32 = value
            os.environ.pop(variable)
            if before[1] is not None:
                os.environ[variable] = before[1]


GPU_PROVIDERS = {
    "kernel": GpuProvider(Kernel, "fp32"),
    "kernel-tf32": GpuProvider(Kernel, "tf32"),
    "kernel-bf16": GpuProvider(Kernel, "bf16"),
    "kernel-sqrt": GpuProvider(functools.partial(Kernel, keep_every="sqrt"), "fp32"),
    "eager": GpuProvider(Eager, "fp32"),
    "eager-tf32": GpuProvider(Eager, "tf32"),
    "compile": GpuProvider(Compiled, "fp32"),
    "compile-tf32": GpuProvider(Compiled, "tf32"),
}
