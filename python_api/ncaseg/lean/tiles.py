"""Exact tiles: one level of an automaton on a state that lies on disk, within a memory budget.

Without norm a tile runs s steps on its cells and a halo of s * (k - 1) / 2 cells, which is cut off: the result has the
bits of the whole, since fire bits depend on global positions and padding acts at true borders only. A norm needs
statistics over all cells at every step. The hidden values are linear in the perception v, so two passes do: the first
merges mean and covariance of v of all tiles, from which mean and variance of every hidden value follow; the second
updates with the norm folded into weights and bias. That agrees with the whole up to rounding.

Reference: Kalkhof and Mukhopadhyay, M3D-NCA, MICCAI 2023, on updating patch by patch.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TypedDict

import numpy as np

from ncakern import RolloutSpec
from ncakern.arrays import ArrayParams, nca_rollout, perception_moments
from ncaseg.lean.disk import Box, DiskState
from ncaseg.lean.plan import TilePlan, reach_of
from ncaseg.levels import Triple

NORM_EPS = 1e-5  # of the kernel, see ncakern/DESIGN.md


class Stream(TypedDict):
    """Where a rollout lies in the random stream, see :func:`ncakern.nca_rollout`."""

    seed: int
    first_step: int
    first_sample: int


def run_tiles(
    source: DiskState,
    target: DiskState,
    params: ArrayParams,
    spec: RolloutSpec,
    steps: int,
    plan: TilePlan,
    stream: Stream,
) -> DiskState:
    """Run ``steps`` steps on one sample; both files are written.

    Returns:
        Which of the two holds the result.
    """
    done = 0
    while done < steps:
        now = min(plan.steps_at_once, steps - done)
        own_params, own_spec = params, spec
        if spec.norm != "none" and not plan.is_whole:
            own_params, own_spec = _fold_norm(source, params, spec, plan)
        own_stream: Stream = {**stream, "first_step": stream["first_step"] + done}
        for box in plan.boxes():
            _update_tile(source, target, own_params, own_spec, now, box, own_stream)
        done += now
        source, target = target, source
    return source


def _update_tile(
    source: DiskState,
    target: DiskState,
    params: ArrayParams,
    spec: RolloutSpec,
    steps: int,
    box: Box,
    stream: Stream,
) -> None:
    """Some steps on a tile and its halo; the tile is written."""
    outer, inner = _with_halo(box, source.size, reach_of(params), steps)
    tile = source.read(outer)
    origin = tuple(s.start for s in outer)
    nca_rollout(tile, params, spec, steps, origin=origin, extent=source.size, out=tile, **stream)
    target.write(box, tile[0][inner])


def _fold_norm(
    source: DiskState, params: ArrayParams, spec: RolloutSpec, plan: TilePlan
) -> tuple[ArrayParams, RolloutSpec]:
    """The step with the norm of the present state folded into its weights: what is left has norm "none".

    With v of mean m and covariance C, u = W v + b has the mean W m + b and the variance diag(W C W^T); hence
    ``weight * (u - mean) / sqrt(variance + eps) + bias = (a W) v + (bias - a W m)`` with ``a = weight / sqrt(...)``.
    """
    mean, covariance = _moments(source, params, spec, plan)
    weight = params.hidden_weight.astype(np.float64)
    variance = np.einsum("ij,jk,ik->i", weight, covariance, weight)
    assert params.norm_weight is not None and params.norm_bias is not None
    scale = params.norm_weight / np.sqrt(np.maximum(variance, 0) + NORM_EPS)
    folded = params._replace(
        hidden_weight=(scale[:, None] * weight).astype(np.float32),
        hidden_bias=(params.norm_bias - scale * (weight @ mean)).astype(np.float32),
        norm_weight=None,
        norm_bias=None,
    )
    return folded, dataclasses.replace(spec, norm="none")


def _moments(
    source: DiskState, params: ArrayParams, spec: RolloutSpec, plan: TilePlan
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance (of the population) of the perception over all cells, in float64.

    Those of the tiles are merged one by one around their means, which does not cancel (Chan, Golub and LeVeque,
    Updating formulae and a pairwise algorithm for computing sample variances, 1979).
    """
    width = params.hidden_weight.shape[1]
    count, mean, products = 0, np.zeros(width), np.zeros((width, width))
    for box in plan.boxes():
        outer, inner = _with_halo(box, source.size, reach_of(params), 1)
        means, covariances = perception_moments(source.read(outer), params, spec, inner=inner)
        cells = math.prod(s.stop - s.start for s in inner)
        offset = means[0] - mean
        mean += offset * (cells / (count + cells))
        products += cells * covariances[0] + count * cells / (count + cells) * np.outer(offset, offset)
        count += cells
    return mean, products / count


def _with_halo(box: Box, size: Triple, reach: Triple, steps: int) -> tuple[Box, Box]:
    """The box with its halo, cut at the borders of the volume; and where the box lies in that."""
    outer, inner = [], []
    for part, n, r in zip(box, size, reach, strict=True):
        start, stop = max(0, part.start - steps * r), min(n, part.stop + steps * r)
        outer.append(slice(start, stop))
        inner.append(slice(part.start - start, part.stop - start))
    return (outer[0], outer[1], outer[2]), (inner[0], inner[1], inner[2])
