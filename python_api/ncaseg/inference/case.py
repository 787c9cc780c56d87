"""Whole volumes through a trained model: ensemble, threshold, and files that keep the geometry of their input."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ncaseg.config import Config
from ncaseg.data.dataset import Volume
from ncaseg.ensemble import DEFAULT_RULE, check_finite, check_rule, combine, mirrored_axes, nqm
from ncaseg.lean.model import EdgeModel, run_member
from ncaseg.lean.tiled import Plan, check_scratch, run_in_tiles

# Nothing up here loads torch: a model that is an EdgeModel does without.
if TYPE_CHECKING:
    from ncaseg.models.base import Segmenter

MEMBER_BUDGET_BYTES = 512 * 2**20  # of states and hidden values that run at once; more members take turns


@dataclass(frozen=True)
class Answer:
    """What an ensemble says about one volume, on the native grid.

    ``probabilities`` are ``[C_out, *S]`` float32. ``labels`` are ``[*S]`` uint8: with one output channel 1 is
    foreground, with several the label value of the most probable channel among those above the threshold, else 0; with
    a channel for the background that of the highest mean. ``seconds`` passed from the volume to the labels.

    Where the spread was asked for, ``variance`` ``[*S]`` float32 is the population variance of the members'
    probabilities, the mean over all channels, and ``nqm`` their quality score: on the network's grid where masks are
    sampled.

    Where the grid was asked for, ``grid`` ``[C_out, *S]`` holds the probabilities on the network's grid, None if that
    is the native one and nothing is sampled; ``uncut`` is the mean of samples that may leave [0, 1], of a
    MedSegDiffNCA.
    """

    probabilities: np.ndarray
    labels: np.ndarray
    seconds: float
    variance: np.ndarray | None = None
    nqm: float | None = None
    grid: np.ndarray | None = None
    uncut: np.ndarray | None = None


def answer(
    model: Segmenter | EdgeModel,
    volume: Volume,
    cfg: Config,
    samples: int,
    seed: int,
    *,
    rule: str = DEFAULT_RULE,
    with_spread: bool = False,
    with_grid: bool = False,
) -> Answer:
    """Segment one volume by an ensemble of ``samples`` stochastic rollouts (M3D-NCA's pseudo-ensemble).

    The members are combined by ``rule``, and a channel claims the cells whose probability is above
    ``cfg.predict.threshold`` (0.5). Member i draws its fire bits from (seed, sample i), so it is the same alone and
    among others: a model with norm "batch" runs with norm "instance", which is the same computation one member at a
    time. With ``cfg.predict.flips`` members see mirrored images, and their answers are mirrored back. A model that
    samples masks gives the mean of its clipped samples instead, between 0 and 1, and knows no median.

    Args:
        model: from ``build_model``, ``load_model`` or ``load_edge_model`` (the same computation as the former two on
            a CPU), made for ``cfg.model``.
        volume: from ``load_case`` with ``cfg.data``.
        cfg: the model's recipe.
        samples: members of the ensemble, at least 1.
        seed: names the random stream.
        rule: how members become one, see ``ncaseg.ensemble.combine``.
        with_spread, with_grid: also give ``variance`` and ``nqm``; ``grid`` and ``uncut``.

    Raises:
        ValueError: ``samples`` is below 1, the volume does not fit the model, or the model does not have the rule.
        FloatingPointError: the model gives numbers that are not finite.
    """
    if samples < 1:
        raise ValueError(f"samples must be at least 1; got {samples}")
    began = time.perf_counter()
    if cfg.model.is_diffusion and not isinstance(model, EdgeModel):
        check_rule(rule, of_samples=True)
        answered = _answer_of_samples(model, volume, cfg, samples, seed, with_spread, with_grid)
    else:
        answered = _answer_of_logits(model, volume, cfg, samples, seed, rule, with_spread, with_grid)
    return dataclasses.replace(answered, seconds=time.perf_counter() - began)


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
    """The labels and the variance of ``answer`` within the memory of a plan (from ``plan_prediction``).

    Without a norm they have the same bits, whatever the plan; with one they agree up to rounding.

    Raises:
        ValueError: there are tiles, and ``cfg.predict.flips``.
    """
    if plan.tiles is None:
        answered = answer(model, volume, cfg, samples, seed, with_spread=with_variance, rule=rule)
        return answered.labels, answered.variance
    if cfg.predict.flips:
        raise ValueError(f"flips must be none for a volume in tiles; got {cfg.predict.flips!r}. Give more memory")
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
    """Label map ``[*S]`` uint8 of probabilities ``[C, *S]``, a background channel first: see ``Answer``."""
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
    """The first image channel ``[*S]`` on the native grid, for pictures."""
    return volume.to_native(volume.image[0])


def _answer_of_logits(
    model: Segmenter | EdgeModel,
    volume: Volume,
    cfg: Config,
    samples: int,
    seed: int,
    rule: str,
    with_spread: bool,
    with_grid: bool,
) -> Answer:
    logits: Iterable[np.ndarray]
    if isinstance(model, EdgeModel):
        logits = (_run_mirrored(model, volume, cfg, seed, i) for i in range(samples))
    else:
        logits = member_logits(model, volume, cfg, samples, seed)
    grid = None
    if with_grid and volume.image.shape[1:] != volume.native_size:
        logits = list(logits)
        grid = combine(logits, rule=rule).probabilities
    combined = combine(map(volume.to_native, logits), rule=rule, with_spread=with_spread)
    variance, score = None, None
    if combined.mean is not None and combined.variance is not None:
        variance, score = combined.variance.mean(0), nqm(combined.mean, combined.variance)
    return Answer(combined.probabilities, labels_of(combined.probabilities, cfg), 0.0, variance, score, grid)


def _answer_of_samples(
    model: Segmenter, volume: Volume, cfg: Config, samples: int, seed: int, with_spread: bool, with_grid: bool
) -> Answer:
    """The mean of the clipped samples of a model that samples masks, and their spread."""
    from ncaseg.sampling import cdal, medsegdiff

    sample = {"medsegdiff": medsegdiff.sample_case, "cdal": cdal.sample_case}[cfg.model.kind]
    sampled = sample(model, volume, cfg, samples, seed)
    check_finite(sampled.members, "the samples")
    members = volume.to_native(sampled.members)
    mean, first = members.mean(0), int(cfg.model.has_background)
    answered = Answer(mean[first:], labels_of(mean, cfg), 0.0)
    if with_spread:
        score = nqm(sampled.mean[first:], sampled.variance[first:])
        answered = dataclasses.replace(answered, variance=members.var(0).mean(0), nqm=score)
    return dataclasses.replace(answered, grid=sampled.mean[first:], uncut=sampled.uncut) if with_grid else answered


def member_logits(model: Segmenter, volume: Volume, cfg: Config, samples: int, seed: int) -> Iterator[np.ndarray]:
    """Yield the logits ``[C_out, *S]`` of each member on the network's grid; as many run at once as memory allows."""
    import torch

    model = _with_own_statistics(model)
    device = next(model.parameters()).device
    image = torch.from_numpy(volume.image).to(device)  # [C_in, *S]
    at_once = max(1, MEMBER_BUDGET_BYTES // (model.cell_bytes * image[0].numel()))
    for first in range(0, samples, at_once):
        views = [mirrored_axes(cfg.predict.flips, i) for i in range(first, min(first + at_once, samples))]
        members = torch.stack([image.flip(v) for v in views]) if any(views) else image.expand(len(views), *image.shape)
        with torch.no_grad():
            logits = model(members, seed=seed, first_sample=first).cpu().numpy()
        yield from (np.flip(member, view) for member, view in zip(logits, views, strict=True))


def _run_mirrored(model: EdgeModel, volume: Volume, cfg: Config, seed: int, member: int) -> np.ndarray:
    axes = mirrored_axes(cfg.predict.flips, member)
    seen = np.ascontiguousarray(np.flip(volume.image, axes))  # without axes the image itself, not a copy
    return np.flip(run_member(model, seen, seed=seed, member=member), axes)


def _with_own_statistics(model: Segmenter) -> Segmenter:
    """The model with norm "batch" replaced by "instance": members in one call do not share their statistics."""
    from ncakern import NCA

    model = copy.deepcopy(model)
    for level in model.modules():
        if isinstance(level, NCA) and level.spec.norm == "batch":
            level.spec = dataclasses.replace(level.spec, norm="instance")
    return model
