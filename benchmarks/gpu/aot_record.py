"""Which Triton kernels a rollout would launch on an accelerator, found without one.

The backend runs on fake tensors, which have shapes and no memory, while a recorder stands where Triton launches. So the
list of kernels, types and tiles is the backend's own, not a copy of it. (Fake CUDA tensors need a CUDA build of torch.)
"""

import ast
import contextlib
import functools
import hashlib
import inspect
import math
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from triton.compiler import ASTSource
from triton.runtime import JITFunction

from ncakern import _dispatch
from ncakern._spec import RolloutSpec

_POINTERS = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.int16: "*i16",
    torch.int8: "*i8",
    torch.uint8: "*u8",
    torch.bool: "*i1",
}


Note = Callable[[JITFunction, tuple[Any, ...], dict[str, Any]], None]


@dataclass(frozen=True)
class Launch:
    """One kernel as it would be compiled: types ("constexpr" for constants), constants, arguments divisible by 16."""

    kernel: JITFunction
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    aligned: frozenset[str]
    options: tuple[tuple[str, Any], ...]

    @property
    def name(self) -> str:
        return self.kernel.__name__

    @property
    def key(self) -> str:
        """A digest of all that decides the machine code but the compiler: sources, types, constants, options."""
        text = repr((_sources(self.kernel), self.signature, sorted(self.aligned), self.options))
        return hashlib.sha256((text + self.describe()).encode()).hexdigest()[:16]

    def describe(self) -> str:
        """The constants, for people; what is None or False is left out."""
        shown = [f"{name}={value}" for name, value in self.constants if value is not None and value is not False]
        return " ".join(shown)

    def source(self) -> ASTSource:
        """What triton.compile takes."""
        position = {name: index for index, (name, _) in enumerate(self.signature)}
        return ASTSource(
            fn=self.kernel,
            signature=dict(self.signature),
            constexprs={(position[name],): value for name, value in self.constants},
            attrs={(position[name],): [["tt.divisibility", 16]] for name in self.aligned},
        )


def specialize(kernel: JITFunction, args: tuple[Any, ...], keywords: dict[str, Any]) -> Launch:
    """Triton's rules of specialization, for the arguments that this project's kernels have."""
    names = {parameter.name for parameter in kernel.params}
    options = {name: value for name, value in keywords.items() if name not in names}
    bound = inspect.signature(kernel.fn).bind(*args, **{n: v for n, v in keywords.items() if n in names})
    bound.apply_defaults()
    signature, constants, aligned = [], [], set()
    for parameter, (name, value) in zip(kernel.params, bound.arguments.items(), strict=True):
        kind, is_aligned = _kind(value, is_free=parameter.is_constexpr, is_special=not parameter.do_not_specialize)
        signature.append((name, kind))
        if kind == "constexpr":
            constants.append((name, value))
        if is_aligned and not parameter.do_not_specialize_on_alignment:
            aligned.add(name)
    return Launch(kernel, tuple(signature), tuple(constants), frozenset(aligned), tuple(sorted(options.items())))


def _kind(value: Any, *, is_free: bool, is_special: bool) -> tuple[str, bool]:
    if is_free or value is None or (is_special and type(value) is int and value == 1):
        return "constexpr", False
    if isinstance(value, Tensor):
        return _POINTERS[value.dtype], value.storage_offset() * value.itemsize % 16 == 0
    if isinstance(value, bool):
        return "i1", False
    if isinstance(value, int):
        kind = "i32" if -(2**31) <= value < 2**31 else "i64" if value < 2**63 else "u64"
        return kind, is_special and value % 16 == 0
    if isinstance(value, float):
        return "fp32", False
    raise TypeError(f"a kernel's argument must be a tensor, a number or a constant; got {type(value).__name__}")


@functools.cache
def _sources(kernel: JITFunction) -> list[tuple[str, str]]:
    """The kernel and the project's functions it calls, by name: code without comments, docstrings and layout."""
    found: dict[str, str] = {}
    _collect(kernel, found)
    return sorted(found.items())


