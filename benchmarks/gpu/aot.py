"""Compile every kernel that the GPU backend would launch, without a GPU, and record what each needs.

    python -m benchmarks.gpu.aot                           compile what the tables lack, and write them
    python -m benchmarks.gpu.aot --targets sm_90 --seconds 100    stop in time; call again to go on
    python -m benchmarks.gpu.aot --check                   compile nothing; fail when a table is not up to date

One table per target, results/aot/<target>-triton<version>.jsonl, and a page of all of them, README.md beside them. The
key of a row is a digest of the kernel's code, types and constants: whoever changes a kernel or a tile makes it anew.
"""

import argparse
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget

from benchmarks.gpu.aot_record import Launch, record
from benchmarks.harness.cases import Case, load_cases
from benchmarks.harness.record import RESULTS, write_file
from ncakern import RolloutSpec

TABLES = RESULTS / "aot"
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
VERSION = ".".join(triton.__version__.split(".")[:2])
UNFINISHED = 3  # exit code: time is up, call again


@dataclass(frozen=True)
class Target:
    """A chip: how Triton names it, and what the backend would read off a card with it."""

    gpu: GPUTarget
    capability: tuple[int, int]
    num_sms: int


TARGETS = {
    "sm_80": Target(GPUTarget("cuda", 80, 32), (8, 0), 108),  # A100
    "sm_90": Target(GPUTarget("cuda", 90, 32), (9, 0), 132),  # H100, H200
    "gfx942": Target(GPUTarget("hip", "gfx942", 64), (9, 4), 304),  # MI300X
}
PRECISIONS = {  # name -> (dtype of the state, NCAKERN_TRITON_PRECISION)
    "fp32": (torch.float32, "tf32x3"),
    "bf16": (torch.bfloat16, "tf32"),  # what "auto" takes for it
    "tf32": (torch.float32, "tf32"),
}
# Branches that no benchmark case takes: compiled in one precision, to see that they compile.
ODD = {
    "A-instance": {"norm": "instance", "padding": "zeros", "activation": "leaky_relu"},
    "D-circular": {"padding": "circular", "norm": "batch"},
    "C-replicate": {"padding": "replicate", "activation": "leaky_relu"},
}


def problems() -> dict[str, tuple[Case, RolloutSpec]]:
    """The benchmark cases at sizes that fill a card, A without a norm, C with one, a 2D depthwise one, the odd ones."""
    cases = {name: case for name, case in load_cases().items() if "-" not in name}
    cases["A-nonorm"] = replace(cases["A"], norm="none")
    cases["C-batch"] = replace(cases["C"], norm="batch")
    wide = {"size": cases["D"].size, "hidden": 128, "num_filters": 2}  # the depthwise automaton of Growing NCA
    cases["E"] = replace(cases["A-nonorm"], name="E", **wide)
    found = {}
    for name, case in cases.items():
        size = (256, 256, 256) if len(case.size) == 3 else (2048, 2048)
        spec = RolloutSpec(perception=case.perception, norm=case.norm, frozen_channels=case.frozen_channels)
        found[name] = replace(case, size=size), spec
    for name, changes in ODD.items():
        case, spec = found[name.split("-")[0]]
        found[name] = case, replace(spec, **changes)
    return found


def expected(target: str) -> dict[str, tuple[Launch, list[str]]]:
    """Every launch of every problem by its key, with the names of the problems that need it."""
    found: dict[str, tuple[Launch, list[str]]] = {}
    names = [name for name in problems() if name not in ODD]
    # What "auto" takes comes first, for a call that stops in time.
    calls = [*itertools.product(PRECISIONS, names), *(("fp32", name) for name in ODD)]
    for precision, name in calls:
        case, spec = problems()[name]
        dtype, os.environ["NCAKERN_TRITON_PRECISION"] = PRECISIONS[precision]
        launches = record(
            spec,
            size=case.size,
            channels=case.channels,
            hidden=case.hidden,
            num_filters=case.num_filters,
            kernel_size=case.kernel_size,
            dtype=dtype,
            capability=TARGETS[target].capability,
            num_sms=TARGETS[target].num_sms,
            has_modulation=name in ODD,
        )
        for launch in launches:
            found.setdefault(launch.key, (launch, []))[1].append(f"{name} {precision}")
    return found


def compile_launch(launch: Launch, target: str) -> dict:
    """Compile one kernel and read off what it needs; a kernel that does not compile says why."""
    start = time.perf_counter()
    try:
        compiled = triton.compile(launch.source(), target=TARGETS[target].gpu, options=dict(launch.options))
    except Exception as error:  # whatever the compiler raises is the finding
        return {"error": f"{type(error).__name__}: {str(error).strip().splitlines()[-1][:200]}"}
    found = _read_cubin(compiled.asm["cubin"]) if "cubin" in compiled.asm else _read_amdgcn(compiled.asm["amdgcn"])
    return found | {"shared_bytes": compiled.metadata.shared, "seconds": round(time.perf_counter() - start, 1)}


