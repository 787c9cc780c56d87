"""Runs ``python -m ncaseg.edge`` on one scan and keeps what it computed; numpy alone, for any machine.

predict.py MODEL SCAN FOLDER    FOLDER takes seg.nii.gz, of the command, and logits.npy, [C_out, *S] float32
"""

from __future__ import annotations

import platform
import runpy
import sys
from pathlib import Path

import numpy as np

from ncaseg.budget import peak_bytes, show_bytes
from ncaseg.data.dataset import load_case
from ncaseg.data.index import Case


def run_command(model: str, scan: Path, target: Path) -> None:
    """What a shell would run, in this process."""
    sys.argv = ["ncaseg.edge", model, str(scan), "-o", str(target), "--samples", "1"]
    try:
        runpy.run_module("ncaseg.edge", run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        if stop.code:
            raise


def logits_of(name: str, scan: Path) -> np.ndarray:
    """The logits ``[C_out, *S]`` that the command thresholds."""
    # Not at the top: -m would find its module loaded already, and warn.
    from ncaseg.edge import load_edge_model, run_member

    model, cfg = load_edge_model(name)
    volume = load_case(Case(id="scan", image=scan, label=None), cfg.data)
    return volume.to_native(run_member(model, volume.image, seed=cfg.predict.seed, member=0))


def main() -> None:
    model, scan, folder = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    folder.mkdir(exist_ok=True)
    run_command(model, scan, folder / "seg.nii.gz")
    peak = show_bytes(peak_bytes())
    np.save(folder / "logits.npy", logits_of(model, scan))
    versions = f"Python {platform.python_version()}, numpy {np.__version__}"
    print(f"{platform.machine()}, {versions}: peak resident memory {peak}, an emulator's included")


if __name__ == "__main__":
    main()
