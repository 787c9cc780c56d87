"""Weights in the layout of the small family's kernels, with norm and modulation folded in."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ncakern.backends.triton.step import Rollout
from ncakern.backends.triton.tiles import Tile, Tiles, choose_tiles, round_up


@dataclass(frozen=True)
class Packed:
    """What does not change from step to step. CP, HP: channels and hidden units, rounded up and zero beyond."""

    filters: Tensor  # [F, KD, KH, KW, CP]
    w0: Tensor  # [1 + F, CP, HP]
    w1: Tensor  # [HP, CP]
    bias: Tensor  # [h], float64: hidden_bias with perceive_bias folded in
    modulation: tuple[Tensor, Tensor]  # scale and shift, float64 [B, h]; [1, h] of ones and zeros where there is none
    batch: int
    folded: tuple[Tensor, Tensor] | None  # w0 and b0 of the forward kernel, if no norm changes them
    tiles: Tiles
    perception: dict[str, Any]  # constants of every kernel
    network: dict[str, Any]  # constants of those with hidden units

    @cached_property
    def without_norm(self) -> tuple[Tensor, Tensor]:
        """vectors and center of `kernels_small_bwd.py`, which no step changes; made for the first that goes back."""
        features, padded_channels, padded_hidden = self.w0.shape
        vectors = self.w0.new_zeros(self.batch, 5, padded_hidden)  # b0, a, s, c1, c2
        for row, values in enumerate((self.bias, *self.modulation)):
            vectors[:, row, : len(self.bias)] = values
        return vectors, self.w0.new_zeros(self.batch, features, padded_channels)

    def grid(self, rollout: Rollout, tile: Tile) -> tuple[int, ...]:
        """The sizes as the kernels with hidden units take them: D, H, W, W_START, LD, NUM_TILES, Y_CELLS."""
        cells = rollout.batch * rollout.cells
        return (*rollout.size, -rollout.left, tile.planes, tile.count(rollout.size, left=rollout.left), cells)


def pack(rollout: Rollout) -> Packed:
    """See `step.py`."""
    channels, hidden, features = rollout.channels, rollout.hidden, 1 + rollout.filters
    padded_channels, padded_hidden = round_up(channels), round_up(hidden)
    new = rollout.hidden_weight.new_zeros
    filters = new(rollout.filters, *rollout.kernel, padded_channels)
    filters[..., :channels] = rollout.perceive_weight.movedim(1, -1)
    w0 = new(features, padded_channels, padded_hidden)
    w0[:, :channels, :hidden] = rollout.hidden_weight.t().reshape(features, channels, hidden)
    w1 = new(padded_hidden, padded_channels)
    w1[:hidden, :channels] = rollout.out_weight.t()

    of_filters = rollout.hidden_weight[:, channels:].double()
    bias = rollout.hidden_bias.double() + of_filters @ rollout.perceive_bias.double().flatten()
    scale, shift = _modulation(rollout)
    folded = fold(w0, scale, scale * bias + shift) if rollout.spec.norm == "none" else None

    tiles = choose_tiles(
        rollout.size,
        rollout.kernel,
        features=features * padded_channels,
        padded_hidden=padded_hidden,
        left=rollout.left,
        batch=rollout.batch,
        programs=rollout.programs,
        precision=rollout.precision,
        has_16_bits=rollout.dtype != torch.float32,
        has_norm=rollout.spec.norm != "none",
    )
    perception: dict[str, Any] = {"C": channels, "CP": padded_channels, "F": rollout.filters}
    perception |= dict(zip(("KD", "KH", "KW"), rollout.kernel, strict=True)) | {"PADDING": rollout.spec.padding}
    perception |= {"enable_fp_fusion": True}  # Triton's default until 3.10; 3.9 warns when it is not said
    return Packed(
        filters=filters,
        w0=w0,
        w1=w1,
        bias=bias,
        modulation=(scale, shift),
        batch=rollout.batch,
        folded=folded,
        tiles=tiles,
        perception=perception,
        network=perception | {"HP": padded_hidden, "PRECISION": rollout.precision},
    )


def _modulation(rollout: Rollout) -> tuple[Tensor, Tensor]:
    if rollout.scale is None or rollout.shift is None:
        one = rollout.hidden_bias.new_ones((1, rollout.hidden), dtype=torch.float64)
        return one, torch.zeros_like(one)
    return rollout.scale.double(), rollout.shift.double()


def fold(w0: Tensor, scale: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """w0 with hidden unit j scaled by scale[b, j], and bias[b, j], both [B or 1, ...] and zero beyond the sizes."""
    padding = (0, w0.shape[-1] - bias.shape[-1])
    wide_scale, b0 = (torch.nn.functional.pad(t.to(w0.dtype), padding) for t in (scale, bias))
    return (w0 * wide_scale[:, None, None, :]).contiguous(), b0.contiguous()
