"""Training losses: pure functions of logits and targets.

All of them add a soft Dice loss and a term per voxel, channel by channel; ``LOSSES`` names them for recipes. They share
their arguments:

* ``logits``: ``[B, C_out, *S]``, floating point.
* ``target``: the same shape and dtype, values in [0, 1].
* ``smooth``: added to both sides of the Dice fraction.
* ``skip_empty``: leave out channels without foreground anywhere in the batch. If that leaves none, the result is 0 and
  has no gradient (``requires_grad`` False): take no optimiser step then.
* ``weights``: factors of the two parts.

They return a scalar, and raise ValueError where the shapes differ.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = tuple[float, float]
CLAMP = 1e-7  # of the softmax weights in the published code


def dice_bce(
    logits: Tensor, target: Tensor, *, smooth: float = 1.0, skip_empty: bool = False, weights: Weights = (1.0, 1.0)
) -> Tensor:
    """Soft Dice loss plus binary cross-entropy, summed over the output channels.

    For each channel, with p = sigmoid(logits) and t the target, both flattened over the batch and the volume:
    ``1 - (2 sum(p t) + smooth) / (sum(p) + sum(t) + smooth)  +  mean BCE(p, t)``.
    This is what the published M3D-NCA code minimises under the name "dice focal", up to 1 / N: see
    :func:`m3d_upstream`.

    Example:
        >>> x = torch.tensor([[[-2.0, 0.5, 1.5, -0.3]], [[3.0, -1.0, 0.0, 2.2]]])
        >>> t = torch.tensor([[[0.0, 1.0, 1.0, 0.0]], [[1.0, 0.0, 1.0, 1.0]]])
        >>> round(dice_bce(x, t).item(), 6)
        0.505135

    Reference:
        Kalkhof and Mukhopadhyay, M3D-NCA, MICCAI 2023.
    """
    return _dice_plus(F.binary_cross_entropy_with_logits, logits, target, smooth, skip_empty, weights)


def m3d_upstream(
    logits: Tensor, target: Tensor, *, smooth: float = 1.0, skip_empty: bool = False, weights: Weights = (1.0, 1.0)
) -> Tensor:
    """The "dice focal" loss of the published M3D-NCA code to the letter: Dice plus ``mean BCE * mean (1 - q)^2``.

    q is the softmax of the probabilities over all N voxels of the batch, about 1 / N, so that the factor is about 1:
    for real volumes this is :func:`dice_bce`.

    Example:
        >>> x = torch.tensor([[[-2.0, 0.5, 1.5, -0.3]], [[3.0, -1.0, 0.0, 2.2]]])
        >>> t = torch.tensor([[[0.0, 1.0, 1.0, 0.0]], [[1.0, 0.0, 1.0, 1.0]]])
        >>> round(m3d_upstream(x, t).item(), 6)
        0.431768
    """
    return _dice_plus(_upstream_focal, logits, target, smooth, skip_empty, weights)


def dice_focal(
    logits: Tensor,
    target: Tensor,
    *,
    smooth: float = 1.0,
    skip_empty: bool = False,
    weights: Weights = (1.0, 1.0),
    gamma: float = 2.0,
) -> Tensor:
    """Soft Dice loss plus the focal loss ``mean -(1 - p_t)^gamma log p_t``, p_t the probability of the true class.

    Example:
        >>> x = torch.tensor([[[-2.0, 0.5, 1.5, -0.3]], [[3.0, -1.0, 0.0, 2.2]]])
        >>> t = torch.tensor([[[0.0, 1.0, 1.0, 0.0]], [[1.0, 0.0, 1.0, 1.0]]])
        >>> round(dice_focal(x, t, weights=(0.0, 1.0)).item(), 6)
        0.046697

    Reference:
        Lin et al., Focal Loss for Dense Object Detection, ICCV 2017, equation 4.
    """

    def focal(x: Tensor, t: Tensor) -> Tensor:
        p = torch.sigmoid(x)
        wrong = p * (1 - t) + (1 - p) * t  # 1 - p_t
        return (wrong**gamma * F.binary_cross_entropy_with_logits(x, t, reduction="none")).mean()

    return _dice_plus(focal, logits, target, smooth, skip_empty, weights)


def sample_dice_bce(
    logits: Tensor, target: Tensor, *, smooth: float = 1.0, skip_empty: bool = False, weights: Weights = (1.0, 1.0)
) -> Tensor:
    """:func:`dice_bce` with the Dice loss of each sample alone, then their mean: small objects count like large ones.

    Example:
        >>> x = torch.tensor([[[-2.0, 0.5, 1.5, -0.3]], [[3.0, -1.0, 0.0, 2.2]]])
        >>> t = torch.tensor([[[0.0, 1.0, 1.0, 0.0]], [[1.0, 0.0, 1.0, 1.0]]])
        >>> round(sample_dice_bce(x, t, weights=(1.0, 0.0)).item(), 6)
        0.179984
    """
    return _dice_plus(
        F.binary_cross_entropy_with_logits, logits, target, smooth, skip_empty, weights, dice=_dice_per_sample
    )


LOSSES: dict[str, Callable[..., Tensor]] = {
    "dice_bce": dice_bce,
    "m3d_upstream": m3d_upstream,
    "dice_focal": dice_focal,
    "sample_dice_bce": sample_dice_bce,
}


def _upstream_focal(x: Tensor, t: Tensor) -> Tensor:
    q = torch.softmax(torch.sigmoid(x).flatten(), dim=0).clamp(CLAMP, 1 - CLAMP)
    return F.binary_cross_entropy_with_logits(x, t) * ((1 - q) ** 2).mean()


def _dice(p: Tensor, t: Tensor, smooth: float) -> Tensor:
    """Of all cells at once."""
    return 1 - (2 * (p * t).sum() + smooth) / (p.sum() + t.sum() + smooth)


def _dice_per_sample(p: Tensor, t: Tensor, smooth: float) -> Tensor:
    """The mean over samples ``[B, *S]``."""
    p, t = p.flatten(1), t.flatten(1)
    return (1 - (2 * (p * t).sum(1) + smooth) / (p.sum(1) + t.sum(1) + smooth)).mean()


def _dice_plus(
    term: Callable[[Tensor, Tensor], Tensor],
    logits: Tensor,
    target: Tensor,
    smooth: float,
    skip_empty: bool,
    weights: Weights,
    *,
    dice: Callable[[Tensor, Tensor, float], Tensor] = _dice,
) -> Tensor:
    if logits.shape != target.shape:
        raise ValueError(f"target must have the shape of logits {tuple(logits.shape)}; got {tuple(target.shape)}")
    total = logits.new_zeros(())
    for channel in range(logits.shape[1]):
        x, t = logits[:, channel], target[:, channel]  # [B, *S]
        if skip_empty and not bool(t.any()):
            continue
        p = torch.sigmoid(x)
        total = total + weights[0] * dice(p, t, smooth) + weights[1] * term(x, t)
    return total
