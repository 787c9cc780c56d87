"""Builds the C++ extension `ncakern._cpu`, and says the version: all other metadata lies in pyproject.toml.

Without a compiler the package installs all the same, without the extension. pip shows nothing of a build but
the version of what it made, so the version says it: "Successfully installed ncakern-0.1.0+no.compiler.no.fast.kernel".

NCAKERN_REQUIRE_EXT=1   a failing build is an error
NCAKERN_SANITIZE=1      with AddressSanitizer and UndefinedBehaviorSanitizer; `make sanitize` also runs the tests so
"""

import os
import re
import shlex
import subprocess
import sys
import sysconfig
from glob import glob
from pathlib import Path

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension
from setuptools import setup

WITHOUT_KERNEL = "+no.compiler.no.fast.kernel"


def is_set(name: str) -> bool:
    """Read a build switch; anything but 0 and 1 is an error, so that a misspelt value is not taken for "off"."""
    value = os.environ.get(name, "0")
    if value not in ("0", "1"):
        raise SystemExit(f"{name} must be 0 or 1; got {value!r}")
    return value == "1"


def has_compiler() -> bool:
    """Ask the C++ compiler about a file that needs what the extension needs: its library and Python's headers."""
    compiler = shlex.split(os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++")
    command = [*compiler, "-x", "c++", "-fsyntax-only", f"-I{sysconfig.get_path('include')}", "-"]
    try:
        return subprocess.run(command, input=b"#include <Python.h>\n#include <vector>\n", check=False).returncode == 0
    except OSError:
        return False


def version() -> str:
    """Read the version from the package, and mark it where nothing will be compiled."""
    (number,) = re.findall(r'^__version__ = "(.+)"$', Path("ncakern/__init__.py").read_text(), re.MULTILINE)
    return number if is_set("NCAKERN_REQUIRE_EXT") or has_compiler() else number + WITHOUT_KERNEL


compile_args, link_args = ["-O3"], []
if sys.platform == "darwin":
    print("ncakern: Apple's compiler has no OpenMP, so the kernel is built for one thread", file=sys.stderr)
else:
    # Linked under its plain name: torch's wheels carry the same libgomp, and two would mean two spinning thread pools.
    compile_args += ["-fopenmp"]
    link_args += ["-fopenmp"]
if is_set("NCAKERN_SANITIZE"):
    sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    compile_args += [*sanitizers, "-fno-omit-frame-pointer", "-g", "-O2"]  # the last -O counts
    link_args += sanitizers

extension = Pybind11Extension(
    "ncakern._cpu",
    sorted(glob("csrc/*.cpp")),
    # Only what is named here reaches the source distribution.
    depends=sorted(path for kind in ("h", "inl", "inc", "md") for path in glob(f"csrc/**/*.{kind}", recursive=True)),
    cxx_std=17,
    extra_compile_args=compile_args,
    extra_link_args=link_args,
    optional=not is_set("NCAKERN_REQUIRE_EXT"),
)

ParallelCompile("NCAKERN_BUILD_JOBS").install()
setup(version=version(), ext_modules=[extension])
