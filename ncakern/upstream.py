"""Reads the checkpoints of M3D-NCA, Med-NCA and Growing-NCA: their names, their axis order, their fire rate."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
from torch import Tensor

from ncakern.nn import NCA

_REQUIRED = ("fc0.weight", "fc0.bias", "fc1.weight")
_FILTERS = (("p0.weight", "p0.bias"), ("p1.weight", "p1.bias"))
_NORM = ("bn.weight", "bn.bias")
# Upstream keeps states [B, X, Y(, Z), C] and swaps the first spatial axis with the channels, so its convolution sees
# the axes (Y, X) or (Y, Z, X). These permutations of a kernel's axes give (X, Y) and (X, Y, Z).
_AXES = {4: (0, 1, 3, 2), 5: (0, 1, 4, 2, 3)}


def load_upstream(
    source: str | os.PathLike[str] | Mapping[str, Tensor],
    *,
    upstream_fire_rate: float = 0.5,
    frozen_channels: int = 0,
    padding: str | None = None,
) -> NCA:
    """Build an :class:`NCA` from a state dict of M3D-NCA, Med-NCA or Growing-NCA.

    Tensors: ``p0`` and, if there, ``p1`` are learned filters (depthwise or dense, told apart by their shape); without
    both, perception is Growing-NCA's pair of fixed Sobel filters, which then do not require gradients. ``fc0``, ``fc1``
    are the dense layers; ``bn``, if there, means norm "batch". One state dict holds one level.

    Args:
        source: a state dict, or the path of a file that holds one (read with ``weights_only=True``).
        upstream_fire_rate: the rate in upstream's configuration: the probability that a cell does **not** update.
            The module's ``fire_rate`` is one minus this.
        frozen_channels: upstream's ``input_channels`` for the segmentation models, which put these channels back after
            each step; 0 for Growing-NCA.
        padding: default "reflect" with learned filters, "zeros" with fixed ones, as upstream does.

    Returns:
        The module, for states ``[B, X, Y, C]`` or ``[B, X, Y, Z, C]`` in upstream's own axis order.

    Raises:
        TypeError: ``source`` is neither a path nor a mapping.
        ValueError: keys are missing or unknown (both are named), or a tensor has an impossible shape.

    Example:
        >>> nca = load_upstream({"fc0.weight": torch.rand(8, 12), "fc0.bias": torch.zeros(8),
        ...                      "fc1.weight": torch.zeros(4, 8)})
        >>> nca.spec.padding, tuple(nca.perceive_weight.shape)
        ('zeros', (2, 4, 3, 3))
    """
    if not 0 <= upstream_fire_rate <= 1:
        raise ValueError(f"upstream_fire_rate must be in [0, 1]; got {upstream_fire_rate}")
    tensors = _read(source)
    filters = [names for names in _FILTERS if any(name in tensors for name in names)]
    has_norm = any(name in tensors for name in _NORM)
    _check_keys(tensors, [*_REQUIRED, *(name for names in filters for name in names), *(_NORM if has_norm else ())])
    if tensors["fc1.weight"].dim() != 2:
        raise ValueError(f"fc1.weight must be [C, h]; got shape {tuple(tensors['fc1.weight'].shape)}")
    channels, hidden = tensors["fc1.weight"].shape

    if filters:
        weight, bias = _learned_filters(tensors, filters, channels)
    else:
        weight, bias = _sobel_filters(channels), torch.zeros(2, channels)
    if padding is None:
        padding = "reflect" if filters else "zeros"
    is_depthwise = weight.shape[2] == 1
    own = {
        "perceive_weight": weight[:, :, 0] if is_depthwise else weight,
        "perceive_bias": bias,
        "hidden_weight": tensors["fc0.weight"],
        "hidden_bias": tensors["fc0.bias"],
        "out_weight": tensors["fc1.weight"],
    }
    if has_norm:
        own |= {"norm_weight": tensors["bn.weight"], "norm_bias": tensors["bn.bias"]}
    nca = NCA(
        ndim=weight.dim() - 3,
        channels=channels,
        hidden=hidden,
        perception="depthwise" if is_depthwise else "dense",
        num_filters=len(weight),
        kernel_size=tuple(weight.shape[3:]),
        padding=padding,
        norm="batch" if has_norm else "none",
        fire_rate=1 - upstream_fire_rate,
        frozen_channels=frozen_channels,
    )
    for name, parameter in nca.named_parameters():
        if parameter.shape != own[name].shape:
            raise ValueError(
                f"source must give {name} the shape {tuple(parameter.shape)}; got {tuple(own[name].shape)}"
            )
    nca.load_state_dict(own)
    if not filters:
        nca.perceive_weight.requires_grad_(False)
        nca.perceive_bias.requires_grad_(False)
    return nca


def _read(source: str | os.PathLike[str] | Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    if isinstance(source, (str, os.PathLike)):
        source = torch.load(source, map_location="cpu", weights_only=True)
    if not isinstance(source, Mapping):
        raise TypeError(f"source must be a state dict or the path of one; got {type(source).__name__}")
    return source


def _check_keys(tensors: Mapping[str, Tensor], expected: list[str]) -> None:
    missing = [name for name in expected if name not in tensors]
    extra = [name for name in tensors if name not in expected]
    if missing or extra:
        raise ValueError(
            "source must be the state dict of one upstream NCA (fc0, fc1, and optionally p0, p1, bn without running "
            f"statistics); missing: {', '.join(missing) or 'none'}; not expected: {', '.join(extra) or 'none'}"
        )


def _learned_filters(
    tensors: Mapping[str, Tensor], filters: list[tuple[str, str]], channels: int
) -> tuple[Tensor, Tensor]:
    """``[F, C, 1 or C, *k]`` in our axis order, and the biases ``[F, C]``."""
    first = tensors[filters[0][0]].shape
    if len(first) not in _AXES or first[0] != channels or first[1] not in (1, channels):
        raise ValueError(
            f"{filters[0][0]} must be [C, 1, *k] or [C, C, *k] with C={channels} and two or three kernel axes; "
            f"got shape {tuple(first)}"
        )
    for weight_name, _ in filters:
        if tensors[weight_name].shape != first:
            raise ValueError(
                f"{weight_name} must have the shape of {filters[0][0]}, {tuple(first)}; "
                f"got {tuple(tensors[weight_name].shape)}"
            )
    weights = [tensors[weight_name].permute(_AXES[len(first)]) for weight_name, _ in filters]
    return torch.stack(weights), torch.stack([tensors[bias_name] for _, bias_name in filters])


def _sobel_filters(channels: int) -> Tensor:
    """Growing-NCA's two fixed filters, ``[2, C, 1, 3, 3]``: the derivative along the first axis, then the second."""
    along_x = torch.outer(torch.tensor([-1.0, 0.0, 1.0]), torch.tensor([1.0, 2.0, 1.0])) / 8
    return torch.stack([along_x, along_x.T]).repeat_interleave(channels, dim=0).reshape(2, channels, 1, 3, 3)
