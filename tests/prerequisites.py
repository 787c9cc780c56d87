"""What `make` looks at first: Python, its headers and `venv`, and a C++ compiler. Any Python 3 can run this file.

python3 tests/prerequisites.py COMPILER
"""

import shlex
import subprocess
import sys
import sysconfig

DEBIAN = "Debian, Ubuntu: sudo apt install g++ python3-dev python3-venv; Fedora: sudo dnf install gcc-c++ python3-devel"
MACOS = "macOS: xcode-select --install"


def missing(compiler):
    """Name the first thing that is missing and what to do about it; None if all is there."""
    if sys.version_info < (3, 11):  # noqa: UP036  this file also runs where the project does not
        version = ".".join(map(str, sys.version_info[:2]))
        return f"ncakern needs Python 3.11 or later; this is {version}. Name another: make PYTHON=python3.12"
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        return f"Python's venv is missing. Install it. {DEBIAN}"
    headers = sysconfig.get_path("include")
    for what, source in (("a C++ compiler", "#include <vector>\n"), ("Python's headers", "#include <Python.h>\n")):
        if not compiles(compiler, headers, source):
            return f"{what} ({compiler!r}, {headers}) is missing. Install it. {DEBIAN}; {MACOS}"
    return None


def compiles(compiler, headers, source):
    """Whether the compiler understands `source`, with Python's headers at hand."""
    command = [*shlex.split(compiler), "-x", "c++", "-fsyntax-only", f"-I{headers}", "-"]
    try:
        return subprocess.run(command, input=source.encode(), stderr=subprocess.DEVNULL, check=False).returncode == 0
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(missing(sys.argv[1]))
