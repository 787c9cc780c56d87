"""Search the fastest tile of each kernel on this card. Stops in time, and goes on where it stopped when called again.

    python -m benchmarks.gpu.tune --out tiles.jsonl --seconds 480

From the tile that the backend chooses, it doubles and halves one number at a time, and moves while that is faster. A
tile that does not compile, does not fit or changes a result is out. What it finds goes into tiles.py or tiles_large.py,
by hand, as a rule with this measurement as its origin. Exit code 3: time is up, call again.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from benchmarks.gpu.cases import load_gpu_cases
from benchmarks.gpu.providers import GPU_PROVIDERS
from benchmarks.harness import measure, record
from benchmarks.harness.cases import Case

UNFINISHED = 3
FASTER = 0.98  # a move must gain two percent: less is noise
CASES = ("A-256x256x256-n4", "A-nonorm-256x256x256-n4", "B-320x320x24-n20", "C-1024x1024-n20", "D-1024x1024-n20")
PROVIDERS = ("kernel", "kernel-tf32", "kernel-bf16")
# Numbers of a tile that may change, with their least and largest value; no tile has all of them.
RANGES = {
    "rows": (1, 32),
    "planes": (1, 256),
    "chunk": (16, 256),
    "warps": (4, 8),
    "BLOCK": (16, 256),
    "CT": (16, 128),
    "FCT": (16, 128),
    "HC": (16, 256),
    "STAGES": (1, 4),
    "num_warps": (4, 8),
}


def neighbours(tile: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The tiles with one number doubled or halved, within its range."""
    for name, (low, high) in RANGES.items():
        if name in tile:
            for value in (2 * tile[name], tile[name] // 2):
                if low <= value <= high:
                    yield tile | {name: value}


def climb(tile: dict[str, Any], time_ms: Callable[[dict[str, Any]], float | None]) -> tuple[dict[str, Any], float]:
    """Move to the fastest neighbour while it is faster; `time_ms` gives None for a tile that is out."""
    best_ms = time_ms(tile)
    assert best_ms is not None, "the backend's own tile must run"
    seen = [tile]
    while True:
        times = []
        for candidate in neighbours(tile):
            if candidate not in seen:
                seen.append(candidate)
                found = time_ms(candidate)
                if found is not None:
                    times.append((found, candidate))
        if not times or min(times, key=lambda pair: pair[0])[0] > FASTER * best_ms:
            return tile, best_ms
        best_ms, tile = min(times, key=lambda pair: pair[0])


class Family:
    """The function that chooses the tiles of a family of kernels, where that family looks it up."""

    def __init__(self, case: Case) -> None:
        from ncakern.backends.triton import launch_large, pack_small, tiles

        sizes = {"channels": case.channels, "filters": case.num_filters, "hidden": case.hidden}
        is_small = tiles.is_small(case.perception, case.size, **sizes)
        self.module, self.name = (pack_small, "choose_tiles") if is_small else (launch_large, "choose_large_tile")
        self.choose = getattr(self.module, self.name)

    @contextlib.contextmanager
    def using(self, kernel: str, tile: dict[str, Any]) -> Iterator[None]:
        """Run what is inside with that tile for a kernel."""

        def choose(*args: Any, **keywords: Any) -> Any:
            chosen = self.choose(*args, **keywords)
            if dataclasses.is_dataclass(chosen):
                return dataclasses.replace(chosen, **{kernel: tile})
            return chosen._replace(**{kernel: type(getattr(chosen, kernel))(**tile)})

        with mock.patch.object(self.module, self.name, choose):
            yield

    def chosen(self, call: Callable[[], object]) -> dict[str, dict[str, Any]]:
        """The tile of each kernel that the backend chooses in a call; of the forward kernel, in the forward pass."""
        seen: dict[str, dict[str, Any]] = {}

        def choose(*args: Any, **keywords: Any) -> Any:
            chosen = self.choose(*args, **keywords)
            if dataclasses.is_dataclass(chosen):
                found = dataclasses.asdict(chosen)
            else:
                found = {kernel: tile._asdict() for kernel, tile in chosen._asdict().items()}
            seen.update({kernel: tile for kernel, tile in found.items() if kernel != "fwd" or "fwd" not in seen})
            return chosen

        with mock.patch.object(self.module, self.name, choose):
            call()
        return seen


def results(module: nn.Module, state: Tensor) -> list[Tensor]:
    """The final state and all gradients of a fixed run."""
    leaf = state.clone().requires_grad_()
    out = module(leaf, seed=0)
    gradients = torch.autograd.grad(out, [leaf, *module.parameters()], torch.ones_like(out))
    return [out.detach(), *gradients]


def is_close(found: list[Tensor], expected: list[Tensor]) -> bool:
    """Whether results differ by no more than another order of bfloat16 sums explains: one percent in norm."""
    pairs = zip(found, expected, strict=True)
    return all(
        torch.linalg.vector_norm((a - b).float()) <= 1e-2 * torch.linalg.vector_norm(b.float()) for a, b in pairs
    )


def tune(case: Case, provider: str, done: set[str]) -> Iterator[dict]:
    """The best tile of every kernel of one case that is not done, one after the other."""
    settings = GPU_PROVIDERS[provider]
    torch.manual_seed(0)
    state = torch.rand(1, *case.size, case.channels, device="cuda").to(settings.dtype)
    module, family = settings.make(case), Family(case)

    def time_ms(tile: dict[str, Any]) -> float | None:
        try:
            with family.using(name, tile):
                if not is_close(results(module, state), expected):
                    return None
                return measure.time_on_device(call, seconds=0.3, max_rounds=10).p50_ms
        except Exception as error:  # whatever compiler or driver raise puts a tile out; a broken card raises for all
            print(f"  out: {name} {tile}: {type(error).__name__}", flush=True)
            return None

    with settings.settings():
        expected = results(module, state)
        for name, tile in family.chosen(lambda: results(module, state)).items():
            if name in done:
                continue
            mode = "forward" if name.startswith("fwd") else "training"
            call = measure.make_call(module, state, mode)
            chosen_ms = time_ms(tile)
            best, best_ms = climb(tile, time_ms)
            row = {"case": case.name, "provider": provider, "kernel": name, "mode": mode}
            yield row | {"chosen": tile, "chosen_ms": chosen_ms, "best": best, "best_ms": best_ms}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=load_gpu_cases(), default=list(CASES))
    parser.add_argument("--providers", nargs="+", choices=PROVIDERS, default=list(PROVIDERS))
    parser.add_argument("--seconds", type=float, default=480, help="start no kernel after this time (default: 480)")
    parser.add_argument("--out", type=Path, required=True, help="file of rows, to begin or to go on with")
    options = parser.parse_args()
    deadline = time.monotonic() + options.seconds
    os.environ["NCAKERN_CUDA_GRAPHS"] = "0"  # a graph would keep the tile that it was captured with
    cases, run = load_gpu_cases(), record.describe_run()
    rows = record.read(options.out) if options.out.exists() else []
    for case, provider in ((c, p) for c in options.cases for p in options.providers):
        done = {row["kernel"] for row in rows if (row["case"], row["provider"]) == (case, provider)}
        for row in tune(cases[case], provider, done):
            print(json.dumps(row), flush=True)
            rows.append(run | row)
            record.write_file(options.out, "".join(json.dumps(row) + "\n" for row in rows))
            if time.monotonic() > deadline:
                raise SystemExit(UNFINISHED)


if __name__ == "__main__":
    main()
