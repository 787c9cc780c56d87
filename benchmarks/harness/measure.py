"""How time and memory are measured."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

MODES = ("forward", "training")  # training: forward and backward, gradients of the state and of every parameter


@dataclass(frozen=True)
class Timing:
    """Quantiles of the time of one call, in milliseconds."""

    p20_ms: float
    p50_ms: float
    p80_ms: float
    num_rounds: int


def make_call(module: nn.Module, state: Tensor, mode: str) -> Callable[[], None]:
    """Bind one call of `module` on `state`: without gradients for "forward", with a backward pass for "training"."""
    if mode not in MODES:
        raise ValueError(f"mode must be one of {MODES}; got {mode!r}")
    if mode == "forward":

        def call() -> None:
            with torch.no_grad():
                module(state)

        return call

    leaf = state.clone().requires_grad_()
    d_out = torch.randn_like(state)

    def call() -> None:
        leaf.grad = None
        module.zero_grad(set_to_none=True)
        module(leaf).backward(d_out)

    return call


def time_interleaved(
    calls: dict[str, Callable[[], None]], *, seconds: float = 3.0, min_rounds: int = 5, max_rounds: int = 200
) -> dict[str, Timing]:
    """Time the calls by turns, so that a slow moment of the machine falls on all of them.

    Args:
        calls: name -> call. Each is called once before the clock runs (compilation, thread pools, fresh pages).
        seconds: a call is left out of further rounds when its own time has reached this many seconds.
        min_rounds, max_rounds: bounds on the number of rounds of each call.
    """
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    running = dict(calls)
    while running:
        for name, call in list(running.items()):
            start = time.perf_counter()
            call()
            own = times[name]
            own.append(1e3 * (time.perf_counter() - start))
            if len(own) >= max_rounds or (len(own) >= min_rounds and sum(own) >= 1e3 * seconds):
                del running[name]
    return {name: summarize(values) for name, values in times.items()}


def summarize(times_ms: list[float]) -> Timing:
    """Reduce at least two times to their quantiles."""
    quintiles = statistics.quantiles(times_ms, n=5, method="inclusive")
    return Timing(quintiles[0], statistics.median(times_ms), quintiles[3], len(times_ms))


def time_on_device(call: Callable[[], None], *, seconds: float = 2.0, max_rounds: int = 30) -> Timing:
    """Time a call on an accelerator by its own clock, from the first launch to the last result.

    Two calls warm up (compilation, the allocator). Each round is waited for, as a user waits for a result.
    """
    for _ in range(2):
        call()
    torch.cuda.synchronize()
    times: list[float] = []
    while len(times) < 3 or (len(times) < max_rounds and sum(times) < 1e3 * seconds):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return summarize(times)


def peak_bytes(call: Callable[[], None]) -> int:
    """The most memory of an accelerator that a call holds at one time, on top of what was held before it."""
    call()  # compilation and libraries take memory of their own the first time
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    return torch.cuda.max_memory_allocated() - before


def saved_bytes(module: nn.Module, state: Tensor) -> int:
    """Count the bytes that one forward pass keeps for the backward pass: each storage once, parameters not at all."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    storages: dict[int, Tensor] = {}  # the tensors stay alive here, or an address could come twice

    def pack(tensor: Tensor) -> Tensor:
        storages.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = module(state.clone().requires_grad_())
    del out
    return sum(t.untyped_storage().nbytes() for address, t in storages.items() if address not in parameters)
