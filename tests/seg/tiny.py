"""Models and scans small enough to be run in milliseconds, for the tests of what is done with a trained model."""

from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from ncaseg.config import Config, from_dict
from ncaseg.models import build_model
from ncaseg.models.m3d import M3D
from ncaseg.training.tasks import Task, make_task


def tiny_config(**data) -> Config:
    """A recipe of one level with three steps; keywords go to its data section."""
    labels = data.pop("labels", [1, 2])
    model = {"channels": 6, "hidden": 8, "steps": [3], "out_channels": data.pop("out_channels", 1)}
    return from_dict(
        {
            "name": "tiny",
            "model": model,
            "data": {"labels": labels, **data},
            "train": {"steps": 1},
            "predict": {"samples": 3},
        }
    )


def tiny_model(cfg: Config) -> M3D:
    """A model whose output depends on its input and on the fire bits: an untrained one returns 0 everywhere."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = build_model(cfg.model)
        for level in model.levels:
            torch.nn.init.normal_(level.out_weight, std=0.5)
    return model


def task_of(cfg: Config) -> Task:
    """The task of a recipe around networks without memory."""
    with torch.device("meta"):
        return make_task(cfg, build_model(cfg.model, cfg.cdal))


def write_scan(path: Path, size: tuple[int, int, int] = (7, 9, 6), *, affine: np.ndarray | None = None) -> Path:
    """A NIfTI file of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.random.default_rng(sum(size)).normal(100, 20, size).astype(np.float32)
    nib.save(nib.Nifti1Image(voxels, np.eye(4) if affine is None else affine), path)
    return path
