"""What the denoiser is trained with: the error of its answer, and the mask that it paints over the image.

Shapes must be equal, not broadcastable: ``[B, *S]`` against ``[B, 1, *S]`` would compare every sample with the masks of
the whole batch, and look like learning.
"""

import torch
from torch import Tensor


def answer_loss(answer: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean over the batch of the mean squared error of each sample, times its weight.

    Args:
        answer, target: ``[B, 1, *S]``.
        weight: ``[B]``, see :func:`ncaseg.diffusion.objective.min_snr_weight`; None is 1.

    Raises:
        ValueError: the shapes differ.

    Example:
        >>> answer_loss(torch.zeros(2, 1, 2), torch.tensor([[[1.0, 1.0]], [[3.0, 1.0]]]), torch.tensor([1.0, 0.2]))
        tensor(1.)
    """
    if answer.shape != target.shape:
        raise ValueError(f"target must have the shape of answer {tuple(answer.shape)}; got {tuple(target.shape)}")
    each = (answer - target).square().flatten(1).mean(dim=1)
    return (each if weight is None else each * weight.to(each)).mean()


def painted_loss(painted: Tensor, x0: Tensor, channels: int = 0) -> Tensor:
    """Squared error of the painted image channels against the mask: a mean per channel, summed over the channels.

    Args:
        painted: ``[B, C, *S]``, the image channels of the last state.
        x0: ``[B, 1, *S]``, the clean mask in the coding in use.
        channels: only the first so many channels; 0 takes all.

    Raises:
        ValueError: the shapes do not belong together, or there are fewer channels.

    Example:
        >>> painted_loss(torch.tensor([[[1.0, 0.0], [2.0, 0.0]]]), torch.tensor([[[1.0, 1.0]]]))
        tensor(1.5000)

    Reference:
        Mittal et al., MedSegDiffNCA, 2025, equation of L_RGB.
    """
    expected = (painted.shape[0], 1, *painted.shape[2:])
    if painted.ndim < 3 or tuple(x0.shape) != expected:
        raise ValueError(f"x0 must have shape {expected} beside painted {tuple(painted.shape)}; got {tuple(x0.shape)}")
    if not 0 <= channels <= painted.shape[1]:
        raise ValueError(f"channels must lie between 0 and {painted.shape[1]}; got {channels}")
    chosen = painted if channels == 0 else painted[:, :channels]
    return torch.stack([(channel - x0[:, 0]).square().mean() for channel in chosen.unbind(1)]).sum()
