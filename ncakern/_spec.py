"""What a rollout computes, as plain data: options, parameters, and the metadata a backend decides on."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor, dtype

PERCEPTIONS = ("depthwise", "dense")
PADDINGS = ("reflect", "zeros", "replicate", "circular")
NORMS = ("none", "batch", "instance")
ACTIVATIONS = ("relu", "leaky_relu", "silu", "gelu", "tanh")

NORM_EPS = 1e-5  # torch's default, and upstream M3D-NCA's
LEAKY_SLOPE = 0.01  # torch's default

MAX_COUNT = 2**31 - 1  # of steps and of whatever else the kernels count in 32 bits
MAX_INDEX = 2**63 - 1  # of cells, steps and samples in the random stream, which takes them modulo 2**32


@dataclass(frozen=True, kw_only=True)
class RolloutSpec:
    """The options of a step; ``DESIGN.md`` says what each one means.

    Args:
        perception: "depthwise" (one filter per channel) or "dense" (every channel sees every channel).
        padding: "reflect" (border cell not repeated), "zeros", "replicate" or "circular".
        norm: "none", "batch" (statistics of the current step over batch and cells) or "instance" (per sample).
        activation: "relu", "leaky_relu" (slope 0.01), "silu", "gelu" (exact, by the error function) or "tanh".
        fire_rate: probability in [0, 1] that a cell updates. (Upstream M3D-NCA's number is one minus this.)
        frozen_channels: number of leading channels that a step does not change.
        clamp: the least and the largest value of a new state, or None.

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
    clamp: tuple[float, float] | None = None

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
        # Frozen or not, a number of numpy becomes one of Python here.
        object.__setattr__(self, "fire_rate", check_fire_rate(self.fire_rate))
        object.__setattr__(self, "frozen_channels", check_int("frozen_channels", self.frozen_channels, high=MAX_COUNT))
        object.__setattr__(self, "clamp", check_clamp(self.clamp))


def check_int(name: str, value: Any, *, low: int | None = 0, high: int | None = MAX_INDEX) -> int:
    """``value`` as an int in [low, high]: Python's and numpy's integers pass, bools do not."""
    if isinstance(value, bool) or not isinstance(value, (int, Integral)):
        raise TypeError(f"{name} must be an int; got {type(value).__name__}")
    number = value if isinstance(value, int) else int(value)
    if low is not None and number < low:
        raise ValueError(f"{name} must be at least {low}; got {number}")
    if high is not None and number > high:
        raise ValueError(f"{name} must be at most {high}; got {number}")
    return number


def check_seed_range(seed: Any) -> int:
    """An int seed, which must fit into 64 bits."""
    number = check_int("seed", seed, low=None, high=None)
    if not -(2**63) <= number < 2**63:
        raise ValueError(f"seed must fit into 64 bits, signed; got {number}")
    return number


def check_fire_rate(fire_rate: Any) -> float:
    """``fire_rate`` as a number of Python; raise unless it is a probability."""
    if isinstance(fire_rate, bool) or not isinstance(fire_rate, (int, float, Real)):
        raise TypeError(f"fire_rate must be a number; got {type(fire_rate).__name__}")
    number = fire_rate if isinstance(fire_rate, (int, float)) else float(fire_rate)
    if not 0 <= number <= 1:
        raise ValueError(f"fire_rate must be in [0, 1], the probability that a cell updates; got {number}")
    return number


def check_clamp(clamp: Any) -> tuple[float, float] | None:
    """``clamp`` as two numbers of Python, the first not above the second; None stays None."""
    if clamp is None:
        return None
    if not isinstance(clamp, (tuple, list)) or any(isinstance(b, bool) or not isinstance(b, Real) for b in clamp):
        raise TypeError(f"clamp must be None or two numbers (low, high); got {clamp!r}")
    if len(clamp) != 2 or not float(clamp[0]) <= float(clamp[1]):
        raise ValueError(f"clamp must be (low, high), low at most high; got {clamp!r}")
    return float(clamp[0]), float(clamp[1])


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
        out_bias: ``[C]``, or None.
    """

    perceive_weight: Tensor
    perceive_bias: Tensor
    hidden_weight: Tensor
    hidden_bias: Tensor
    out_weight: Tensor
    norm_weight: Tensor | None = None
    norm_bias: Tensor | None = None
    out_bias: Tensor | None = None

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
    has_out_bias: bool = False
