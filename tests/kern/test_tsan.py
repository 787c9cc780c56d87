"""The kernel under ThreadSanitizer, one case of each kind on three threads; skipped without the compiler's runtime."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Case, assert_matches, make_inputs, run_with_gradients
from kern.test_neon import Emulated

from ncakern import _kernel
from ncakern.backends import cpu

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
THREADS = 3
CASES = [
    Case(size=(9, 11), channels=16, hidden=64, options={"frozen_channels": 1}),
    Case(size=(7, 9), channels=5, hidden=7, num_filters=2, batch=1, options={"activation": "leaky_relu"}),
    Case(size=(3, 5, 7), channels=16, hidden=64, options={"norm": "batch", "padding": "zeros"}),
    Case(size=(5, 7), channels=5, num_filters=2, batch=3, has_modulation=True, options={"norm": "instance"}),
    Case(size=(9, 5), channels=8, hidden=20, num_filters=2, options={"perception": "dense"}),
    Case(size=(7, 4), channels=5, num_filters=3, options={"perception": "dense", "norm": "batch"}),
    Case(size=(5, 4), has_perceive_from=True, steps=1, options={"perception": "dense", "padding": "circular"}),
    Case(size=(6, 7), channels=5, steps=9, keep_every="sqrt", has_modulation=True, options={"padding": "replicate"}),
    Case(size=(6, 7), channels=5, steps=7, keep_every=3, options={"perception": "dense"}, dtype=torch.bfloat16),
    Case(size=(67, 33), channels=5, batch=1, options={"norm": "batch"}, dtype=torch.float16),
]


class Sanitized(Emulated):
    """Runs calls on more threads than torch has, without an emulator."""

    emulator = ()

    def run(self, arrays: dict[str, Any], options: dict[str, Any]) -> None:
        super().run(arrays, options | {"threads": THREADS})

    def variants(self) -> dict[str, bool]:
        return {"scalar": True}

    fwd = bwd = run


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tsan") / "run_call"
    # Vectors of 16 bytes, all of which the instrumentation knows.
    flags = ["-std=c++17", "-O1", "-g", "-fopenmp", "-fsanitize=thread", "-Dneon=scalar", f"-I{ROOT / 'csrc'}"]
    sources = [ROOT / "csrc/isa_scalar.cpp", ROOT / "csrc/interrupt.cpp"]
    sources += [ROOT / "tests/kern/neon/run_call.cpp", ROOT / "tests/kern/tsan/gomp.cpp"]
    objects = [path.with_name(f"{source.stem}.o") for source in sources]
    try:
        for source, target in zip(sources, objects, strict=True):
            subprocess.run(["g++", *flags, "-c", source, "-o", target], check=True, capture_output=True)
        # Without -fopenmp: its runtime is ours.
        subprocess.run(["g++", "-fsanitize=thread", *objects, "-o", path, "-lpthread"], check=True, capture_output=True)
        subprocess.run([path], check=False)
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no g++ with ThreadSanitizer: {error}")
    return path


@pytest.fixture
def sanitized(program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    extension = Sanitized(program, tmp_path)
    for module, name in ((cpu, "_load"), (cpu, "require_extension"), (_kernel, "import_extension")):
        monkeypatch.setattr(module, name, lambda: extension)
    monkeypatch.setenv("NCAKERN_ISA", "scalar")
    monkeypatch.setenv("TSAN_OPTIONS", "exitcode=66 halt_on_error=1")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_no_two_threads_race(case: Case, sanitized: None) -> None:
    inputs = make_inputs(case).to(case.dtype, torch.float32)
    exact = run_with_gradients(case, inputs.to(torch.float64, torch.float64), backend="reference")
    plain = run_with_gradients(case, inputs, backend="reference")
    for name, tensor in run_with_gradients(case, inputs, backend="cpu").items():
        assert_matches(tensor, plain[name], exact[name], name=name)


def test_a_race_is_seen(sanitized: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_BARRIERS", "1")
    case = CASES[2]
    with pytest.raises(subprocess.CalledProcessError, match="exit status 66"):
        run_with_gradients(case, make_inputs(case), backend="cpu")
