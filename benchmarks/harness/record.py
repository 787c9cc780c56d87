"""Rows of the record: what a figure is worth only with; results/<machine>/<date>-<commit>.jsonl.

A machine whose instruction sets are limited by environment variables counts as another one.
"""

import datetime
import importlib.util
import json
import os
import platform
import re
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

import numpy
import torch

import ncakern
from benchmarks.harness.cases import Case
from benchmarks.harness.measure import Timing
from benchmarks.harness.source import ROOT, commit_here
from ncakern.backends import cpu

RESULTS = ROOT / "benchmarks" / "results"
# What keeps a process from the widest vectors of its CPU: our kernel, torch's own loops, MKL, oneDNN.
LIMITS = ("NCAKERN_ISA", "ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA")
THROUGHPUT, SAVED = "million cell-steps/s", "bytes/cell-step"


def describe_run() -> dict:
    """Say what was run and where: commit, machine, versions; the same for all rows of a run."""
    commit, is_dirty = commit_here()
    cpuinfo = Path("/proc/cpuinfo")
    limits = {name: os.environ[name] for name in LIMITS if os.environ.get(name)}
    model = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.exists() else None
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit,
        "dirty": is_dirty,
        "machine": {
            "cpu": model[1] if model else platform.processor() or platform.machine(),
            "cpus": os.cpu_count(),
            "torch_threads": torch.get_num_threads(),
            "torch_isa": torch.backends.cpu.get_cpu_capability(),
            "kernel_isa": cpu.choose_isa() if cpu.variants() else "none",
            **({"limits": limits} if limits else {}),
            **({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}),
        },
        "versions": {
            "ncakern": ncakern.__version__,
            "torch": torch.__version__,
            "numpy": numpy.__version__,
            "python": platform.python_version(),
            "os": platform.platform(terse=True),
            **({name: version(name) for name in ("cax", "jax")} if importlib.util.find_spec("cax") else {}),
            **({"triton": version("triton"), "cuda": torch.version.cuda} if torch.cuda.is_available() else {}),
        },
    }


def timing_rows(case: Case, mode: str, timings: dict[str, Timing]) -> Iterable[dict]:
    """Turn the timings of the providers into rows; each quantile is the throughput at that quantile of the time."""
    for provider, timing in timings.items():
        million = {q: case.cell_steps / getattr(timing, f"{q}_ms") / 1e3 for q in ("p20", "p50", "p80")}
        yield {
            **_key(case, provider, mode),
            "metric": "throughput",
            "unit": THROUGHPUT,
            "value": million["p50"],
            "value_p20": million["p20"],
            "value_p80": million["p80"],
            "rounds": timing.num_rounds,
        }


def saved_row(case: Case, provider: str, num_bytes: int) -> dict:
    """Make the row of the bytes kept for the backward pass."""
    return plain_row(case, provider, "training", "saved", SAVED, num_bytes / case.cell_steps)


def plain_row(case: Case, provider: str, mode: str, metric: str, unit: str, value: float) -> dict:
    """Make a row of one number."""
    return {**_key(case, provider, mode), "metric": metric, "unit": unit, "value": value}


def failed_row(case: Case, provider: str, mode: str, reason: str) -> dict:
    """Make the row of a figure that there is none of."""
    return {**_key(case, provider, mode), "metric": "failed", "reason": reason}


def write(rows: list[dict], run: dict, root: Path = RESULTS) -> Path:
    """Write the rows of one run as JSON lines, under a name that no other run has; return the path."""
    machine = run["machine"]
    limited = f"-{machine['kernel_isa']}" if "limits" in machine else ""
    folder = root / f"{slug(machine['cpu'])}-{machine['torch_threads']}threads{limited}"
    stamp = re.sub(r"[-:]|\+.*", "", run["date"])
    path = folder / f"{stamp}-{run['commit']}{'-dirty' if run['dirty'] else ''}.jsonl"
    write_file(path, "".join(json.dumps(run | row) + "\n" for row in rows))
    return path


def slug(name: str) -> str:
    """Make a folder's name of a machine's."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def write_file(path: Path, text: str) -> None:
    """Write a whole file or none, and its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(text)
    part.rename(path)


def read(path: Path) -> list[dict]:
    """Read the rows of one run."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def read_all(root: Path, names: Iterable[str] = ()) -> list[dict]:
    """Read the rows of some runs, or of all below a folder, the oldest first."""
    paths = [Path(name) for name in names] or sorted(root.glob("*/*.jsonl"), key=lambda path: path.name)
    return [row for path in paths for row in read(path)]


def describe_origin(rows: Iterable[dict]) -> str:
    """Say which commits, days and machines rows are from."""
    found = list(rows)
    made = sorted({f"{r['commit']}{' with changes' if r['dirty'] else ''}, {r['date'][:10]}" for r in found})
    machines = sorted({f"{r['machine']['cpu']}, {r['machine']['torch_threads']} threads" for r in found})
    return f"Commit {'; '.join(made)}. {'; '.join(machines)}."


def find(name: str) -> Path:
    """Find a run by its file, or the newest one of a commit."""
    if Path(name).is_file():
        return Path(name)
    matches = sorted(RESULTS.glob(f"*/*-{name}*.jsonl"), key=lambda path: path.name)
    if not matches:
        raise SystemExit(f"{name!r} is neither a file nor a commit with a run below {RESULTS}")
    return matches[-1]


def values(rows: Iterable[dict]) -> dict[tuple[str, str, str, str], float]:
    """Index values by (case, mode, metric, provider)."""
    return {(row["case"], row["mode"], row["metric"], row["provider"]): row["value"] for row in rows}


def _key(case: Case, provider: str, mode: str) -> dict:
    return {"case": case.name, "problem": str(case), "provider": provider, "mode": mode}
