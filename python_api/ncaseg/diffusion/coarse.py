"""A diffusion of two or four steps: its schedule, Markov pairs for training, the posterior, and sampling.

There are times k = 0..T: 0 is exactly clean, T is noise. A network is told ``tau`` in 0..T-1, which means the step
from time ``tau + 1`` down to time ``tau``. Every sample of a batch has a ``tau`` of its own.

Reference:
    Xiao, Kreis, Vahdat, Tackling the generative learning trilemma with denoising diffusion GANs, ICLR 2022.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

BETA_MIN, BETA_MAX = 0.1, 20.0


@dataclass(frozen=True)
class CoarseSchedule:
    """``beta`` float64 ``[T]``; ``beta[tau]`` is the variance that the step from time tau to time tau + 1 adds."""

    beta: Tensor

    @property
    def num_steps(self) -> int:
        """T."""
        return len(self.beta)

    @property
    def signal(self) -> Tensor:
        """The scale A_k of x_0 at times 0..T, float64 ``[T + 1]``: ``x_k = A_k x_0 + sqrt(1 - A_k^2) noise``."""
        return torch.cat([torch.ones(1, dtype=torch.float64), (1 - self.beta).sqrt().cumprod(0)])

    @property
    def noise(self) -> Tensor:
        """The scale sqrt(1 - A_k^2) of the noise at times 0..T, float64 ``[T + 1]``."""
        return (1 - self.signal.square()).sqrt()

    def posterior(self) -> tuple[Tensor, Tensor, Tensor]:
        """``c1, c2, std``, each float64 ``[T]``, of q(x_tau | x_{tau+1}, x_0) = N(c1 x_0 + c2 x_{tau+1}, std^2).

        At tau = 0 they are exactly 1, 0, 0.
        """
        before = self.signal[:-1].square()
        rest = 1 - before * (1 - self.beta)
        c1 = self.beta * before.sqrt() / rest
        c2 = (1 - self.beta).sqrt() * (1 - before) / rest
        c1[0], c2[0] = 1.0, 0.0
        return c1, c2, (self.beta * (1 - before) / rest).sqrt()


def make_coarse_schedule(num_steps: int, *, offset: float = 1e-3) -> CoarseSchedule:
    """The variance-preserving SDE with beta from 0.1 to 20, cut into ``num_steps`` pieces.

    ``beta_k = 1 - abar(s_k) / abar(s_{k-1})`` with ``abar(s) = exp(-s^2 (20 - 0.1) / 2 - 0.1 s)`` and
    ``s_k = (k / T)(1 - offset) + offset``. The published codes have an offset of 1e-3, the papers print 0.

    Raises:
        ValueError: there is no step, or the offset is not in [0, 1).
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1; got {num_steps}")
    if not 0.0 <= offset < 1.0:
        raise ValueError(f"offset must lie in [0, 1); got {offset}")
    s = torch.arange(num_steps + 1, dtype=torch.float64) / num_steps * (1 - offset) + offset
    log_abar = -0.5 * s.square() * (BETA_MAX - BETA_MIN) - s * BETA_MIN
    return CoarseSchedule(1 - torch.exp(log_abar.diff()))


def noisy_pair(
    schedule: CoarseSchedule, x0: Tensor, tau: Tensor, noises: tuple[Tensor, Tensor], *, pair: str = "markov"
) -> tuple[Tensor, Tensor]:
    """``x_tau, x_{tau+1}``: the label at time tau, and one forward step further.

    Args:
        schedule: T steps.
        x0: ``[B, ...]``.
        tau: ``[B]`` int64 in 0..T-1.
        noises: two independent standard normal ``[B, ...]``: one leads to time tau, the other one step further.
        pair: "shared_noise" makes both from x0 with the first noise instead, which is no Markov pair.
    """
    signal, noise = schedule.signal, schedule.noise
    x_tau = _at(signal, tau, x0) * x0 + _at(noise, tau, x0) * noises[0]
    if pair == "shared_noise":
        return x_tau, _at(signal, tau + 1, x0) * x0 + _at(noise, tau + 1, x0) * noises[0]
    beta = schedule.beta
    return x_tau, _at((1 - beta).sqrt(), tau, x0) * x_tau + _at(beta.sqrt(), tau, x0) * noises[1]


def renoise(schedule: CoarseSchedule, x0: Tensor, tau: Tensor, noise: Tensor) -> Tensor:
    """x0 ``[B, ...]`` noised afresh to time tau."""
    return _at(schedule.signal, tau, x0) * x0 + _at(schedule.noise, tau, x0) * noise


def posterior_sample(
    schedule: CoarseSchedule, x0_hat: Tensor, x_next: Tensor, tau: Tensor, noise: Tensor | None
) -> Tensor:
    """x_tau given x_{tau+1} ``[B, ...]`` and an estimate of x_0; the mean where ``noise`` is None.

    At tau = 0 it is the estimate itself.
    """
    c1, c2, std = schedule.posterior()
    mean = _at(c1, tau, x0_hat) * x0_hat + _at(c2, tau, x0_hat) * x_next
    return mean if noise is None else mean + _at(std, tau, x0_hat) * noise


def sample(
    predict: Callable[[Tensor, int], Tensor],
    draw_noise: Callable[[int], Tensor],
    schedule: CoarseSchedule,
    *,
    posterior_noise: bool = True,
) -> Tensor:
    """From pure noise to a label, one network pass per step.

    Args:
        predict: the estimate of x_0 from (x_{tau+1}, tau).
        draw_noise: standard normal ``[B, ...]`` for a time: T asks for the start, smaller ones for what is added on
            arriving there.
        schedule: T steps.
        posterior_noise: False takes the posterior's mean.

    Returns:
        The last estimate of x_0.
    """
    x = draw_noise(schedule.num_steps)
    for tau in reversed(range(schedule.num_steps)):
        noise = draw_noise(tau) if posterior_noise and tau > 0 else None
        times = torch.full((len(x),), tau, device=x.device)
        x = posterior_sample(schedule, predict(x, tau), x, times, noise)
    return x


def _at(table: Tensor, index: Tensor, like: Tensor) -> Tensor:
    """One entry of the table per sample, as ``[B, 1, ...]`` in the dtype and on the device of ``like``."""
    picked = table[index.to(table.device)].to(like)
    return picked.reshape(-1, *[1] * (like.ndim - 1))
