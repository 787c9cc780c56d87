"""Holds the predictions of the emulated and of this machine to float64, with the tolerance of all backends.

compare.py MODEL SCAN FOLDER    FOLDER holds emulated/ and native/, as predict.py writes them
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from helpers import FLOOR, TIMES_PLAIN_ERROR, assert_matches
from torch import Tensor

from ncaseg.checkpoint.model import load_model
from ncaseg.data.dataset import load_case
from ncaseg.data.index import Case


def reference(name: str, scan: Path, dtype: torch.dtype) -> Tensor:
    """The logits ``[C_out, *S]`` of the definition in plain PyTorch, in the given dtype."""
    os.environ["NCAKERN_BACKEND"] = "reference"
    model, cfg, _ = load_model(name)
    volume = load_case(Case(id="scan", image=scan, label=None), cfg.data)
    with torch.no_grad():
        logits = model.to(dtype)(torch.from_numpy(volume.image).to(dtype)[None], seed=cfg.predict.seed)
    return torch.from_numpy(volume.to_native(logits[0].numpy()))


def check(folder: Path, plain: Tensor, exact: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The logits and labels of one machine, both right.

    Raises:
        AssertionError: the logits are further from ``exact`` than any backend may be, or a label is wrong at a voxel
            whose logit is further from 0 than that.
    """
    logits = np.load(folder / "logits.npy")
    labels = np.asarray(nib.load(folder / "seg.nii.gz").dataobj)
    assert_matches(torch.from_numpy(logits), plain, exact, name=folder.name)
    rounding = TIMES_PLAIN_ERROR * (plain - exact).abs().max() + FLOOR * exact.abs().max()
    wrong = (labels != (exact[0] > 0).numpy()) & (exact[0].abs() > rounding).numpy()
    assert not wrong.any(), f"{folder.name}: {wrong.sum()} of {wrong.size} labels are wrong"
    return logits, labels


def main() -> None:
    model, scan, folder = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    plain, exact = reference(model, scan, torch.float32), reference(model, scan, torch.float64)
    assert 0 < (exact > 0).sum() < exact.numel(), "the model must find something, and not everything"
    (found, labels), (expected, expected_labels) = (
        check(folder / machine, plain, exact) for machine in ("emulated", "native")
    )
    errors = [np.abs(logits - exact.numpy()).max() for logits in (found, expected, plain.numpy())]
    print("largest error of a logit: emulated {:.2e}, native {:.2e}, plain PyTorch {:.2e}".format(*errors))
    print(
        f"emulated and native: logits differ by at most {np.abs(found - expected).max():.2e}, "
        f"labels at {(labels != expected_labels).sum()} of {labels.size} voxels"
    )


if __name__ == "__main__":
    main()
