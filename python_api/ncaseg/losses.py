"""Training losses: pure functions of logits and targets."""

import torch
import torch.nn.functional as F
from torch import Tensor


def dice_bce(logits: Tensor, target: Tensor, *, smooth: float = 1.0, skip_empty: bool = False) -> Tensor:
    """Soft Dice loss plus binary cross-entropy, summed over the output channels.

    For each channel, with p = sigmoid(logits) and t the target, both flattened over the batch and the volume:
    ``1 - (2 sum(p t) + smooth) / (sum(p) + sum(t) + smooth)  +  mean BCE(p, t)``.
    This is what the published M3D-NCA code minimises under the name "dice focal": its focal weight is a softmax over
    all voxels and hence 1 up to 1 / N.

    Args:
        logits: ``[B, C_out, *S]``, floating point.
        target: the same shape and dtype, values in [0, 1].
        smooth: added to both sides of the Dice fraction.
        skip_empty: leave out channels without foreground anywhere in the batch.

    Returns:
        A scalar. With ``skip_empty`` and no foreground at all it is 0 and has no gradient (``requires_grad`` False):
        take no optimiser step then.

    Raises:
        ValueError: the shapes differ.

    Example:
        >>> x = torch.tensor([[[-2.0, 0.5, 1.5, -0.3]], [[3.0, -1.0, 0.0, 2.2]]])
        >>> t = torch.tensor([[[0.0, 1.0, 1.0, 0.0]], [[1.0, 0.0, 1.0, 1.0]]])
        >>> round(dice_bce(x, t).item(), 6)
        0.505135

    Reference:
        Kalkhof and Mukhopadhyay, M3D-NCA, MICCAI 2023.
    """
    if logits.shape != target.shape:
        raise ValueError(f"target must have the shape of logits {tuple(logits.shape)}; got {tuple(target.shape)}")
    total = logits.new_zeros(())
    for channel in range(logits.shape[1]):
        x, t = logits[:, channel], target[:, channel]  # [B, *S]
        if skip_empty and not bool(t.any()):
            continue
        p = torch.sigmoid(x)
        dice = 1 - (2 * (p * t).sum() + smooth) / (p.sum() + t.sum() + smooth)
        total = total + dice + F.binary_cross_entropy_with_logits(x, t)
    return total
