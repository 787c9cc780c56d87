"""Rollouts without gradients on small grids, captured in a CUDA graph and replayed.

There a launch takes the host longer than its kernel takes the device, and a replay is one launch for all steps. A graph
reads and writes tensors of its own: each replay copies the call's arguments into them, parameters too, and the result
out of them. So a change of parameters is seen, and the words of the random stream (draw.py) are one more argument.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ncakern._env import read_env

MAX_BYTES = 16 * 2**20  # of a state. Beyond, a step takes the device longer than the host; copies begin to cost
MAX_GRAPHS = 8  # the least recently used one goes: each holds a few states

Replay = Callable[[], None]
Capture = Callable[[Callable[[], Tensor]], tuple[Replay, Tensor]]


class _Graph(NamedTuple):
    replay: Replay
    arguments: list[Tensor]
    out: Tensor


class GraphCache:
    """Graphs by key; a key must hold whatever decides which kernels run, with which constants, on which stream.

    Args:
        capture: records what a function launches, without running it; returns what runs it, and the function's result.
        size: graphs to keep.
    """

    def __init__(self, capture: Capture, *, size: int = MAX_GRAPHS) -> None:
        self._capture, self._size = capture, size
        self._graphs: OrderedDict[Hashable, _Graph | None] = OrderedDict()  # None: called once, not captured
        self._lock = threading.Lock()  # two threads must not fill the same tensors

    def __len__(self) -> int:
        return sum(graph is not None for graph in self._graphs.values())

    def clear(self) -> None:
        """Free all graphs and their memory."""
        with self._lock:
            self._graphs.clear()

    def run(self, key: Hashable, arguments: Sequence[Tensor], function: Callable[..., Tensor]) -> Tensor:
        """``function(*arguments)``, or the same from a graph: a new tensor in either case.

        The first call of a key just runs, as most are the only one. The second runs on the graph's own arguments, which
        compiles and loads what is missing (neither may happen in a capture), and then captures. All others replay.
        """
        with self._lock:
            if key not in self._graphs:
                self._put(key, None)
                return function(*arguments)
            graph = self._graphs[key]
            self._graphs.move_to_end(key)
            if graph is not None:
                torch._foreach_copy_(graph.arguments, list(arguments))
                graph.replay()
                return graph.out.clone()
            # A tensor made in inference mode can be written in no other, and later calls may be in any.
            with torch.inference_mode(False), torch.no_grad():
                own = [argument.clone() for argument in arguments]
                result = function(*own)
                replay, out = self._capture(lambda: function(*own))
            self._put(key, _Graph(replay, own, out))
            return result

    def _put(self, key: Hashable, graph: _Graph | None) -> None:
        self._graphs[key] = graph
        self._graphs.move_to_end(key)
        while len(self._graphs) > self._size:
            self._graphs.popitem(last=False)


def _capture(function: Callable[[], Tensor]) -> tuple[Replay, Tensor]:
    graph = torch.cuda.CUDAGraph()
    # torch would capture on one stream for all, of the device that was the first. This one is the current device's.
    # Other threads may allocate meanwhile, as those of a data loader do.
    with torch.cuda.graph(graph, stream=torch.cuda.Stream(), capture_error_mode="thread_local"):
        out = function()
    return graph.replay, out


CACHE = GraphCache(_capture)


def is_wanted(state: Tensor, *, keep: bool) -> bool:
    """Whether a forward pass should go through a graph: not if states are kept, nor inside somebody's own capture."""
    if keep or not state.is_cuda or not 0 < state.numel() * state.element_size() <= MAX_BYTES:
        return False
    return read_env().cuda_graphs and not torch.cuda.is_current_stream_capturing()


def stream_key(state: Tensor) -> Hashable:
    """The device, and the stream on which the graph's tensors are used: two streams must not share them."""
    return state.device, torch.cuda.current_stream(state.device).cuda_stream
