"""cDAL at work: labels in its coding, and samples of a volume.

Volumes are ``[B, C, X, Y, Z]``, pictures have one cell on Z. A generator of two axes takes every slice of Z as a sample
of its own. Everything random is a function of a seed, the number of the sample and the time.

Reference:
    Hejrati, Banerjee, Glide-Hurst, Dong, Conditional diffusion model with spatial attention and latent embedding for
    medical image segmentation, MICCAI 2024.
"""

import torch
from torch import Tensor

from ncaseg.config import CdalConfig, Config
from ncaseg.data.dataset import Volume
from ncaseg.diffusion import coarse
from ncaseg.models.base import Segmenter
from ncaseg.models.cdal.base import Generator
from ncaseg.models.cdal.build import CDAL
from ncaseg.sampling.summary import Sampled
from ncaseg.sampling.windows import mean_of_windows, windows
from ncaseg.streams import normal, stream

CELLS_AT_ONCE = 2**18  # of samples that run at once; more of them take turns


@torch.no_grad()
def sample_labels(model: Segmenter, image: Tensor, cfg: Config, *, seed: int, first_sample: int = 0) -> Tensor:
    """One label for every image, in the recipe's coding.

    Noise, latents and fire bits of a sample depend on (seed, its number, the time): the result is the same alone and
    in a batch, up to the rounding of the convolutions.

    Args:
        model: a :class:`CDAL`.
        image: ``[B, C_in, X, Y, Z]``; repeat one image for an ensemble.

    Returns:
        ``[B, C, X, Y, Z]`` in [-1, 1]; C is 1, or the classes and the background before them.
    """
    net, cdal = generator_of(model), cfg.cdal
    steps, parts = cdal.timesteps, image.shape[-1] if net.ndim == 2 else 1
    flat_image = to_samples(image, net.ndim)

    def draw_noise(time: int) -> Tensor:
        shape = (len(image), net.label_channels, *image.shape[2:])
        return to_samples(normal(shape, seed=seed, first_sample=first_sample, step=time).to(image), net.ndim)

    def predict(x: Tensor, tau: int) -> Tensor:
        # Numbers of z follow those of the noise, whose times are 0..T.
        shape = (len(image), parts, net.latent)
        z = normal(shape, seed=seed, first_sample=first_sample, step=steps + 1 + tau).flatten(0, 1).to(image)
        inputs = (x, torch.full((len(x),), tau, device=x.device), flat_image, z * cdal.latent_on)
        at_once = max(1, CELLS_AT_ONCE // x[0, 0].numel())
        labels, bits = [], stream(seed, tau)  # automata count their own steps from 0 at every tau
        for first in range(0, len(x), at_once):
            x_part, times, image_part, z_part = (tensor[first : first + at_once] for tensor in inputs)
            number = first_sample * parts + first
            latent = z_part if net.latent > 0 else None
            labels.append(net(x_part, times, image_part, latent, seed=bits, first_sample=number))
        return torch.cat(labels)

    schedule = coarse.make_coarse_schedule(steps, offset=cdal.offset)
    labels = coarse.sample(predict, draw_noise, schedule, posterior_noise=cdal.posterior_noise)
    return from_samples(labels, image.shape[-1], net.ndim)


def sample_volume(model: Segmenter, volume: Volume, cfg: Config, samples: int, seed: int) -> Tensor:
    """An ensemble for one case: probabilities ``[N, C, X, Y, Z]`` on the network's grid, on the CPU.

    Where the recipe has a window, every window is sampled on its own, and a member is their mean.

    Raises:
        ValueError: ``samples`` is below 1, or the volume does not fit the model.
    """
    if samples < 1:
        raise ValueError(f"samples must be at least 1; got {samples}")
    image = torch.from_numpy(volume.image).to(next(model.parameters()).device)
    if not cfg.cdal.window:
        return sample_members(model, image, cfg, samples, seed)
    size = image.shape[1:]
    parts = (
        (where, sample_members(model, image[(slice(None), *where)], cfg, samples, stream(seed, number)))
        for number, where in enumerate(windows(size, cfg.cdal.window, cfg.cdal.overlap))
    )
    return mean_of_windows(parts, size)


def sample_case(model: Segmenter, volume: Volume, cfg: Config, samples: int, seed: int) -> Sampled:
    """The ensemble of :func:`sample_volume`; errors as there."""
    members = sample_volume(model, volume, cfg, samples, seed).numpy()
    return Sampled(members, members.mean(0), members.var(0))


def sample_members(model: Segmenter, image: Tensor, cfg: Config, samples: int, seed: int) -> Tensor:
    """An ensemble for one image ``[C_in, X, Y, Z]``: probabilities ``[N, C, X, Y, Z]`` on the CPU."""
    at_once = max(1, CELLS_AT_ONCE // image[0].numel())
    members = []
    for first in range(0, samples, at_once):
        batch = image.expand(min(at_once, samples - first), *image.shape)
        coded = sample_labels(model, batch, cfg, seed=seed, first_sample=first)
        members.append(decode(coded, cfg.cdal).cpu())
    return torch.cat(members)


def encode(mask: Tensor, cfg: Config) -> Tensor:
    """Masks of 0 and 1 ``[B, C_out, *S]`` in the recipe's coding: -1 and +1, the background first if there are classes.

    Example:
        >>> from ncaseg.config import Config, TrainConfig
        >>> encode(torch.tensor([0.0, 1.0]), Config(name="", train=TrainConfig(steps=1))).tolist()
        [-1.0, 1.0]
    """
    if cfg.model.has_background:
        mask = torch.cat([1 - mask.amax(dim=1, keepdim=True), mask], dim=1)
    return 1 - 2 * mask if cfg.cdal.inverted else 2 * mask - 1


def decode(coded: Tensor, cdal: CdalConfig) -> Tensor:
    """Values in the recipe's coding as probabilities in [0, 1]."""
    return ((1 - coded if cdal.inverted else coded + 1) / 2).clamp(0.0, 1.0)


def to_samples(volumes: Tensor, ndim: int) -> Tensor:
    """``[B, C, X, Y, Z]`` as the samples of a network of ``ndim`` axes: the same, or ``[B Z, C, X, Y]``."""
    return volumes if ndim == 3 else volumes.permute(0, 4, 1, 2, 3).flatten(0, 1)


def from_samples(samples: Tensor, depth: int, ndim: int) -> Tensor:
    """What :func:`to_samples` made of volumes with ``depth`` cells on Z, as volumes again."""
    return samples if ndim == 3 else samples.unflatten(0, (-1, depth)).permute(0, 2, 3, 4, 1).contiguous()


def generator_of(model: Segmenter) -> Generator:
    """The generator in the model; TypeError where it holds none."""
    if not isinstance(model, CDAL):
        raise TypeError(f"model must be a CDAL; got {type(model).__name__}")
    return model.generator
