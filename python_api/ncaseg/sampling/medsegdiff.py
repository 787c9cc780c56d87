"""MedSegDiffNCA at work: masks in its coding, and samples of a volume.

A mask is coded as the recipe says ("signed": -1 and +1, "unit": 0 and 1); volumes are ``[C, X, Y, Z]``, pictures have
one cell on Z. Everything random is a function of a seed, the number of the sample and the time step.
"""

import torch
from torch import Tensor

from ncaseg.config import Config, DiffusionConfig
from ncaseg.data.dataset import Volume
from ncaseg.diffusion import sampler
from ncaseg.diffusion.sampler import Watch
from ncaseg.diffusion.schedule import Schedule, make_schedule
from ncaseg.models.base import Segmenter
from ncaseg.models.medsegdiffnca.model import MedSegDiffNCA
from ncaseg.sampling.summary import Sampled, summarise
from ncaseg.streams import normal

MEMBER_BUDGET_BYTES = 512 * 2**20  # of states that run at once; more members take turns
STATES_AT_WORK = 8  # per member: state, its successor, what attention makes of it


@torch.no_grad()
def sample_masks(
    model: Segmenter,
    image: Tensor,
    diffusion: DiffusionConfig,
    *,
    seed: int,
    first_sample: int = 0,
    watch: Watch | None = None,
) -> Tensor:
    """One mask for every image, in the recipe's coding, cut to its clip range.

    Noise and fire bits of a sample depend on (seed, its number, t): the result is the same alone and in a batch.

    Args:
        image: ``[B, C_in, X, Y, Z]``; repeat one image for an ensemble.
        watch: see :mod:`ncaseg.diffusion.sampler`.

    Returns:
        ``[B, 1, X, Y, Z]``.
    """
    net = denoiser(model)

    def predict(x_t: Tensor, t: int) -> Tensor:
        times = clock(torch.full((len(image),), t), diffusion).to(image)
        # Every time step has fire bits of its own, the same ones whatever times are visited.
        first_step = t * net.num_steps
        answer, _ = net.denoise(image, x_t, times, seed=seed, first_step=first_step, first_sample=first_sample)
        return answer

    def draw_noise(t: int) -> Tensor:
        return normal((len(image), 1, *image.shape[2:]), seed=seed, first_sample=first_sample, step=t).to(image)

    sample = {"ddpm": sampler.sample_ddpm, "ddim": sampler.sample_ddim}[diffusion.sampler]
    options = {"steps": diffusion.sample_steps, "target": diffusion.target, "clip": diffusion.clip, "watch": watch}
    return sample(predict, draw_noise, schedule_of(diffusion), **options)  # type: ignore[arg-type]


def sample_volume(model: Segmenter, volume: Volume, cfg: Config, samples: int, seed: int) -> Tensor:
    """An ensemble for one case: ``[N, 1, X, Y, Z]`` on the network's grid, in the recipe's coding, on the CPU.

    Raises:
        ValueError: ``samples`` is below 1, or the volume does not fit the model.
    """
    if samples < 1:
        raise ValueError(f"samples must be at least 1; got {samples}")
    image = torch.from_numpy(volume.image).to(next(model.parameters()).device)
    member_bytes = 4 * STATES_AT_WORK * denoiser(model).channels * image[0].numel()
    at_once = max(1, MEMBER_BUDGET_BYTES // member_bytes)
    members = []
    for first in range(0, samples, at_once):
        batch = image.expand(min(at_once, samples - first), *image.shape)
        members.append(sample_masks(model, batch, cfg.diffusion, seed=seed, first_sample=first).cpu())
    return torch.cat(members)


def sample_case(model: Segmenter, volume: Volume, cfg: Config, samples: int, seed: int) -> Sampled:
    """The ensemble of :func:`sample_volume` as probabilities; errors as there."""
    coded = sample_volume(model, volume, cfg, samples, seed)
    members = decode(coded, cfg.diffusion)
    mean, variance, _ = summarise(members)
    uncut = decode_uncut(coded, cfg.diffusion).mean(dim=0)
    return Sampled(members.numpy(), mean.numpy(), variance.numpy(), uncut.numpy())


def encode(mask: Tensor, diffusion: DiffusionConfig) -> Tensor:
    """A mask of 0 and 1 in the recipe's coding."""
    return mask * 2 - 1 if diffusion.mask == "signed" else mask


def decode(coded: Tensor, diffusion: DiffusionConfig) -> Tensor:
    """Values in the recipe's coding as probabilities in [0, 1]; what the clip range leaves beyond them is cut."""
    return decode_uncut(coded, diffusion).clamp(0.0, 1.0)


def decode_uncut(coded: Tensor, diffusion: DiffusionConfig) -> Tensor:
    """The same without the cut: below 0 is possible where the coding is 0 and 1 and the clip range begins at -1."""
    return (coded + 1) / 2 if diffusion.mask == "signed" else coded


def clock(t: Tensor, diffusion: DiffusionConfig) -> Tensor:
    """What the network is told about times ``[B]``: float32 ``[B]``."""
    return t.float() / diffusion.timesteps if diffusion.time == "fraction" else t.float()


def denoiser(model: Segmenter) -> MedSegDiffNCA:
    """The model as what it must be here."""
    if not isinstance(model, MedSegDiffNCA):
        raise TypeError(f"model must be a MedSegDiffNCA; got {type(model).__name__}")
    return model


def schedule_of(diffusion: DiffusionConfig) -> Schedule:
    return make_schedule(diffusion.schedule, diffusion.timesteps)
