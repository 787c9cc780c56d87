"""How much memory there is, is used, and is asked for; in bytes."""

from __future__ import annotations

import math
import re
import resource
import sys
from pathlib import Path

UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_bytes(text: str) -> int:
    """A number of bytes from a text such as ``2GB`` (10**9), ``500MB`` or ``1.5GiB`` (2**30).

    Raises:
        ValueError: it is no such text.

    Example:
        >>> parse_bytes("1.5GB"), parse_bytes("2 GiB")
        (1500000000, 2147483648)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]?I?B)\s*", text.upper())
    if match is None or match[2] not in UNITS or float(match[1]) <= 0:
        raise ValueError(f"memory must be a positive number with a unit, such as 2GB or 512MB; got {text!r}")
    return int(float(match[1]) * UNITS[match[2]])


def show_bytes(count: float) -> str:
    """A size for people; megabytes are rounded up, so that little is not nothing.

    Example:
        >>> show_bytes(2_340_000_000), show_bytes(50_300_000)
        ('2.34 GB', '51 MB')
    """
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{math.ceil(count / 1e6)} MB"


def resident_bytes() -> int:
    """Memory that this process occupies now; where the system does not say, the most it has occupied so far."""
    return _status("VmRSS")


def peak_bytes() -> int:
    """The most memory that this process has occupied so far."""
    return _status("VmHWM")


def _status(name: str) -> int:
    path = Path("/proc/self/status")
    if path.exists():
        line = next(line for line in path.read_text().splitlines() if line.startswith(name))
        return int(line.split()[1]) * 1024
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage if sys.platform == "darwin" else usage * 1024
