"""What the three calls of check.sh run, and the seconds that each item has for sure; together they fit a call."""

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Sequence

from benchmarks.gpu.check import CACHES, Item
from benchmarks.harness.source import ROOT

GPU_TESTS = "tests/kern/test_triton_gpu.py"
HEADLINE = ("A-256x256x256-n4", "B-320x320x24-n20", "C-1024x1024-n20", "D-1024x1024-n20")
WORKERS = 12  # that compile tests' kernels at the same time
CARRIED = ROOT / ".triton-cache"  # what prewarm made elsewhere, if it was carried along
CACHE = {
    "TRITON_CACHE_DIR": str(CARRIED) if CARRIED.is_dir() else f"{{scratch}}/{CACHES}/triton",
    "TORCHINDUCTOR_CACHE_DIR": f"{{scratch}}/{CACHES}/inductor",
}


def module(name: str, seconds: float, *command: str, is_dry: bool, why_not: str | None = None) -> Item:
    """An item that runs a module of the benchmarks; dry, with the stand-in for a card."""
    standin = ("benchmarks.gpu.standin",) if is_dry else ()
    return Item(name, seconds, (sys.executable, "-m", *standin, *command), environment(), why_not)


def tests(name: str, seconds: float, *options: str, is_dry: bool, workers: int = WORKERS) -> Item:
    """An item that runs tests marked gpu, which skip themselves without a card; their margins go into a file."""
    shared = ("-n", str(workers)) if workers > 1 and not is_dry and importlib.util.find_spec("xdist") else ()
    command = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", *shared, GPU_TESTS)
    env = environment() | {"NCAKERN_MARGINS": "{scratch}/margins.jsonl"}
    return Item(name, seconds, (*command, *options), env)


def environment() -> dict[str, str]:
    """Caches in the call's folder unless they are given, as by a cache that was carried along."""
    return {name: os.environ.get(name, value) for name, value in CACHE.items()}


def headline(is_dry: bool) -> tuple[str, ...]:
    """The cases of a table for people; dry, one of them shows as much as all."""
    return HEADLINE[-1:] if is_dry else HEADLINE


def needs(*programs: str) -> str | None:
    missing = [name for name in programs if shutil.which(name) is None]
    return f"{', '.join(missing)} is not on this machine" if missing else None


def prewarm(seconds: float, *, is_dry: bool) -> Item:
    """Compile what the cache lacks, on all CPUs, and say what it had; later items compile what is still missing."""
    why_not = "a dry run compiles nothing" if is_dry else None
    return module("prewarm", seconds, "benchmarks.gpu.prewarm", "--seconds", "{seconds}", is_dry=False, why_not=why_not)


def run_rows(name: str, seconds: float, *options: str, is_dry: bool) -> Item:
    shared = ("--out", "{scratch}/rows.jsonl", "--page", f"{{scratch}}/{name}.md", "--seconds", "{seconds}")
    return module(name, seconds, "benchmarks.gpu.run", *shared, *options, is_dry=is_dry)


def correctness(*, is_dry: bool) -> list[Item]:
    rows = ("--cases", *headline(is_dry), "--providers", "kernel", "kernel-tf32", "kernel-bf16", "eager", "eager-tf32")
    margins = ("benchmarks.gpu.margins", "{scratch}/margins.jsonl", "--page", "{scratch}/margins.md")
    return [
        module("info", 15, "ncakern.info", is_dry=is_dry),
        prewarm(50, is_dry=is_dry),
        module("smoke", 30, "benchmarks.gpu.small", is_dry=is_dry),
        tests("tests-match", 110, "-k", "match_float64", is_dry=is_dry),
        module("margins", 10, *margins, is_dry=is_dry),
        tests("tests-rest", 50, "-k", "not match_float64 and not offsets", is_dry=is_dry),
        tests("tests-offsets", 40, "-k", "offsets", is_dry=is_dry, workers=1),
        run_rows("headline", 80, *rows, is_dry=is_dry),
        *(sanitized(tool, is_dry=is_dry) for tool in ("memcheck", "racecheck")),
    ]


def sanitized(tool: str, *, is_dry: bool) -> Item:
    """Two configurations under a tool of compute-sanitizer: without torch's cache, a tensor ends where memory ends."""
    command = ("compute-sanitizer", "--tool", tool, "--error-exitcode", "9", sys.executable, "-m")
    env = environment() | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    why_not = "a dry run has no card" if is_dry else needs("compute-sanitizer")
    return Item(tool, 35, (*command, "benchmarks.gpu.small", "--only", "0", "4"), env, why_not)


def speed(*, is_dry: bool) -> list[Item]:
    kernels = ("benchmarks.gpu.kernels", *headline(is_dry), "--page", "{scratch}/kernels.md")
    sweep = ("--out", "{scratch}/tiles.jsonl", "--seconds", "{seconds}", "--providers", "kernel")
    plain = ("--providers", "kernel", "kernel-tf32", "kernel-bf16", "kernel-sqrt", "eager", "eager-tf32")
    compiled = ("--cases", HEADLINE[0], HEADLINE[2], "--providers", "compile", "compile-tf32")
    if is_dry:
        plain, sweep = (*plain, "--cases", *headline(is_dry)), (*sweep, "--cases", *headline(is_dry))
    return [
        module("info", 15, "ncakern.info", is_dry=is_dry),
        prewarm(50, is_dry=is_dry),
        tests("tests", 40, "-k", "match_float64 and (129x67x45 or 255x129)", is_dry=is_dry),
        run_rows("rows", 130, *plain, is_dry=is_dry),
        module("kernels", 50, *kernels, is_dry=is_dry),
        run_rows("compiled", 60, *compiled, is_dry=is_dry),
        module("tiles", 90, "benchmarks.gpu.tune", *sweep, is_dry=is_dry),
        module("plots", 15, "benchmarks.gpu.plots", "{scratch}/rows.jsonl", "-o", "{scratch}/plots", is_dry=is_dry),
    ]


def training(*, is_dry: bool) -> list[Item]:
    page = ("--page", "{scratch}/probe-%s.md")
    probes = [
        module(f"probe-{name}", seconds, "benchmarks.gpu.train_probe", name, page[0], page[1] % name, is_dry=is_dry)
        for name, seconds in (("multicbam", 90), ("volume", 45), ("cdal", 45))
    ]
    return [module("info", 15, "ncakern.info", is_dry=is_dry), *probes, *recipe(is_dry=is_dry)]


def recipe(*, is_dry: bool) -> list[Item]:
    """Training by recipe until time is up, on real volumes where there are some: its run can be resumed elsewhere."""
    missing = [name for name in ("nibabel", "PIL", "safetensors", "tqdm") if importlib.util.find_spec(name) is None]
    why_not = "a dry run trains nothing" if is_dry else f"needs {', '.join(missing)}" if missing else None
    data, phantoms = os.environ.get("NCASEG_DATA"), f"{{scratch}}/{CACHES}/phantoms"
    write = f"from ncaseg.data.phantom import write_phantoms; write_phantoms('{phantoms}', 40)"
    made = [] if data else [Item("phantoms", 20, (sys.executable, "-c", write), environment(), why_not)]
    where = f"{data}/Task04_Hippocampus" if data else phantoms
    options = ("m3d-hippocampus-2level", "train.device=cuda", "--data", where, "--out", "{scratch}/run")
    train = Item("recipe", 240, (sys.executable, "-m", "ncaseg", "train", *options), environment(), why_not)
    return [*made, train]


CALLS: dict[str, Callable[..., Sequence[Item]]] = {"1": correctness, "2": speed, "3": training}
