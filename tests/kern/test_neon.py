"""The NEON kernel, cross-compiled for plain armv8-a and run under qemu, against float64; skipped without both tools."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Case, assert_matches, make_inputs, run_with_gradients

from ncakern import _kernel
from ncakern.backends import cpu

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
CASES = [
    Case(size=(9, 11), channels=16, hidden=64, options={"frozen_channels": 1}),
    Case(size=(17, 3), channels=5, hidden=7, num_filters=2, options={"activation": "leaky_relu"}),
    Case(size=(4, 4), kernel=(7, 7), channels=16, hidden=64),
    Case(size=(9, 11), channels=16, options={"clamp": (-0.9, 0.8)}),
    Case(size=(7, 9), channels=5, hidden=70, has_out_bias=True, options={"activation": "silu"}),
    Case(size=(3, 5, 7), channels=5, hidden=9, options={"activation": "gelu", "norm": "batch"}),
    Case(size=(7, 5), channels=6, options={"activation": "tanh", "perception": "dense"}),
    Case(size=(1, 5), kernel=(1, 9), channels=6, options={"padding": "replicate"}),
    Case(size=(3, 5, 7), channels=16, hidden=64, options={"norm": "batch", "frozen_channels": 1}),
    Case(size=(2, 3, 17), channels=5, hidden=33, kernel=(3, 1, 5), options={"padding": "zeros"}),
    Case(size=(5, 7), channels=5, num_filters=2, batch=3, has_modulation=True, options={"norm": "instance"}),
    Case(size=(7, 5), channels=32, hidden=128, num_filters=2, options={"perception": "dense"}),
    Case(size=(7, 3), channels=5, num_filters=3, options={"perception": "dense", "norm": "batch"}),
    Case(size=(5, 3), has_perceive_from=True, steps=1, options={"perception": "dense", "padding": "circular"}),
    Case(size=(5, 9), call={"origin": (4, 7), "extent": (11, 19), "first_step": 9, "first_sample": 3}),
    Case(size=(6, 7), channels=5, steps=9, keep_every="sqrt", options={"fire_rate": 0.7}),
    Case(size=(9, 11), channels=16, hidden=64, dtype=torch.bfloat16),
    Case(size=(5, 6), channels=5, dtype=torch.float16, options={"norm": "batch"}),
]


class Emulated:
    """Stands for the extension `ncakern._cpu`: every call is one run of the program under qemu."""

    emulator: tuple[str, ...] = (EMULATOR,)

    def __init__(self, program: Path, folder: Path) -> None:
        self.program, self.call, self.answer = program, folder / "call", folder / "answer"

    def variants(self) -> dict[str, bool]:
        return {"neon": True}

    def run(self, arrays: dict[str, np.ndarray | None], options: dict[str, Any]) -> None:
        present = {name: array for name, array in arrays.items() if array is not None}
        with self.call.open("wb") as file:
            for name, value in options.items():
                words = " ".join(map(str, value)) if isinstance(value, list) else value
                file.write(f"{name} {words}\n".encode())
            for name, array in present.items():
                file.write(f"array {name} {array.itemsize} {array.size}\n".encode() + array.tobytes())
        subprocess.run([*self.emulator, self.program, self.call, self.answer], check=True, timeout=60)
        answer = self.answer.read_bytes()
        assert len(answer) == sum(array.nbytes for array in present.values())
        for array in present.values():
            array.reshape(-1)[:] = np.frombuffer(answer, array.dtype, array.size)
            answer = answer[array.nbytes :]

    fwd = bwd = run


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for tool in (COMPILER, EMULATOR):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed (Debian: g++-aarch64-linux-gnu, qemu-user)")
    folder = tmp_path_factory.mktemp("neon")
    flags = ["-std=c++17", "-O3", "-march=armv8-a", "-fopenmp", f"-I{ROOT / 'csrc'}"]
    sources = {name: ROOT / f"csrc/{name}.cpp" for name in ("isa_neon", "interrupt")}
    sources["run_call"] = ROOT / "tests/kern/neon/run_call.cpp"
    for name, source in sources.items():
        subprocess.run([COMPILER, *flags, "-c", source, "-o", folder / f"{name}.o"], check=True)
    objects = [folder / f"{name}.o" for name in sources]
    # Static, so that the emulator needs no libraries of the other machine.
    subprocess.run([COMPILER, "-static", "-fopenmp", *objects, "-o", folder / "run_call"], check=True)
    return folder / "run_call"


@pytest.fixture
def emulated(program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    extension = Emulated(program, tmp_path)
    for module, name in ((cpu, "_load"), (cpu, "require_extension"), (_kernel, "import_extension")):
        monkeypatch.setattr(module, name, lambda: extension)
    monkeypatch.setenv("NCAKERN_ISA", "neon")
    yield


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_result_and_gradients_match_float64(case: Case, emulated: None) -> None:
    inputs = make_inputs(case).to(case.dtype, torch.float32)
    exact = run_with_gradients(case, inputs.to(torch.float64, torch.float64), backend="reference")
    plain = run_with_gradients(case, inputs, backend="reference")
    for name, tensor in run_with_gradients(case, inputs, backend="cpu").items():
        assert_matches(tensor, plain[name], exact[name], name=name)


def test_no_instruction_beyond_plain_armv8(program: Path) -> None:
    # Atomics of ARMv8.1 (LSE) would stop older cores.
    listing = subprocess.run(
        ["aarch64-linux-gnu-objdump", "-d", "--no-show-raw-insn", program.with_name("isa_neon.o")],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    instructions = set(re.findall(r"^\s+[0-9a-f]+:\s+(\S+)", listing, flags=re.MULTILINE))
    assert "fmla" in instructions
    assert not [name for name in instructions if re.match(r"(cas|swp|ld(add|clr|eor|set|smax|smin|umax|umin))", name)]
