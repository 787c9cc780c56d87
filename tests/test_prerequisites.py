"""What `make` says before it does anything, where something is missing."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("prerequisites.py")


def look(compiler: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), compiler], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("compiler", ["/bin/false", "/no/such/compiler"])
def test_a_missing_compiler_is_named_with_what_to_install(compiler):
    done = look(compiler)
    assert done.returncode == 1
    assert "C++ compiler" in done.stderr and compiler in done.stderr and "apt install g++" in done.stderr


def test_missing_headers_are_told_from_a_missing_compiler(tmp_path):
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\nif grep -q Python.h; then exit 1; fi\n")
    compiler.chmod(0o755)
    done = look(str(compiler))
    assert done.returncode == 1
    assert "Python's headers" in done.stderr and "python3-dev" in done.stderr
