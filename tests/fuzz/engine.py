"""Fuzzes the Python interface of the engine, in a process that may crash: `python tests/fuzz/engine.py --inputs 3000`.

Inputs are numbered, and a number is its input for ever: `--first 1234 --inputs 1` runs one again. What is found:
crashes, hangs, wrong results (against the reference in float64), acceptance of what the reference refuses, other
exceptions than the documented ones, and messages that name no argument.
"""

from __future__ import annotations

import argparse
import ctypes
import faulthandler
import json
import queue
import subprocess
import sys
import threading
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]
SECONDS = 120  # for one input, which takes milliseconds: the first call of all loads torch


@dataclass
class Report:
    """How many inputs ended how, by way in, and what was found."""

    counts: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{self.counts.total()} inputs, {len(self.findings)} findings"]
        return "\n".join([*lines, *[f"  {name}: {n}" for name, n in sorted(self.counts.items())], *self.findings])


def work(first: int, count: int, crash_at: int) -> None:
    """In the process that may crash: a line before and after every input."""
    faulthandler.enable()
    warnings.simplefilter("ignore")
    sys.path.insert(0, str(TESTS))
    import torch
    from fuzz.targets import run_input

    torch.set_num_threads(2)
    for index in range(first, first + count):
        print(json.dumps({"begin": index}), flush=True)
        if index == crash_at:
            ctypes.string_at(0)
        try:
            name, outcome = run_input(index)
            print(json.dumps({"end": index, "outcome": f"{name} {outcome}"}), flush=True)
        except Exception as error:  # the one place that has to see them all
            print(json.dumps({"end": index, "finding": f"{type(error).__name__}: {error}"[:600]}), flush=True)


def supervise(first: int, count: int, *, crash_at: int = -1) -> Report:
    """Run inputs in a process of their own, and in another one after each crash; one can be asked for."""
    report, last = Report(), first + count
    while first < last:
        command = [sys.executable, str(Path(__file__)), "--worker", "--crash-at", str(crash_at)]
        command += ["--first", str(first), "--inputs", str(last - first)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as worker:
            first = _follow(worker, first, report)
    return report


def _follow(worker: subprocess.Popen[str], first: int, report: Report) -> int:
    """Read what a worker says until it ends; the number of the next input."""
    lines: queue.Queue[str | None] = queue.Queue()
    noise: list[str] = []
    assert worker.stdout is not None and worker.stderr is not None
    readers = [
        threading.Thread(target=lambda: [lines.put(line) for line in worker.stdout] + [lines.put(None)]),
        threading.Thread(target=lambda: noise.extend(worker.stderr)),
    ]
    for reader in readers:
        reader.start()
    running = None
    while True:
        try:
            line = lines.get(timeout=SECONDS)
        except queue.Empty:
            worker.kill()
            report.counts["hang"] += 1
            report.findings.append(f"{running}: no end after {SECONDS} s")
            break
        if line is None:
            worker.wait()
            readers[1].join()
            if running is not None:
                report.counts["crash"] += 1
                trace = "".join(noise)[-1500:]
                report.findings.append(f"{running}: the process ended with {worker.returncode}\n{trace}")
            elif worker.returncode:
                raise RuntimeError(f"the worker did not start:\n{''.join(noise)}")
            break
        message: dict[str, Any] = json.loads(line)
        running = message.get("begin")
        if "end" in message:
            first = message["end"] + 1
            report.counts[message.get("outcome", "finding")] += 1
            if "finding" in message:
                report.findings.append(f"{message['end']}: {message['finding']}")
    return first if running is None else running + 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--inputs", type=int, default=3000)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--crash-at", type=int, default=-1, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.first, arguments.inputs, arguments.crash_at)
        return 0
    report = supervise(arguments.first, arguments.inputs)
    print(report)
    return 1 if report.findings else 0


if __name__ == "__main__":
    raise SystemExit(main())
