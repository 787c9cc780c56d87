"""What the network is asked for (the noise, the clean image, or v), and how each turns into the others.

``x_t = sqrt(a) x_0 + sqrt(1 - a) eps`` and ``v = sqrt(a) eps - sqrt(1 - a) x_0`` with a = alpha_bar. Everywhere

* ``alpha_bar``: ``[B]`` float64, one value per sample, or a 0-d tensor for all.
* images: ``[B, ...]``; results have their dtype.
"""

import torch
from torch import Tensor

TARGETS = ("eps", "x0", "v")


def add_noise(x0: Tensor, eps: Tensor, alpha_bar: Tensor) -> Tensor:
    """``x_t`` of the clean image and the noise, both ``[B, ...]``."""
    signal, noise = roots(alpha_bar, x0)
    return signal * x0 + noise * eps


def target_of(target: str, x0: Tensor, eps: Tensor, alpha_bar: Tensor) -> Tensor:
    """What a network with this target should answer.

    Raises:
        ValueError: ``target`` is none of ``TARGETS``.
    """
    check_target(target)
    if target == "eps":
        return eps
    if target == "x0":
        return x0
    signal, noise = roots(alpha_bar, x0)
    return signal * eps - noise * x0


def to_x0(target: str, answer: Tensor, x_t: Tensor, alpha_bar: Tensor) -> Tensor:
    """The clean image that an answer implies."""
    check_target(target)
    if target == "x0":
        return answer
    signal, noise = roots(alpha_bar, x_t)
    if target == "eps":
        return (x_t - noise * answer) / signal
    return signal * x_t - noise * answer


def to_eps(target: str, answer: Tensor, x_t: Tensor, alpha_bar: Tensor) -> Tensor:
    """The noise that an answer implies."""
    check_target(target)
    if target == "eps":
        return answer
    signal, noise = roots(alpha_bar, x_t)
    if target == "x0":
        return (x_t - signal * answer) / noise
    return noise * x_t + signal * answer


def min_snr_weight(target: str, snr: Tensor, gamma: float) -> Tensor:
    """Weights ``[B]`` under which every target costs ``min(snr, gamma)`` times the squared error of x_0.

    The squared error of eps is snr times that of x_0, the one of v is snr + 1 times.

    Example:
        >>> min_snr_weight("eps", torch.tensor([999.0, 1.0]), 5.0)
        tensor([0.0050, 1.0000])

    Reference:
        Hang et al., Efficient Diffusion Training via Min-SNR Weighting Strategy, ICCV 2023, section 3.4.
    """
    check_target(target)
    capped = snr.clamp(max=gamma)
    return {"x0": capped, "eps": capped / snr, "v": capped / (snr + 1)}[target]


def roots(alpha_bar: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """``sqrt(a)`` and ``sqrt(1 - a)``, taken in float64, in the dtype of ``like`` and shaped to multiply it."""
    shape = (-1, *[1] * (like.ndim - 1)) if alpha_bar.ndim else ()
    signal, noise = (torch.sqrt(a.double()).to(like.device, like.dtype) for a in (alpha_bar, 1 - alpha_bar.double()))
    return signal.reshape(shape), noise.reshape(shape)


def check_target(target: str) -> None:
    """ValueError unless ``target`` is one of ``TARGETS``."""
    if target not in TARGETS:
        raise ValueError(f"target must be one of {', '.join(TARGETS)}; got {target!r}")
