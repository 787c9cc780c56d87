"""The sampling strip of a picture: how one mask comes out of noise, and what the ensemble says."""

from pathlib import Path

import numpy as np
import torch

from ncaseg.config import Config
from ncaseg.data.dataset import Volume
from ncaseg.models.base import Segmenter
from ncaseg.report import volumes
from ncaseg.sampling.medsegdiff import decode, sample_masks, sample_volume
from ncaseg.sampling.summary import summarise


def draw_strip(path: str | Path, model: Segmenter, volume: Volume, cfg: Config, samples: int, seed: int) -> None:
    """Draw how the first sample of a picture came about, and what the ensemble says, see ``volumes.draw_sampling``."""
    frames: list[tuple[str, np.ndarray]] = []
    last = cfg.diffusion.timesteps - 1

    def watch(t: int, x_t: torch.Tensor, x0: torch.Tensor) -> None:
        frames.append((f"x, t = {t}" if t < last else f"x, t = {t}: noise", x_t[0, 0, ..., 0].cpu().numpy()))

    image = torch.from_numpy(volume.image)[None].to(next(model.parameters()).device)
    result = sample_masks(model, image, cfg.diffusion, seed=seed, watch=watch)
    every = max(1, len(frames) // 5)
    chosen = [*frames[::every][:5], ("x_0", result[0, 0, ..., 0].cpu().numpy())]
    members = decode(sample_volume(model, volume, cfg, samples, seed), cfg.diffusion)
    mean, variance, _ = summarise(members[:, 0, ..., 0])
    low, high = (-1.0, 1.0) if cfg.diffusion.mask == "signed" else (0.0, 1.0)
    volumes.draw_sampling(path, volume.image[..., 0], chosen, (low, high), mean.numpy(), variance.sqrt().numpy())
