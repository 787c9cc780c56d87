"""How much noise there is at each time step: beta, alpha_bar and the signal-to-noise ratio, in float64.

Time counts from 0, the least noise, to ``timesteps - 1``. ``x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps``.
"""

import math
from dataclasses import dataclass

import numpy as np

LINEAR_RANGE = (1e-4, 0.02)  # of 1000 steps: Ho et al., DDPM, 2020, section 4
LARGEST_BETA = 0.999  # Nichol and Dhariwal, Improved DDPM, 2021, section 3.2
COSINE_OFFSET = 0.008  # the same, equation 17
NAMES = ("linear", "cosine")


@dataclass(frozen=True)
class Schedule:
    """The variances of the steps.

    Args:
        betas: ``[T]`` float64, each in (0, 1).

    Raises:
        ValueError: there is none, or one lies outside.
    """

    betas: np.ndarray

    def __post_init__(self) -> None:
        if self.betas.ndim != 1 or not len(self.betas) or self.betas.min() <= 0 or self.betas.max() >= 1:
            raise ValueError(f"betas must be a list of numbers between 0 and 1; got {self.betas}")

    @property
    def timesteps(self) -> int:
        """T."""
        return len(self.betas)

    @property
    def alpha_bar(self) -> np.ndarray:
        """``[T]``: the share of the signal's power that is left, the product of ``1 - beta`` so far."""
        return np.cumprod(1.0 - self.betas)

    @property
    def snr(self) -> np.ndarray:
        """``[T]``: ``alpha_bar / (1 - alpha_bar)``."""
        return self.alpha_bar / (1.0 - self.alpha_bar)


def linear(timesteps: int) -> Schedule:
    """Betas on a line from ``0.1 / T`` to ``20 / T``: the usual 1e-4 ... 0.02 of 1000 steps, rescaled.

    Without the factor ``1000 / T`` a tenth of the steps would leave a third of the signal's power at the last one, and
    sampling starts from none.

    Raises:
        ValueError: fewer than 21 steps, where the last beta would reach 1.

    Example:
        >>> linear(100).betas[[0, -1]].round(12).tolist()
        [0.001, 0.2]
    """
    if timesteps < 21:
        raise ValueError(f"timesteps must be at least 21 for the linear schedule; got {timesteps}")
    first, last = (beta * 1000 / timesteps for beta in LINEAR_RANGE)
    return Schedule(np.linspace(first, last, timesteps, dtype=np.float64))


def cosine(timesteps: int) -> Schedule:
    """``alpha_bar`` along ``cos^2((t / T + s) / (1 + s) * pi / 2)``, s = 0.008; no beta above 0.999.

    Raises:
        ValueError: fewer than one step.

    Example:
        >>> round(float(cosine(100).alpha_bar[49]), 4)
        0.4938

    Reference:
        Nichol and Dhariwal, Improved Denoising Diffusion Probabilistic Models, 2021, equation 17.
    """
    if timesteps < 1:
        raise ValueError(f"timesteps must be at least 1; got {timesteps}")
    edges = np.arange(timesteps + 1, dtype=np.float64) / timesteps
    left = np.cos((edges + COSINE_OFFSET) / (1 + COSINE_OFFSET) * math.pi / 2) ** 2
    return Schedule(np.minimum(1 - left[1:] / left[:-1], LARGEST_BETA))


def make_schedule(name: str, timesteps: int) -> Schedule:
    """The schedule of that name, one of ``NAMES``."""
    if name not in NAMES:
        raise ValueError(f"schedule must be one of {', '.join(NAMES)}; got {name!r}")
    return linear(timesteps) if name == "linear" else cosine(timesteps)
