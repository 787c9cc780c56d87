"""What a rollout computes, as plain data: options, parameters, and the metadata a backend decides on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor, dtype

PERCEPTIONS = ("depthwise", "dense")
PADDINGS = ("reflect", "zeros", "replicate", "circular")
NORMS = ("none", "batch", "instance")
ACTIVATIONS = ("relu", "leaky_relu")

NORM_EPS = 1e-5  # torch's default, and upstream M3D-NCA's
LEAKY_SLOPE = 0.01  # torch's default


@dataclass(frozen=True, kw_only=True)
class RolloutSpec:
    """The options of a step; ``DESIGN.md`` says what each one means.

    Args:
        perception: "depthwise" (one filter per channel) or "dense" (every channel sees every channel).
        padding: "reflect" (border cell not repeated), "zeros", "replicate" or "circular".
        norm: "none", "batch" (statistics of the current step over batch and cells) or "instance" (per sample).
        activation: "relu" or "leaky_relu" (slope 0.01).
        fire_rate: probability in [0, 1] that a cell updates. (Upstream M3D-NCA's number is one minus this.)
        frozen_channels: number of leading channels that a step does not change.

    Raises:
        TypeError: an option has the wrong type.
        ValueError: an option has a value that is not allowed.

    Example:
        >>> RolloutSpec(norm="batch", frozen_channels=1).fire_rate
        0.5
    """

    perception: str = "depthwise"
    padding: str = "reflect"
    norm: str = "none"
    activation: str = "relu"
    fire_rate: float = 0.5
    frozen_channels: int = 0

    def __post_init__(self) -> None:
        for name, allowed in (
            ("perception", PERCEPTIONS),
            ("padding", PADDINGS),
            ("norm", NORMS),
            ("activation", ACTIVATIONS),
        ):
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}; got {value!r}")
        check_fire_rate(self.fire_rate)
        if isinstance(self.frozen_channels, bool) or not isinstance(self.frozen_channels, int):
            raise TypeError(f"frozen_channels must be an int; got {type(self.frozen_channels).__name__}")
        if self.frozen_channels < 0:
            raise ValueError(f"frozen_channels must be at least 0; got {self.frozen_channels}")


def check_fire_rate(fire_rate: float) -> None:
    """Raise unless ``fire_rate`` is a probability."""
    if isinstance(fire_rate, bool) or not isinstance(fire_rate, (int, float)):
        raise TypeError(f"fire_rate must be a number; got {type(fire_rate).__name__}")
    if not 0 <= fire_rate <= 1:
        raise ValueError(f"fire_rate must be in [0, 1], the probability that a cell updates; got {fire_rate}")


class RolloutParams(NamedTuple):
    """The tensors of a step: float32, or all of the state's dtype.

    C channels, h hidden, F filters, ``*k`` one odd kernel size per spatial axis.

    Args:
        perceive_weight: depthwise ``[F, C, *k]``; dense ``[F, C_out, C_in, *k]`` with C_out = C_in = C.
        perceive_bias: ``[F, C]``.
        hidden_weight: ``[h, (1 + F) * C]``; the identity comes first, then filter 1, 2, ...
        hidden_bias: ``[h]``.
        out_weight: ``[C, h]``.
        norm_weight, norm_bias: ``[h]`` with norm "batch" or "instance", else None.
    """

    perceive_weight: Tensor
    perceive_bias: Tensor
    hidden_weight: Tensor
    hidden_bias: Tensor
    out_weight: Tensor
    norm_weight: Tensor | None = None
    norm_bias: Tensor | None = None

    def to(self, dtype: dtype) -> RolloutParams:
        """The same parameters in another dtype."""
        return RolloutParams._make([None if tensor is None else tensor.to(dtype) for tensor in self])


class Problem(NamedTuple):
    """The metadata of one call: all that a backend may look at to say whether it can run it."""

    device: str
    dtype: str
    batch: int
    size: tuple[int, ...]
    channels: int
    hidden: int
    num_filters: int
    kernel: tuple[int, ...]
    spec: RolloutSpec
    steps: int
