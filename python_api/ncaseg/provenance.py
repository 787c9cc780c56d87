"""What made a result: versions, commit and machine, so that a number in a file says where it comes from."""

import datetime
import os
import platform
import re
import subprocess
from pathlib import Path

import numpy as np
import torch

import ncakern


def describe() -> dict[str, str | int | bool]:
    """Plain facts about this process: date, version and commit of the package, processor, threads, versions.

    ``commit`` is "unknown" for an installed package; ``dirty`` says that the source differs from it.
    """
    commit = _git("rev-parse", "--short=10", "HEAD")
    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "ncakern": ncakern.__version__,
        "commit": commit if commit else "unknown",
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "machine": _processor(),
        "cpus": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        **gpu,
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.exists() else None
    return named[1] if named else platform.processor() or platform.machine()


def _git(*arguments: str) -> str | None:
    """Ask git about the source tree; None for a package that lies in none, or without git."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
