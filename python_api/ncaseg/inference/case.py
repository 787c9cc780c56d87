"""Whole volumes through a trained model: ensemble, threshold, and files that keep the geometry of their input."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ncaseg.config import Config
from ncaseg.data.dataset import Volume
from ncaseg.ensemble import DEFAULT_RULE, Combined, combine
from ncaseg.lean.model import EdgeModel, run_member
from ncaseg.lean.tiled import Plan, check_scratch, run_in_tiles

# Nothing up here loads torch: a model that is an EdgeModel does without.
if TYPE_CHECKING:
    from ncaseg.models.base import Segmenter

MEMBER_BUDGET_BYTES = 512 * 2**20  # of states and hidden values that run at once; more members take turns


def predict_case(
    model: Segmenter | EdgeModel,
    volume: Volume,
    cfg: Config,
    samples: int,
    seed: int,
    *,
    with_variance: bool = False,
    rule: str = DEFAULT_RULE,
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Segments one volume by an ensemble of `samples` stochastic rollouts (M3D-NCA's pseudo-ensemble).

    The members are combined by `rule`, and a channel claims the cells whose probability is above
    `cfg.predict.threshold` (0.5). Member i draws its fire bits from (seed, sample i), so it is the same alone and among
    others: a model with norm "batch" runs with norm "instance", which is the same computation one member at a time.
    A model that samples masks gives the mean of its clipped samples instead, between 0 and 1, and knows no median; one
    with a channel for the background gives every cell to the channel with the highest mean.

    Args:
        model: from `build_model`, `load_model` or `load_edge_model` (the same computation as the former two on
            a CPU), made for `cfg.model`.
        volume: from `load_case` with `cfg.data`.
        cfg: the model's recipe.
        samples: members of the ensemble, at least 1.
        seed: names the random stream.
        with_variance: also return the variance over the members.
        rule: how members become one, see `ncaseg.ensemble.combine`.

    Returns:
        probabilities: `[C_out, *S]` float32 on the native grid.
        labels: `[*S]` uint8. One output channel: 1 is foreground. Several: the label value of the most probable
            channel among those above the threshold, else 0. With a background channel: that of the highest mean.
        variance: `[*S]` float32 population variance of the members' probabilities, the mean over all channels;
            None unless asked for.

    Raises:
        ValueError: `samples` is below 1, the volume does not fit the model, or the model does not have the rule.
    """
    combined = run_ensemble(model, volume, cfg, samples, seed, rule=rule, with_spread=with_variance)
    variance = None if combined.variance is None else combined.variance.mean(0)
    foreground = combined.probabilities[int(cfg.model.has_background) :]
    return foreground, labels_of(combined.probabilities, cfg), variance


def run_ensemble(
    model: Segmenter | EdgeModel,
    volume: Volume,
    cfg: Config,
    samples: int,
    seed: int,
    *,
    rule: str = DEFAULT_RULE,
    with_spread: bool = False,
) -> Combined:
    """The combined members of `predict_case` per channel, on the native grid; arguments and errors as there.

    A background channel comes first.
    """
    if samples < 1:
        raise ValueError(f"samples must be at least 1; got {samples}")
    members: Iterator[np.ndarray]
    if isinstance(model, EdgeModel):
        members = (volume.to_native(run_member(model, volume.image, seed=seed, member=i)) for i in range(samples))
    elif cfg.model.is_diffusion:
        return _combine_samples(model, volume, cfg, samples, seed, rule, with_spread)
    else:
        members = map(volume.to_native, member_logits(model, volume, cfg, samples, seed))
    return combine(members, rule=rule, with_spread=with_spread)


