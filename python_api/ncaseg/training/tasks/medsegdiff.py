"""A MedSegDiffNCA learns to denoise a mask, whose coding is the recipe's."""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from ncaseg.config import Config, DiffusionConfig
from ncaseg.data.dataset import CaseStore
from ncaseg.diffusion import objective
from ncaseg.diffusion.losses import answer_loss, painted_loss
from ncaseg.models.base import Segmenter
from ncaseg.sampling.medsegdiff import clock, decode, denoiser, encode, sample_masks, schedule_of
from ncaseg.streams import FIRE, NOISE, TIME, generator, normal, stream
from ncaseg.training.tasks.base import Parts
from ncaseg.training.tasks.segmentation import Segmentation
from ncaseg.training.validation import mean_dice

TIME_BINS = 5
BIN_COLUMNS = tuple(f"x0_error_{i}" for i in range(TIME_BINS))  # from the least noise to the most
COLUMNS = ("answer_loss", "painted_loss", *BIN_COLUMNS)


class MaskDiffusion(Segmentation):
    """A MedSegDiffNCA learns to denoise a mask; see :mod:`ncaseg.sampling.medsegdiff`."""

    columns = COLUMNS

    def batch_loss(self, image: Tensor, target: Tensor, step: int, number: int) -> tuple[Tensor, Parts]:
        return batch_loss(self.model, image, target, self.cfg, step, number)

    def validation_dice(self, model: Segmenter, volumes: CaseStore, ids: Sequence[str]) -> float | None:
        """One sample per case."""
        return validation_dice(model, volumes, ids, self.cfg)


def batch_loss(
    model: Segmenter, image: Tensor, mask: Tensor, cfg: Config, step: int, number: int
) -> tuple[Tensor, dict[str, list[float]]]:
    """The training loss of batch ``number`` of an optimiser step, at a random time for each sample.

    Args:
        model: a :class:`MedSegDiffNCA`.
        image: ``[B, C_in, X, Y, Z]``.
        mask: ``[B, 1, X, Y, Z]`` of 0 and 1.

    Returns:
        The loss, and values for the columns of the log. ``x0_error_i`` are mean squared errors of the clipped x_0 that
        the answers imply, in the coding of the mask, for t in the i-th fifth of the time steps: the error of the answer
        itself falls without any segmentation being learned, since it hardly weighs the times at which x_0 must be read
        off the image.
    """
    diffusion, schedule = cfg.diffusion, schedule_of(cfg.diffusion)
    x0 = encode(mask, diffusion)
    draw = generator(cfg.train.seed, TIME, step, number)
    t = torch.randint(diffusion.timesteps, (len(x0),), generator=draw)
    eps = normal(x0.shape, seed=stream(cfg.train.seed, NOISE, step, number), first_sample=0, step=0).to(x0)
    a = torch.from_numpy(schedule.alpha_bar)[t]
    x_t = objective.add_noise(x0, eps, a)
    answer, painted = denoiser(model).denoise(
        image,
        x_t,
        clock(t, diffusion).to(x0),
        seed=stream(cfg.train.seed, FIRE, step, number),
        keep_every=cfg.train.keep_every,
    )
    weight = None
    if diffusion.snr_gamma > 0:
        weight = objective.min_snr_weight(diffusion.target, torch.from_numpy(schedule.snr)[t], diffusion.snr_gamma)
    of_answer = answer_loss(answer, objective.target_of(diffusion.target, x0, eps, a), weight)
    of_painted = painted_loss(painted, x0, diffusion.image_channels)
    parts: dict[str, list[float]] = {name: [] for name in BIN_COLUMNS}
    with torch.no_grad():
        implied = objective.to_x0(diffusion.target, answer, x_t, a).clamp(*diffusion.clip)
        errors = (implied - x0).square().flatten(1).mean(dim=1)
    for time, error in zip(t.tolist(), errors.tolist(), strict=True):
        parts[BIN_COLUMNS[time * TIME_BINS // diffusion.timesteps]].append(error)
    parts |= {"answer_loss": [of_answer.item()], "painted_loss": [of_painted.item()]}
    return diffusion.noise_weight * of_answer + diffusion.image_weight * of_painted, parts


def validation_dice(model: Segmenter, volumes: CaseStore, ids: Sequence[str], cfg: Config) -> float | None:
    """Mean hard Dice at native geometry of one short DDIM sample per case; None without cases."""
    diffusion = cfg.diffusion
    short = quick(diffusion)
    chosen = ids[: diffusion.validate_cases] if diffusion.validate_cases > 0 else ids

    def answer(image: Tensor, *, seed: int, first_sample: int) -> Tensor:
        return decode(sample_masks(model, image, short, seed=seed, first_sample=first_sample), diffusion)

    return mean_dice(model, volumes, chosen, cfg.train, answer=answer, find=lambda maps: maps[0] > 0.5)


def quick(diffusion: DiffusionConfig) -> DiffusionConfig:
    """The same with the short sampler of validation."""
    return dataclasses.replace(diffusion, sampler="ddim", sample_steps=diffusion.validate_steps)
