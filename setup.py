"""Builds the C++ extension `ncakern._cpu`, and nothing else: all metadata lies in pyproject.toml.

Without a working compiler the package installs all the same, without the extension; `python -m ncakern.info` says so.

NCAKERN_REQUIRE_EXT=1   a failing build is an error
NCAKERN_SANITIZE=1      with AddressSanitizer and UndefinedBehaviorSanitizer; `make sanitize` also runs the tests so
"""

import os
import sys
from glob import glob

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension
from setuptools import setup


def is_set(name: str) -> bool:
    """Read a build switch; anything but 0 and 1 is an error, so that a misspelt value is not taken for "off"."""
    value = os.environ.get(name, "0")
    if value not in ("0", "1"):
        raise SystemExit(f"{name} must be 0 or 1; got {value!r}")
    return value == "1"


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
    depends=sorted(glob("csrc/*.h") + glob("csrc/*.inl") + glob("csrc/*.inc") + glob("csrc/*.md")),
    cxx_std=17,
    extra_compile_args=compile_args,
    extra_link_args=link_args,
    optional=not is_set("NCAKERN_REQUIRE_EXT"),
)

ParallelCompile("NCAKERN_BUILD_JOBS").install()
setup(ext_modules=[extension])