def predict_large(
    model: EdgeModel,
    volume: Volume,
    cfg: Config,
    samples: int,
    seed: int,
    plan: Plan,
    *,
    with_variance: bool = False,
    rule: str = DEFAULT_RULE,
    scratch: Path | None = None,
) -> tuple[np.ndarray, np.ndarray | None]:
    """The labels and the variance of `predict_case` within the memory of a plan (from `plan_prediction`).

    Without a norm they have the same bits, whatever the plan; with one they agree up to rounding.
    """
    if plan.tiles is None:
        return predict_case(model, volume, cfg, samples, seed, with_variance=with_variance, rule=rule)[1:]
    labels = np.empty(volume.native_size, np.uint8)
    variance = np.empty(volume.native_size, np.float32) if with_variance else None
    check_scratch(plan, scratch)
    options: dict[str, Any] = {"rule": rule, "scratch": scratch, "with_spread": with_variance}
    for rows, combined in run_in_tiles(model, volume, plan.tiles, samples=samples, seed=seed, **options):
        labels[rows.start : rows.stop] = labels_of(combined.probabilities, cfg)
        if variance is not None and combined.variance is not None:
            variance[rows.start : rows.stop] = combined.variance.mean(0)
    return labels, variance


def labels_of(probabilities: np.ndarray, cfg: Config) -> np.ndarray:
    """Label map `[*S]` uint8 of probabilities `[C, *S]`, a background channel first: see `predict_case`."""
    values = np.array([0, *class_values(cfg)], np.uint8)
    if cfg.model.has_background:
        return values[probabilities.argmax(0)]
    labels = np.empty(probabilities.shape[1:], np.uint8)
    for row, given in enumerate(np.moveaxis(probabilities, 1, 0)):  # numpy's indices are eight times the labels' size
        winner = 1 + given.argmax(0)  # 0 stays free for background
        labels[row] = values[np.where(given.max(0) > cfg.predict.threshold, winner, 0)]
    return labels


def class_values(cfg: Config) -> tuple[int, ...]:
    """The label value that each output channel writes."""
    return cfg.data.labels if cfg.model.out_channels > 1 else (1,)


def native_image(volume: Volume) -> np.ndarray:
    """The first image channel `[*S]` on the native grid, for pictures."""
    return volume.to_native(volume.image[0])


def _combine_samples(
    model: Segmenter, volume: Volume, cfg: Config, samples: int, seed: int, rule: str, with_spread: bool
) -> Combined:
    """The mean of the clipped samples of a model that samples masks, and their spread."""
    from ncaseg.sampling import cdal, medsegdiff

    medsegdiff.check_rule(rule)
    if cfg.model.kind == "cdal":
        sampled = cdal.sample_volume(model, volume, cfg, samples, seed)
    else:
        sampled = medsegdiff.decode(medsegdiff.sample_volume(model, volume, cfg, samples, seed), cfg.diffusion)
    members = volume.to_native(sampled.numpy())
    mean = members.mean(0)
    return Combined(mean, mean, members.var(0)) if with_spread else Combined(mean)


def member_logits(model: Segmenter, volume: Volume, cfg: Config, samples: int, seed: int) -> Iterator[np.ndarray]:
    """Yields the logits `[C_out, *S]` of each member on the network's grid; as many run at once as memory allows."""
    import torch

    model = _with_own_statistics(model)
    device = next(model.parameters()).device
    image = torch.from_numpy(volume.image).to(device)  # [C_in, *S]
    # A few states per member; the hidden values are stored by the reference only.
    cell_bytes = 4 * (4 * cfg.model.channels + 2 * cfg.model.hidden)
    at_once = max(1, MEMBER_BUDGET_BYTES // (cell_bytes * image[0].numel()))
    for first in range(0, samples, at_once):
        members = image.expand(min(at_once, samples - first), *image.shape)
        with torch.no_grad():
            yield from model(members, seed=seed, first_sample=first).cpu().numpy()


def _with_own_statistics(model: Segmenter) -> Segmenter:
    """The model with norm "batch" replaced by "instance": members in one call do not share their statistics."""
    from ncakern import NCA

    model = copy.deepcopy(model)
    for level in model.modules():
        if isinstance(level, NCA) and level.spec.norm == "batch":
            level.spec = dataclasses.replace(level.spec, norm="instance")
    return model
