"""Launches the kernels for any sizes: packing, scratch memory, one step forward or backward, partial sums reduced.

Exports what `step.py` asks of a family. A step forward needs the list of firing cells and no other memory; a step
backward one scratch tensor of F * C numbers per cell.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton.language
from torch import Tensor

from ncakern._spec import NORM_EPS
from ncakern.backends.triton import kernels_large as forward
from ncakern.backends.triton import kernels_large_bwd as backward
from ncakern.backends.triton.common import TF32_MAX, num_entries
from ncakern.backends.triton.step import Rollout, Sums
from ncakern.backends.triton.tiles import round_up
from ncakern.backends.triton.tiles_large import LargeTile, choose_large_tile, num_splits
from ncakern.backends.triton.work_list import work_list


@dataclass(frozen=True, kw_only=True)
class Operands:
    """Weights as the kernels multiply them, and how."""

    filters: Tensor  # [taps, C, F * C] (dense) or [taps, F * C]
    w0: Tensor  # [V, h]
    w1: Tensor  # [h, C]; all three in two halves, [2, ...], for "tf32x3"
    numbers: dict[str, Any]  # DTYPE, PRECISION
    tile: LargeTile


@dataclass(frozen=True, kw_only=True)
class Packed:
    """What is the same for every step of a rollout."""

    fwd: Operands
    bwd: Operands
    affine: Tensor | None  # [B, 4, h]; None with a norm, where it follows from the statistics of the step
    sizes: dict[str, int]  # C, FC, CP, FCP
    taps: dict[str, Any]  # kernel sizes, perception, padding


def pack(rollout: Rollout) -> Packed:
    """See `step.py`."""
    spec, outputs = rollout.spec, rollout.filters * rollout.channels
    sizes = {"C": rollout.channels, "FC": outputs, "CP": round_up(rollout.channels), "FCP": round_up(outputs)}
    is_dense = spec.perception == "dense"
    # A step ends in a rounding to bfloat16 anyway. Neither gradients nor a norm do: with such products they miss the
    # bound of DESIGN.md. Numbers within a step may overflow a float16.
    is_short = rollout.dtype == torch.bfloat16 and spec.norm == "none" and rollout.precision != "tf32x3"
    bwd = _operands(rollout, rollout.precision)
    return Packed(
        fwd=_operands(rollout, "bf16") if is_short else bwd,
        bwd=bwd,
        affine=_affine_without_norm(rollout) if spec.norm == "none" else None,
        sizes=sizes,
        taps=dict(zip(("KD", "KH", "KW"), rollout.kernel, strict=True)) | {"DENSE": is_dense, "PADDING": spec.padding},
    )


def _operands(rollout: Rollout, precision: str) -> Operands:
    """The weights for products of bfloat16 numbers ("bf16"), or of float32 ones in a precision of `step.py`."""
    is_dense, outputs = rollout.spec.perception == "dense", rollout.filters * rollout.channels
    order = (3, 4, 5, 2, 0, 1) if is_dense else (2, 3, 4, 0, 1)
    num_taps = rollout.kernel[0] * rollout.kernel[1] * rollout.kernel[2]
    filters = rollout.perceive_weight.permute(order).reshape(num_taps, -1, outputs).contiguous()

    def convert(weights: Tensor) -> Tensor:
        if precision == "bf16":
            return weights.to(torch.bfloat16).contiguous()
        return _halves(weights) if precision == "tf32x3" else weights.contiguous()

    is_short = precision == "bf16"
    return Operands(
        filters=convert(filters) if is_dense else filters,
        w0=convert(rollout.hidden_weight.t()),
        w1=convert(rollout.out_weight.t()),
        numbers={
            "DTYPE": triton.language.bfloat16 if is_short else triton.language.float32,
            "PRECISION": "ieee" if is_short else precision,
        },
        tile=choose_large_tile(
            rollout.channels, outputs, rollout.hidden, precision=precision, has_norm=rollout.spec.norm != "none"
        ),
    )


def step_fwd(
    rollout: Rollout, packed: Packed, index: int, state: Tensor, out: Tensor, stats: Tensor | None, *, has_stats: bool
) -> None:
    """See `step.py`."""
    seen = state if rollout.perceive_from is None else rollout.perceive_from
    affine, centre = packed.affine, seen  # without a norm no centre is read
    if stats is not None:
        if not has_stats:
            _write_stats(rollout, packed, seen, stats)
        affine, centre = _affine_with_norm(rollout, stats)
    listed, counts = work_list(rollout, index, state.device)
    out.copy_(state)
    fwd, tile = packed.fwd, packed.fwd.tile.fwd
    forward._nca_step_fwd_kernel__listed[(_num_tiles(rollout, tile["BLOCK"]),)](
        state, seen, out, centre, affine, fwd.filters, fwd.w0, fwd.w1, listed, counts, rollout.cells,
        *rollout.size, HIDDEN=rollout.hidden, FROZEN=rollout.spec.frozen_channels, SLOPE=rollout.slope,
        HAS_NORM=stats is not None, **packed.sizes, **packed.taps, **fwd.numbers, **tile,
    )  # fmt: skip


def step_bwd(
    rollout: Rollout, packed: Packed, index: int, state: Tensor, stats: Tensor | None, d_out: Tensor, sums: Sums
) -> Tensor:
    """See `step.py`."""
    seen = state if rollout.perceive_from is None else rollout.perceive_from
    has_norm = stats is not None
    affine, centre = (packed.affine, seen) if stats is None else _affine_with_norm(rollout, stats)
    assert affine is not None
    none = torch.zeros_like(affine[:, :2])
    affine = torch.cat((affine, none), 1)  # [B, 6, h]
    listed, counts = work_list(rollout, index, state.device)
    y = _perceive(rollout, packed, seen, listed, counts)
    cells = _Cells(rollout, packed, index, seen, y, d_out, centre, listed, counts)

    d_affine, d_w1, d_w0 = cells.sum_weights(affine, is_listed=True, has_d_w0=not has_norm)
    if has_norm:
        affine[:, 4:] = _felt_by_all(rollout, affine, d_affine)
        _, _, d_w0 = cells.sum_weights(affine, is_listed=False, has_d_w0=True)
    assert d_w0 is not None
    _add_network_gradients(rollout, affine, d_affine, d_w1, d_w0, sums)

    d_seen = d_out.clone() if rollout.perceive_from is None else torch.zeros_like(d_out)
    cells.backward(affine, d_seen)  # y is its own gradient from here on
    _add_filter_gradients(rollout, packed, seen, y, listed, counts, sums)
    _add_through_filters(rollout, packed, y, d_seen)
    if rollout.perceive_from is None:
        return d_seen
    assert sums.perceive_from is not None
    sums.perceive_from += d_seen.view_as(sums.perceive_from)
    return d_out


def _num_tiles(rollout: Rollout, block: int) -> int:
    return rollout.batch * -(-rollout.cells // block)


def _halves(weights: Tensor) -> Tensor:
    """``[2, ...]``: what fits TF32, and the rest. See `common.split`."""
    finite = weights.clamp(-TF32_MAX.value, TF32_MAX.value).contiguous()
    high = ((finite.view(torch.int32) + 0x1000) & -0x2000).view(torch.float32)
    return torch.stack((high, weights - high))


def _affine_without_norm(rollout: Rollout) -> Tensor:
    """``[B, 4, h]``: hat is u before the modulation, with both biases."""
    shape = (rollout.batch, rollout.hidden)
    one = rollout.hidden_bias.new_ones(shape)
    perceived = rollout.hidden_weight[:, rollout.channels :].double() @ rollout.perceive_bias.double().flatten()
    bias = (rollout.hidden_bias.double() + perceived).float().expand(shape)
    scale = one if rollout.scale is None else rollout.scale
    shift = one - one if rollout.shift is None else rollout.shift
    return torch.stack((one, bias, scale, shift), 1)


def _affine_with_norm(rollout: Rollout, stats: Tensor) -> tuple[Tensor, Tensor]:
    """``[B, 4, h]``: hat is normalised; and the centre ``[B, V]`` that the kernels subtract from v."""
    mean, variance, centre = stats.split((rollout.hidden, rollout.hidden, rollout.features), 1)
    mean = mean - centre @ rollout.hidden_weight.double().t()
    per_hidden = torch.rsqrt(variance + NORM_EPS)
    shape = (rollout.batch, rollout.hidden)
    weight, bias = _norm_and_modulation(rollout)
    rows = (per_hidden.expand(shape), (-mean * per_hidden).expand(shape), weight, bias)
    centre = centre.float().expand(rollout.batch, rollout.features).contiguous()
    return torch.stack(rows, 1).float(), centre


def _norm_and_modulation(rollout: Rollout) -> tuple[Tensor, Tensor]:
    """Factor and shift, ``[B, h]``, float64, from the normalised hidden values to u."""
    assert rollout.norm_weight is not None and rollout.norm_bias is not None
    weight, bias = rollout.norm_weight.double(), rollout.norm_bias.double()
    if rollout.scale is not None and rollout.shift is not None:
        scale = rollout.scale.double()
        return weight * scale, bias * scale + rollout.shift
    shape = (rollout.batch, rollout.hidden)
    return weight.expand(shape), bias.expand(shape)


def _write_stats(rollout: Rollout, packed: Packed, seen: Tensor, stats: Tensor) -> None:
    """Statistics of the step, from the means and squared deviations of tiles (Chan's rule), in float64."""
    centre = _centre(rollout, packed, seen)
    fwd, tile = packed.fwd, packed.fwd.tile.fwd
    num_tiles = -(-rollout.cells // tile["BLOCK"])
    moments = seen.new_empty((rollout.batch * num_tiles, 2, rollout.hidden), dtype=torch.float32)
    per_sample = centre.float().expand(rollout.batch, rollout.features).contiguous()
    forward._nca_moments_fwd_kernel__cells[(rollout.batch * num_tiles,)](
        seen, per_sample, moments, fwd.filters, fwd.w0, rollout.cells, *rollout.size, HIDDEN=rollout.hidden,
        **packed.sizes, **packed.taps, **fwd.numbers, **tile,
    )  # fmt: skip
    first = torch.arange(num_tiles, device=seen.device, dtype=torch.float64) * tile["BLOCK"]
    count = (rollout.cells - first).clamp(max=tile["BLOCK"]).repeat(rollout.batch // rollout.groups)[None, :, None]
    means, deviations = moments.double().view(rollout.groups, -1, 2, rollout.hidden).unbind(2)
    total = count.sum()
    mean = (count * means).sum(1) / total  # [groups, h]
    variance = (deviations + count * (means - mean[:, None]).square()).sum(1) / total
    stats.copy_(torch.cat((mean + centre @ rollout.hidden_weight.double().t(), variance, centre), 1))


def _centre(rollout: Rollout, packed: Packed, seen: Tensor) -> Tensor:
    """A point near the mean of v in each group, ``[groups, V]``, float64 of float32 numbers: products cancel less."""
    mean = seen.view(rollout.groups, -1, rollout.channels).mean(1, dtype=torch.float32)
    filters = rollout.perceive_weight.flatten(-3).sum(-1)  # [F, C] or [F, C, C]
    is_dense = packed.taps["DENSE"]
    perceived = torch.einsum("gi,foi->gfo", mean, filters) if is_dense else mean[:, None] * filters
    return torch.cat((mean, perceived.flatten(1)), 1).double()


def _perceive(rollout: Rollout, packed: Packed, seen: Tensor, listed: Tensor, counts: Tensor) -> Tensor:
    """``[B, cells, F * C]``: of all cells with a norm, else of the listed ones, and zero elsewhere."""
    has_norm = rollout.spec.norm != "none"
    make = torch.empty if has_norm else torch.zeros
    shape = (rollout.batch, rollout.cells, packed.sizes["FC"])
    y = make(shape, dtype=torch.float32, device=seen.device)
    tile = {name: value for name, value in packed.bwd.tile.fwd.items() if name != "HC"}
    forward._nca_perceive_fwd_kernel__cells[(_num_tiles(rollout, tile["BLOCK"]),)](
        seen, y, packed.bwd.filters, listed, counts, rollout.cells, *rollout.size, LISTED=not has_norm,
        **packed.sizes, **packed.taps, **packed.bwd.numbers, **tile,
    )  # fmt: skip
    return y


@dataclass(frozen=True)
class _Cells:
    """The tensors of one step that its backward kernels share."""

    rollout: Rollout
    packed: Packed
    index: int
    seen: Tensor
    y: Tensor
    d_out: Tensor
    centre: Tensor
    listed: Tensor
    counts: Tensor

    def sum_weights(self, affine: Tensor, *, is_listed: bool, has_d_w0: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """``d_affine [B, 2, h]``, ``d_w1 [h, C]``, both from listed cells only, and ``d_w0 [h, V]``; all float64."""
        rollout, packed, bwd = self.rollout, self.packed, self.packed.bwd
        tile = bwd.tile.weights if is_listed else bwd.tile.all_weights
        chunks = -(-rollout.hidden // tile["HC"])
        splits = num_splits(chunks * rollout.batch, rollout.cells, tile["BLOCK"])
        parts = rollout.batch * splits

        def new(*shape: int) -> Tensor:
            return self.d_out.new_empty(shape)

        d_affine = new(rollout.batch, splits, 2, rollout.hidden)
        d_w1 = new(parts, rollout.hidden, rollout.channels)
        d_w0 = new(parts, rollout.hidden, rollout.features) if has_d_w0 else d_w1
        backward._nca_weights_bwd_kernel__hidden[(parts * chunks,)](
            self.seen, self.y, self.d_out, self.centre, affine, bwd.w0, bwd.w1, d_w0, d_w1, d_affine, self.listed,
            self.counts, rollout.draw, self.index, rollout.cells, *rollout.size[1:], splits, HIDDEN=rollout.hidden,
            FROZEN=rollout.spec.frozen_channels, SLOPE=rollout.slope, HAS_NORM=rollout.spec.norm != "none",
            LISTED=is_listed, D_AFFINE=is_listed, D_W0=has_d_w0, **packed.sizes, **bwd.numbers, **tile,
        )  # fmt: skip
        total = d_w0.sum(0, dtype=torch.float64) if has_d_w0 else None
        if not is_listed:
            return d_affine, d_w1, total
        return d_affine.sum(1, dtype=torch.float64), d_w1.sum(0, dtype=torch.float64), total

    def backward(self, affine: Tensor, d_seen: Tensor) -> None:
        """Add to d_seen what comes through v's own part; replace y by its gradient."""
        rollout, packed, bwd = self.rollout, self.packed, self.packed.bwd
        tile = bwd.tile.cells
        has_norm = rollout.spec.norm != "none"
        backward._nca_cells_bwd_kernel__cells[(_num_tiles(rollout, tile["BLOCK"]),)](
            self.seen, self.y, self.d_out, d_seen, self.centre, affine, bwd.w0, bwd.w1, self.listed, self.counts,
            rollout.draw, self.index, rollout.cells, *rollout.size[1:], HIDDEN=rollout.hidden,
            FROZEN=rollout.spec.frozen_channels, SLOPE=rollout.slope, HAS_NORM=has_norm, LISTED=not has_norm,
            **packed.sizes, **bwd.numbers, **tile,
        )  # fmt: skip


def _felt_by_all(rollout: Rollout, affine: Tensor, d_affine: Tensor) -> Tensor:
    """``[B, 2, h]``: the means over a group of d_hat and of d_hat * hat, d_hat = G * d_u."""
    total = affine[:, 2:3] * d_affine  # [B, 2, h], float64
    per_group = total.view(rollout.groups, -1, 2, rollout.hidden).sum(1)
    cells = rollout.cells * rollout.batch // rollout.groups
    return (per_group / cells).expand(rollout.batch, 2, rollout.hidden).float()


def _add_network_gradients(
    rollout: Rollout, affine: Tensor, d_affine: Tensor, d_w1: Tensor, d_w0: Tensor, sums: Sums
) -> None:
    """From the sums over cells to the parameters: both layers, norm, modulation, biases."""
    d_shift, d_factor = d_affine.unbind(1)  # of T and G: sums of d_u and of d_u * hat, [B, h]
    sums.out_weight += d_w1.t()
    sums.hidden_weight += d_w0
    scale = 1.0 if rollout.scale is None else rollout.scale.double()
    if rollout.spec.norm == "none":
        sums.hidden_bias += (scale * d_shift).sum(0)
        d_scale = d_factor
    else:
        assert sums.norm_weight is not None and sums.norm_bias is not None
        assert rollout.norm_weight is not None and rollout.norm_bias is not None
        sums.norm_weight += (scale * d_factor).sum(0)
        sums.norm_bias += (scale * d_shift).sum(0)
        d_scale = rollout.norm_weight * d_factor + rollout.norm_bias * d_shift
    if sums.scale is not None and sums.shift is not None:
        sums.scale += d_scale
        sums.shift += d_shift


def _add_filter_gradients(
    rollout: Rollout, packed: Packed, seen: Tensor, d_y: Tensor, listed: Tensor, counts: Tensor, sums: Sums
) -> None:
    sizes, tile, is_dense = packed.sizes, packed.bwd.tile.filters, packed.taps["DENSE"]
    num_taps = rollout.kernel[0] * rollout.kernel[1] * rollout.kernel[2]
    blocks = -(-sizes["FC"] // tile["FCT"]) * (-(-sizes["C"] // tile["CT"]) if is_dense else 1)
    splits = num_splits(blocks * num_taps * rollout.batch, rollout.cells, tile["BLOCK"])
    rows = sizes["C"] if is_dense else 1
    d_filters = seen.new_empty((rollout.batch * splits, num_taps, rows, sizes["FC"]), dtype=torch.float32)
    backward._nca_weights_bwd_kernel__filters[(rollout.batch * splits * num_taps * blocks,)](
        seen, d_y, d_filters, listed, counts, rollout.cells, *rollout.size, splits, C=sizes["C"], FC=sizes["FC"],
        LISTED=rollout.spec.norm == "none", **packed.taps, **packed.bwd.numbers, **tile,
    )  # fmt: skip
    total = d_filters.sum(0, dtype=torch.float64).view(*rollout.kernel, rows, rollout.filters, rollout.channels)
    total = total.permute(4, 5, 3, 0, 1, 2)  # [F, C, C or 1, *kernel]
    sums.perceive_weight += total if is_dense else total[:, :, 0]


def _add_through_filters(rollout: Rollout, packed: Packed, d_y: Tensor, d_seen: Tensor) -> None:
    tile = packed.bwd.tile.gather
    entries = (num_entries(k, rollout.spec.padding) for k in rollout.kernel)
    backward._nca_perceive_bwd_kernel__gather[(_num_tiles(rollout, tile["BLOCK"]),)](
        d_y, d_seen, packed.bwd.filters, rollout.cells, *rollout.size,
        **dict(zip(("ENTRIES_D", "ENTRIES_H", "ENTRIES_W"), entries, strict=True)),
        **packed.sizes, **packed.taps, **packed.bwd.numbers, **tile,
    )  # fmt: skip
