"""The module: parameters and one functional call."""

from __future__ import annotations

import math
from numbers import Integral

import torch
from torch import Tensor, nn

from ncakern._spec import MAX_COUNT, RolloutParams, RolloutSpec, check_int
from ncakern.functional import nca_rollout


class NCA(nn.Module):
    """A Neural Cellular Automaton: ``steps`` stochastic updates of a channels-last state in one call.

    An untrained NCA returns its input: ``out_weight`` starts at zero. The other parameters start as PyTorch's own
    convolution and linear layers do, the norm at scale 1 and shift 0.

    Args:
        ndim: 2 for states ``[B, H, W, C]``, 3 for ``[B, D, H, W, C]``.
        channels: C, channels of a cell.
        hidden: h, width of the hidden layer.
        num_filters: F, number of perception filters beside the identity.
        kernel_size: odd; one int, or one per spatial axis.
        perception, padding, norm, activation, fire_rate, frozen_channels, clamp: see :class:`RolloutSpec`.
        out_bias: whether the update has a bias, which starts at zero.

    Attributes:
        spec: the :class:`RolloutSpec`; may be replaced, for example to run with other norm statistics.
        params: the parameters as :class:`RolloutParams`.

    Raises:
        TypeError, ValueError: an argument has a wrong type or value; the message names it.

    Example:
        >>> nca = NCA(2, channels=16, hidden=64, frozen_channels=3)
        >>> nca(torch.rand(1, 32, 32, 16), steps=8, seed=0).shape
        torch.Size([1, 32, 32, 16])
    """

    def __init__(
        self,
        ndim: int,
        channels: int,
        hidden: int,
        *,
        perception: str = "depthwise",
        num_filters: int = 1,
        kernel_size: int | tuple[int, ...] = 3,
        padding: str = "reflect",
        norm: str = "none",
        activation: str = "relu",
        fire_rate: float = 0.5,
        frozen_channels: int = 0,
        clamp: tuple[float, float] | None = None,
        out_bias: bool = False,
    ) -> None:
        super().__init__()
        self.spec = RolloutSpec(
            perception=perception,
            padding=padding,
            norm=norm,
            activation=activation,
            fire_rate=fire_rate,
            frozen_channels=frozen_channels,
            clamp=clamp,
        )
        if ndim not in (2, 3):
            raise ValueError(f"ndim must be 2 or 3; got {ndim}")
        channels = check_int("channels", channels, low=1, high=MAX_COUNT)
        hidden = check_int("hidden", hidden, low=1, high=MAX_COUNT)
        num_filters = check_int("num_filters", num_filters, low=1, high=MAX_COUNT)
        if frozen_channels > channels:
            raise ValueError(f"frozen_channels must be at most channels={channels}; got {frozen_channels}")
        if not isinstance(kernel_size, (Integral, tuple, list)):
            raise TypeError(f"kernel_size must be an int or a tuple of ints; got {type(kernel_size).__name__}")
        sizes = (kernel_size,) * ndim if isinstance(kernel_size, Integral) else tuple(kernel_size)
        kernel = tuple(check_int("kernel_size", size, high=MAX_COUNT) for size in sizes)
        if len(kernel) != ndim or any(k < 1 or k % 2 == 0 for k in kernel):
            raise ValueError(f"kernel_size must be odd and positive, one int or {ndim}; got {kernel_size}")

        filter_shape = (channels,) if perception == "depthwise" else (channels, channels)
        self.perceive_weight = nn.Parameter(torch.empty(num_filters, *filter_shape, *kernel))
        self.perceive_bias = nn.Parameter(torch.empty(num_filters, channels))
        self.hidden_weight = nn.Parameter(torch.empty(hidden, (1 + num_filters) * channels))
        self.hidden_bias = nn.Parameter(torch.empty(hidden))
        self.out_weight = nn.Parameter(torch.empty(channels, hidden))
        has_norm = norm != "none"
        self.norm_weight = nn.Parameter(torch.empty(hidden)) if has_norm else None
        self.norm_bias = nn.Parameter(torch.empty(hidden)) if has_norm else None
        self.out_bias = nn.Parameter(torch.empty(channels)) if out_bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the initial parameters again."""
        # PyTorch's defaults come to U(-1/sqrt(fan_in), 1/sqrt(fan_in)) for weights and biases alike.
        per_output = self.perceive_weight[0, 0]  # depthwise [*k], dense [C_in, *k]
        for tensors, fan_in in (
            ((self.perceive_weight, self.perceive_bias), per_output.numel()),
            ((self.hidden_weight, self.hidden_bias), self.hidden_weight.shape[1]),
        ):
            bound = 1 / math.sqrt(fan_in)
            for tensor in tensors:
                nn.init.uniform_(tensor, -bound, bound)
        nn.init.zeros_(self.out_weight)
        if self.out_bias is not None:
            nn.init.zeros_(self.out_bias)
        if self.norm_weight is not None and self.norm_bias is not None:
            nn.init.ones_(self.norm_weight)
            nn.init.zeros_(self.norm_bias)

    @property
    def params(self) -> RolloutParams:
        return RolloutParams(*[getattr(self, name) for name in RolloutParams._fields])

    def forward(
        self,
        state: Tensor,
        steps: int,
        *,
        seed: int | Tensor | None = None,
        first_step: int = 0,
        first_sample: int = 0,
        origin: tuple[int, ...] | None = None,
        extent: tuple[int, ...] | None = None,
        perceive_from: Tensor | None = None,
        modulation: tuple[Tensor, Tensor] | None = None,
        keep_every: int | str = 1,
        backend: str = "auto",
    ) -> Tensor:
        """Run ``steps`` steps on ``state`` ``[B, *S, C]``; every argument as in :func:`ncakern.nca_rollout`."""
        return nca_rollout(
            state,
            self.params,
            self.spec,
            steps,
            seed=seed,
            first_step=first_step,
            first_sample=first_sample,
            origin=origin,
            extent=extent,
            perceive_from=perceive_from,
            modulation=modulation,
            keep_every=keep_every,
            backend=backend,
        )

    def extra_repr(self) -> str:
        channels, hidden = self.out_weight.shape
        filters = tuple(self.perceive_weight.shape)
        return f"channels={channels}, hidden={hidden}, perceive_weight={filters}, {self.spec}"
