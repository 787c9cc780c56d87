"""Whole volumes through a trained model: ensemble, threshold, and files that keep the geometry of their input."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np

from ncaseg.config import Config
from ncaseg.data.dataset import Volume, load_case
from ncaseg.data.index import SUFFIXES, Case, case_id, find_cases
from ncaseg.data.pictures import SUFFIXES as PICTURES
from ncaseg.data.pictures import is_picture, save_mask
from ncaseg.edge import EdgeModel, from_torch, run_member
from ncaseg.ensemble import DEFAULT_RULE, Combined, combine
from ncaseg.files import replacing
from ncaseg.large import Plan, check_loading, check_scratch, plan_prediction, run_in_tiles

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


def predict_path(
    model: str | Path | tuple[Segmenter | EdgeModel, Config],
    source: str | Path,
    out: str | Path,
    *,
    samples: int | None = None,
    seed: int | None = None,
    rule: str | None = None,
    png: bool = False,
    overwrite: bool = False,
    memory: int | None = None,
    scratch: Path | None = None,
) -> list[Path]:
    """Segments one NIfTI file or picture, or every one of a folder, into files of the same geometry.

    A picture gives a PNG of 0 and 255 (of label values, where there are several). Of NIfTI, affine, qform and sform
    with their codes, voxel sizes and units are the input's; the voxels are uint8 labels.

    Args:
        model: a checkpoint file, the name of a zoo entry, or what `load_model` returned as (model, cfg).
        source: a `.nii` or `.nii.gz` file, a picture, or a folder of either.
        out: for a file: the file to write, or a folder for it. For a folder: a folder; names are kept, and a case that
            already has its output is skipped, so that an interrupted run can be repeated.
        samples: members of the ensemble; None takes the recipe's.
        seed: names the random stream; None takes the recipe's.
        rule: how members become one, see `ncaseg.ensemble.combine`; None takes the recipe's.
        png: also write `<id>_overlay.png` and `<id>_variance.png` beside each segmentation, and for MedSegDiffNCA and a
            picture `<id>_sampling.png`.
        overwrite: redo the cases of a folder that already have an output.
        memory: the most bytes that this process may occupy; what was chosen is printed for every case. Needs a model
            on the CPU. None sets no limit.
        scratch: folder for the files of volumes that do not fit; None is the system's temporary folder.

    Returns:
        The segmentations written, without the skipped ones.

    Raises:
        FileNotFoundError: no such model, file or folder.
        ValueError: an output would replace its input, a volume cannot be read or does not fit, or `memory` does not
            hold one tile, or the image while it is read.
        OSError: `scratch` has no room.
    """
    source, out = Path(source), Path(out)
    loaded, cfg = _load(model) if isinstance(model, str | Path) else model
    samples = cfg.predict.samples if samples is None else samples
    seed = cfg.predict.seed if seed is None else seed
    rule = cfg.predict.rule if rule is None else rule
    todo = _targets(source, out)
    clash = [str(target) for case, target in todo if target.resolve() == case.image.resolve()]
    if clash:
        raise ValueError(f"out must not replace its input; {clash[0]} is both. Choose another folder or name")
    if source.is_dir() and not overwrite:
        waiting = [(case, target) for case, target in todo if not target.exists()]
        if len(waiting) < len(todo):
            print(f"skipping {len(todo) - len(waiting)} of {len(todo)} cases that have an output in {out}")
        todo = waiting
    if memory is not None and not isinstance(loaded, EdgeModel):
        loaded = from_torch(loaded, cfg.model)
    for case, target in _with_progress(todo):
        if memory is not None:
            check_loading(case, cfg.data, memory)
        volume = load_case(case, cfg.data)
        if memory is not None and isinstance(loaded, EdgeModel):
            options: dict[str, Any] = {"with_variance": png, "rule": rule}
            plan = plan_prediction(loaded, volume, samples=samples, budget_bytes=memory, **options)
            print(f"{case.id}: {plan}", flush=True)
            labels, variance = predict_large(loaded, volume, cfg, samples, seed, plan, scratch=scratch, **options)
        else:
            _, labels, variance = predict_case(loaded, volume, cfg, samples, seed, with_variance=png, rule=rule)
        if is_picture(case.image):
            save_mask(target, labels)
        else:
            save_labels(target, labels, volume)
        if variance is not None:
            draw_case(target, labels, variance, volume)
            if cfg.model.kind == "medsegdiff" and is_picture(case.image) and not isinstance(loaded, EdgeModel):
                from ncaseg.strip import draw_strip

                draw_strip(f"{_stem(target)}_sampling.png", loaded, volume, cfg, samples, seed)
        del volume, labels, variance  # before the next case is read
    return [target for _, target in todo]


def list_inputs(source: Path) -> list[Case]:
    """The NIfTI file or picture, or every one of the folder, as cases without labels.

    Raises:
        FileNotFoundError: there is no such file, or none in the folder.
    """
    if source.is_dir():
        return find_cases(images=source)
    if not source.is_file():
        raise FileNotFoundError(f"input must be a NIfTI file, a picture, or a folder of them; {source} does not exist")
    return [Case(id=case_id(source), image=source, label=None)]


def save_labels(path: str | Path, labels: np.ndarray, volume: Volume) -> None:
    """Writes labels `[*S]` as uint8 NIfTI with the affine and header of `volume`; see `save_map`."""
    save_map(path, labels.astype(np.uint8, copy=False), volume)


def save_map(path: str | Path, voxels: np.ndarray, volume: Volume) -> None:
    """Writes `[*S]` on the native grid as NIfTI of its own dtype with the affine and header of `volume`.

    The display range, which describes the intensities of the scan, is reset.
    """
    header = volume.header.copy()
    header.set_data_dtype(voxels.dtype)
    header["cal_min"] = header["cal_max"] = 0
    kind = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    with replacing(path) as temporary:
        nib.save(kind(voxels, volume.affine, header), temporary)


def native_image(volume: Volume) -> np.ndarray:
    """The first image channel `[*S]` on the native grid, for pictures."""
    return volume.to_native(volume.image[0])


def draw_case(target: Path, labels: np.ndarray, variance: np.ndarray, volume: Volume) -> None:
    """Draws `<id>_overlay.png` and `<id>_variance.png` beside the segmentation `target`."""
    from ncaseg import report

    image, spacing_mm = native_image(volume), volume.spacing_mm
    if image.shape[2] == 1:  # a picture, or a single slice: one plane says it all
        image, labels, variance, spacing_mm = image[..., 0], labels[..., 0], variance[..., 0], spacing_mm[:2]
    report.draw_overlay(f"{_stem(target)}_overlay.png", image, labels, spacing_mm=spacing_mm)
    report.draw_triptych(f"{_stem(target)}_variance.png", image, labels, variance, spacing_mm=spacing_mm)


def _combine_samples(
    model: Segmenter, volume: Volume, cfg: Config, samples: int, seed: int, rule: str, with_spread: bool
) -> Combined:
    """The mean of the clipped samples of a model that samples masks, and their spread."""
    from ncaseg import cdal, medsegdiff

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


def _load(name_or_path: str | Path) -> tuple[Segmenter, Config]:
    from ncaseg.checkpoint import load_model

    return load_model(name_or_path)[:2]


def _with_progress(todo: Sequence[tuple[Case, Path]]) -> Iterable[tuple[Case, Path]]:
    """The cases behind a progress bar, where tqdm is installed."""
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:
        return todo
    return tqdm(todo, desc="predict", unit="case", disable=None)


def _targets(source: Path, out: Path) -> list[tuple[Case, Path]]:
    """Pairs every input with the file that its labels go to."""
    cases = list_inputs(source)
    if source.is_dir():
        if out.is_file() or out.name.endswith((*SUFFIXES, *PICTURES)):
            raise ValueError(f"out must be a folder when the input is one; got {out}")
        return [(case, out / _output_name(case.image)) for case in cases]
    return [(cases[0], out if out.name.endswith((*SUFFIXES, *PICTURES)) else out / _output_name(source))]


def _output_name(image: Path) -> str:
    return f"{case_id(image)}.png" if is_picture(image) else image.name


def _stem(target: Path) -> Path:
    return target.parent / case_id(target)
