"""The only two functions that permute: channels first outside (images, logits), channels last inside (states)."""

from torch import Tensor


def to_channels_last(image: Tensor) -> Tensor:
    """``[B, C, *S]`` to ``[B, *S, C]`` (a view)."""
    return image.movedim(1, -1)


def to_channels_first(state: Tensor) -> Tensor:
    """``[B, *S, C]`` to ``[B, C, *S]`` (a view)."""
    return state.movedim(-1, 1)
