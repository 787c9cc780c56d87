"""What the kernel families are given: one rollout with 3D sizes, the norm statistics, and where gradients are summed.

A family is a module of host functions:

``pack(rollout) -> Any``
    Weights in the family's own layout; called once per rollout.
``step_fwd(rollout, packed, index, state, out, stats, *, has_stats) -> None``
    Writes step ``index`` of ``state`` to ``out``, which is another tensor. ``stats [groups, stats_width]``, float64, is
    None without a norm; it is read if ``has_stats`` (a step computed again), else written, if need be.
``step_bwd(rollout, packed, index, state, stats, d_out, sums) -> Tensor``
    Given the state before step ``index``, its statistics and the gradient of its result (float32, not written), returns
    the gradient of the state (float32) and adds to ``sums``: of v without perceive_bias, see `add_perceive_bias`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ncakern._spec import LEAKY_SLOPE, RolloutSpec


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """The arguments of a rollout. 2D sizes ``(H, W)`` are written ``(H, 1, W)``: rows keep their global number.

    ``perceive_weight`` stays as given, but with three kernel axes: ``[F, C, *kernel]`` or ``[F, C, C, *kernel]``.
    All tensors but the state and perceive_from are float32; absent ones are None.
    """

    spec: RolloutSpec
    batch: int
    size: tuple[int, int, int]
    channels: int
    filters: int
    hidden: int
    kernel: tuple[int, int, int]
    perceive_weight: Tensor
    perceive_bias: Tensor  # [F, C]
    hidden_weight: Tensor  # [h, V], V = (1 + F) * C
    hidden_bias: Tensor  # [h]
    norm_weight: Tensor | None  # [h]
    norm_bias: Tensor | None  # [h]
    out_weight: Tensor  # [C, h]
    perceive_from: Tensor | None  # [B, D, H, W, C], dtype of the state
    scale: Tensor | None  # [B, h]
    shift: Tensor | None  # [B, h]
    draw: Tensor  # int64, the words of draw.py
    left: int  # cells left of the first one in its group of four that share a Philox call
    precision: str  # of products: "tf32x3", "tf32" or "ieee"
    programs: int = 1  # programs of a kernel that keep the device busy
    dtype: torch.dtype  # of the state

    @property
    def features(self) -> int:
        """V, the length of the perception vector."""
        return (1 + self.filters) * self.channels

    @property
    def cells(self) -> int:
        """Cells of one sample."""
        return self.size[0] * self.size[1] * self.size[2]

    @property
    def groups(self) -> int:
        """Groups of cells that share norm statistics; 0 without a norm."""
        return {"none": 0, "batch": 1, "instance": self.batch}[self.spec.norm]

    @property
    def slope(self) -> float:
        """Of the activation below zero."""
        return LEAKY_SLOPE if self.spec.activation == "leaky_relu" else 0.0


def stats_width(hidden: int, features: int) -> int:
    """Length of a row of norm statistics: mean [h] and biased variance [h] of u, a point near the mean of v [V].

    They are those of u without the constant that hidden_bias and perceive_bias add, and of v without perceive_bias.
    """
    return 2 * hidden + features


@dataclass
class Sums:
    """Gradients summed over the steps of a rollout, float64, in the shapes of `Rollout`; None where it has None."""

    perceive_weight: Tensor
    perceive_bias: Tensor
    hidden_weight: Tensor
    hidden_bias: Tensor
    norm_weight: Tensor | None
    norm_bias: Tensor | None
    out_weight: Tensor
    perceive_from: Tensor | None  # float32: written once, as such a rollout has one step
    scale: Tensor | None
    shift: Tensor | None

    @classmethod
    def zeros(cls, rollout: Rollout) -> Sums:
        """Nothing summed yet."""

        def zeros(name: str) -> Any:  # None where the rollout has None
            tensor = getattr(rollout, name)
            dtype = torch.float32 if name == "perceive_from" else torch.float64
            return None if tensor is None else torch.zeros_like(tensor, dtype=dtype)

        return cls(**{name: zeros(name) for name in cls.__dataclass_fields__})


def add_perceive_bias(rollout: Rollout, sums: Sums) -> None:
    """Complete ``sums`` after the last step: kernels see v without perceive_bias, which moves u as hidden_bias does.

    With a norm neither moves anything, and the gradients of both are zero.
    """
    if rollout.spec.norm == "none":
        of_filters = rollout.hidden_weight[:, rollout.channels :].double()
        sums.hidden_weight[:, rollout.channels :] += sums.hidden_bias[:, None] * rollout.perceive_bias.flatten()
        sums.perceive_bias += (sums.hidden_bias @ of_filters).view_as(sums.perceive_bias)