def _read_cubin(cubin: bytes) -> dict:
    """Registers and stack of each thread, instructions that touch local memory, and matrix instructions."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _output(TOOLS / "cuobjdump", "-res-usage", file.name)
        sass = _output(TOOLS / "nvdisasm", "-c", file.name)
    registers, stack = map(int, re.findall(r"REG:(\d+) STACK:(\d+)", usage)[-1])
    return {
        "registers": registers,
        "stack_bytes": stack,
        "spills": len(re.findall(r"\b(?:LDL|STL)\b", sass)),
        "matrix": ", ".join(sorted({match.split(".")[0] for match in re.findall(r"\b(?:HGMMA|HMMA)[\w.]*", sass)})),
        "instructions": len(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/", sass, re.MULTILINE)),
    }


def _read_amdgcn(text: str) -> dict:
    def last(name: str) -> int:
        return int(re.findall(rf"\.{name}:\s+(\d+)", text)[-1])

    return {
        "registers": last("vgpr_count"),
        "stack_bytes": last("private_segment_fixed_size"),
        "spills": last("vgpr_spill_count"),
        "matrix": "MFMA" if "v_mfma" in text else "",
        "instructions": len(re.findall(r"^\s+[vsdb][a-z]*_\w+", text, re.MULTILINE)),
    }


def _output(tool: Path, *arguments: str) -> str:
    return subprocess.run([str(tool), *arguments], check=True, capture_output=True, text=True).stdout


def table_path(target: str) -> Path:
    return TABLES / f"{target}-triton{VERSION}.jsonl"


def read_table(target: str) -> dict[str, dict]:
    """The rows of a target by key; none if there is no table."""
    path = table_path(target)
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {row["key"]: row for row in rows}


def update(target: str, *, deadline: float, only: str | None) -> bool:
    """Compile what the table of a target lacks, each kernel once; True when nothing is left to do."""
    known, rows, is_complete = read_table(target), [], True
    wanted = expected(target)
    for key, (launch, needed_by) in wanted.items():
        found = known.get(key)
        if found is None and (only is None or only in launch.name):
            if time.monotonic() > deadline:
                is_complete = False
                continue
            found = compile_launch(launch, target)
            print(target, launch.name, launch.describe(), found, file=sys.stderr, flush=True)
        if found is not None:
            shown = {"key": key, "kernel": launch.name, "needed_by": needed_by, "constants": launch.describe()}
            state = "bf16" if any("bf16" in kind for _, kind in launch.signature) else "fp32"
            rows.append(found | shown | {"storage": state, **dict(launch.options)})
            write_file(table_path(target), "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows))
    return is_complete


def page() -> str:
    """All tables as Markdown."""
    lines = ["# Resources of the Triton kernels, compiled ahead of time", ""]
    lines += [
        "Written by `python -m benchmarks.gpu.aot`; nothing here has been timed. Registers are per thread; spills are",
        "instructions that touch local memory; matrix is the tensor-core instruction in the machine code.",
    ]
    columns = ("kernel", "storage", "needed_by", "num_warps", "num_stages", "registers", "spills")
    columns += ("shared_bytes", "matrix")
    for path in sorted(TABLES.glob("*.jsonl")):
        lines += ["", f"## {path.stem}", "", _line(columns), _line("---" for _ in columns)]
        for row in map(json.loads, path.read_text().splitlines()):
            shown = row | {"needed_by": ", ".join(row["needed_by"]), "matrix": row.get("error", row.get("matrix"))}
            lines.append(_line(str(shown.get(name, "")) for name in columns))
    return "\n".join(lines) + "\n"


def _line(cells) -> str:
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--kernel", help="compile only kernels whose name holds this")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no kernel after this time")
    parser.add_argument("--check", action="store_true", help="print the keys that are missing or out of date")
    options = parser.parse_args()
    if options.check:
        wrong = {target: sorted(set(expected(target)) ^ set(read_table(target))) for target in options.targets}
        print(json.dumps(wrong))
        raise SystemExit(any(wrong.values()))
    deadline = time.monotonic() + options.seconds
    finished = [update(target, deadline=deadline, only=options.kernel) for target in options.targets]
    write_file(TABLES / "README.md", page())
    raise SystemExit(0 if all(finished) else UNFINISHED)


if __name__ == "__main__":
    main()