def _collect(kernel: JITFunction, found: dict[str, str]) -> None:
    if kernel.__name__ in found:
        return
    tree = ast.parse(inspect.getsource(kernel.fn).strip())
    body = tree.body[0].body
    if isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
        del body[0]
    tree.body[0].decorator_list = []
    found[kernel.__name__] = ast.unparse(tree)
    for node in ast.walk(tree):
        value = _resolve(node, kernel.fn.__globals__)
        if isinstance(value, JITFunction) and value.__module__.startswith("ncakern"):
            _collect(value, found)
        elif isinstance(node, ast.Name) and isinstance(value, (int, float, str)):
            found[node.id] = repr(value)


def _resolve(node: ast.AST, names: dict[str, Any]) -> Any:
    """What a name, or an attribute of an imported module, stands for in a function's module; None for all else."""
    if isinstance(node, ast.Name):
        value = names.get(node.id)
        return getattr(value, "value", value)  # tl.constexpr holds a plain value
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        module = names.get(node.value.id)
        return getattr(module, node.attr, None) if isinstance(module, types.ModuleType) else None
    return None


@contextlib.contextmanager
def _recording(note: Note, capability: tuple[int, int], num_sms: int) -> Iterator[None]:
    """Stand where Triton launches, and answer what the backend asks about the device."""

    def run(kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **keywords: Any) -> None:
        note(kernel, args, keywords)

    major, minor = capability
    properties = types.SimpleNamespace(major=major, minor=minor, multi_processor_count=num_sms)
    with (
        mock.patch.object(JITFunction, "run", run),
        mock.patch("torch.cuda.get_device_properties", lambda device=None: properties),
        mock.patch("torch.cuda.get_device_capability", lambda device=None: capability),
        mock.patch("torch.cuda.is_available", lambda: True),
        FakeTensorMode(),
    ):
        yield


def record(spec: RolloutSpec, **problem: Any) -> list[Launch]:
    """The launches of a problem as `trace` has it, each kind once, in their order."""
    launches: dict[str, Launch] = {}

    def note(kernel: JITFunction, args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        launch = specialize(kernel, args, keywords)
        launches.setdefault(launch.key, launch)

    trace(spec, note, **problem)
    return list(launches.values())


def trace(
    spec: RolloutSpec,
    note: Note,
    *,
    size: tuple[int, ...],
    channels: int,
    hidden: int,
    num_filters: int,
    kernel_size: int,
    dtype: torch.dtype,
    capability: tuple[int, int],
    num_sms: int,
    has_modulation: bool = False,
) -> None:
    """Note every launch of a rollout of two steps, forward and backward: the kernel and its arguments."""
    triton = _dispatch.BACKENDS["triton"]
    with _recording(note, capability, num_sms):

        def draw(*shape: int, like: torch.dtype = torch.float32) -> Tensor:
            return torch.empty(shape, dtype=like)

        features, kernel = (1 + num_filters) * channels, (kernel_size,) * len(size)
        filters = (num_filters, channels, *kernel) if spec.perception == "depthwise" else None
        norm = (draw(hidden), draw(hidden)) if spec.norm != "none" else (None, None)
        state = draw(1, *size, channels, like=dtype)
        others = (
            draw(*(filters or (num_filters, channels, channels, *kernel))),
            draw(num_filters, channels),
            draw(hidden, features),
            draw(hidden),
            *norm,
            draw(channels, hidden),
            None,
            *((draw(1, hidden), draw(1, hidden)) if has_modulation else (None, None)),
            None,  # no out_bias
        )
        call = {"spec": spec, "steps": 2, "seed": 2**40, "first_step": 0, "first_sample": 0, "keep_every": 1}
        call |= {"origin": (0,) * len(size), "extent": size}
        triton.fwd(state, *others, **call, keep=False)
        out, kept, stats = triton.fwd(state, *others, **call, keep=True)
        assert math.prod(out.shape) == math.prod(state.shape)
        triton.bwd(torch.empty_like(out), state, kept, stats, *others, **call)
