"""From noise to an image: one function per algorithm, all of one signature.

* ``predict(x_t, t)``: the network's answer ``[B, ...]`` to the noisy image at time t, an int.
* ``draw_noise(t)``: standard normal ``[B, ...]``. ``t = schedule.timesteps`` asks for the image that sampling starts
  from; smaller values for the noise that is added on leaving time t.
* ``schedule``: see :mod:`ncaseg.diffusion.schedule`.
* ``steps``: how many time steps are visited, evenly spread, the last one included; None visits all of them.
* ``target``: what the network answers, see :mod:`ncaseg.diffusion.objective`.
* ``clip``: range that the implied x_0 is cut to at every step. An error of eps is magnified by ``1 / sqrt(alpha_bar)``,
  up to some hundred times, so there is no sampling without it.
* ``watch(t, x_t, x_0)``: told about every step, for pictures.

They return x_0 ``[B, ...]``, and raise ValueError where ``steps`` or ``target`` is wrong.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ncaseg.diffusion.objective import check_target, roots, to_eps, to_x0
from ncaseg.diffusion.schedule import Schedule

Predict = Callable[[Tensor, int], Tensor]
Noise = Callable[[int], Tensor]
Watch = Callable[[int, Tensor, Tensor], None]


def sample_ddpm(
    predict: Predict,
    draw_noise: Noise,
    schedule: Schedule,
    *,
    steps: int | None = None,
    target: str = "eps",
    clip: tuple[float, float] = (-1.0, 1.0),
    watch: Watch | None = None,
) -> Tensor:
    """Ancestral sampling with variance beta; over fewer steps beta is ``1 - alpha_bar_t / alpha_bar_previous``.

    ``x_previous = posterior mean(x_0, x_t) + sqrt(beta) z``; the last step returns x_0 itself.

    Reference:
        Ho, Jain, Abbeel, Denoising Diffusion Probabilistic Models, NeurIPS 2020, equation 7 and algorithm 2.
    """
    check_target(target)
    x = draw_noise(schedule.timesteps)
    for t, a, a_before in visits(schedule, steps):
        x0 = to_x0(target, predict(x, t), x, a).clamp(*clip)
        if watch is not None:
            watch(t, x, x0)
        beta = 1 - a / a_before
        from_x0 = (torch.sqrt(a_before) * beta / (1 - a)).item()
        from_x = (torch.sqrt(a / a_before) * (1 - a_before) / (1 - a)).item()
        x = x0 if a_before == 1 else from_x0 * x0 + from_x * x + torch.sqrt(beta).item() * draw_noise(t)
    return x


def sample_ddim(
    predict: Predict,
    draw_noise: Noise,
    schedule: Schedule,
    *,
    steps: int | None = None,
    target: str = "eps",
    clip: tuple[float, float] = (-1.0, 1.0),
    watch: Watch | None = None,
) -> Tensor:
    """Deterministic sampling (eta = 0): ``x_previous = sqrt(a_previous) x_0 + sqrt(1 - a_previous) eps``.

    eps is the one that belongs to the clipped x_0.

    Reference:
        Song, Meng, Ermon, Denoising Diffusion Implicit Models, ICLR 2021, equation 12.
    """
    check_target(target)
    x = draw_noise(schedule.timesteps)
    for t, a, a_before in visits(schedule, steps):
        x0 = to_x0(target, predict(x, t), x, a).clamp(*clip)
        if watch is not None:
            watch(t, x, x0)
        signal, noise = roots(a_before, x)
        x = x0 if a_before == 1 else signal * x0 + noise * to_eps("x0", x0, x, a)
    return x


def visits(schedule: Schedule, steps: int | None = None) -> list[tuple[int, Tensor, Tensor]]:
    """``(t, alpha_bar of t, alpha_bar of the time visited next)`` from the most noise to the least; 1 comes last.

    Example:
        >>> from ncaseg.diffusion.schedule import linear
        >>> [t for t, _, _ in visits(linear(100), 4)]
        [99, 74, 49, 24]
    """
    total = schedule.timesteps
    count = total if steps is None else steps
    if not 1 <= count <= total:
        raise ValueError(f"steps must lie between 1 and the schedule's {total}; got {steps}")
    times = [-(-total * (i + 1) // count) - 1 for i in range(count)]
    a = torch.from_numpy(schedule.alpha_bar)
    before = [torch.ones((), dtype=torch.float64), *(a[t] for t in times[:-1])]
    return [(t, a[t], a_before) for t, a_before in zip(times, before, strict=True)][::-1]
