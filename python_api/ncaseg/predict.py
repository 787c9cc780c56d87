"""Whole volumes through a trained model: ensemble, threshold, and files that keep the geometry of their input."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from tqdm import tqdm

from ncakern import NCA
from ncaseg import medsegdiff, report
from ncaseg.checkpoint import load_model
from ncaseg.config import Config
from ncaseg.data.dataset import Volume, load_case
from ncaseg.data.index import SUFFIXES, Case, case_id, find_cases
from ncaseg.data.pictures import SUFFIXES as PICTURES
from ncaseg.data.pictures import is_picture, save_mask
from ncaseg.diffusion.ensemble import summarise
from ncaseg.files import replacing
from ncaseg.models.base import Segmenter

MEMBER_BUDGET_BYTES = 512 * 2**20  # of states and hidden values that run at once; more members take turns


def predict_case(
    model: Segmenter, volume: Volume, cfg: Config, samples: int, seed: int, *, with_variance: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Segments one volume by an ensemble of `samples` stochastic rollouts (M3D-NCA's pseudo-ensemble).

    The logits are averaged over the members; a sigmoid gives the probabilities, and a channel claims the cells above
    `cfg.predict.threshold` (0.5). Member i draws its fire bits from (seed, sample i), so it is the same alone and among
    others: a model with norm "batch" runs with norm "instance", which is the same computation one member at a time.
    A model that samples masks gives the mean of its clipped samples instead, between 0 and 1.

    Args:
        model: from `build_model` or `load_model`, made for `cfg.model`.
        volume: from `load_case` with `cfg.data`.
        cfg: the model's recipe.
        samples: members of the ensemble, at least 1.
        seed: names the random stream.
        with_variance: also return the variance over the members.

    Returns:
        probabilities: `[C_out, *S]` float32 on the native grid.
        labels: `[*S]` uint8. One output channel: 1 is foreground. Several: the label value of the most probable
            channel among those above the threshold, else 0.
        variance: `[*S]` float32 population variance of the members' probabilities, the mean over output channels;
            None unless asked for.

    Raises:
        ValueError: `samples` is below 1, or the volume does not fit the model.
    """
    if samples < 1:
        raise ValueError(f"samples must be at least 1; got {samples}")
    if cfg.model.is_diffusion:
        coded = medsegdiff.sample_volume(model, volume, cfg, samples, seed)
        summary = summarise(volume.to_native(medsegdiff.decode(coded, cfg.diffusion)))
        variance = summary.variance[0].numpy() if with_variance else None
        return summary.mean.numpy(), labels_of(summary.mean.numpy(), cfg), variance
    shape = (cfg.model.out_channels, *volume.native_size)
    logit_sum = torch.zeros(shape)
    # Running mean and sum of squared deviations (Welford): no large numbers that cancel.
    mean, deviations = torch.zeros(shape), torch.zeros(shape)
    for count, logits in enumerate(_member_logits(model, volume, cfg, samples, seed), start=1):
        logit_sum += logits
        if with_variance:
            probability = torch.sigmoid(logits)
            before = probability - mean
            mean += before / count
            deviations += before * (probability - mean)
    probabilities = torch.sigmoid(logit_sum / samples).numpy()
    variance = (deviations / samples).mean(0).numpy() if with_variance else None
    return probabilities, labels_of(probabilities, cfg), variance


def labels_of(probabilities: np.ndarray, cfg: Config) -> np.ndarray:
    """Label map `[*S]` uint8 of probabilities `[C_out, *S]`: see `predict_case`."""
    values = np.array([0, *class_values(cfg)], np.uint8)
    winner = 1 + probabilities.argmax(0)  # [*S]; 0 stays free for background
    return values[np.where(probabilities.max(0) > cfg.predict.threshold, winner, 0)]


def class_values(cfg: Config) -> tuple[int, ...]:
    """The label value that each output channel writes."""
    return cfg.data.labels if cfg.model.out_channels > 1 else (1,)


def predict_path(
    model: str | Path | tuple[Segmenter, Config],
    source: str | Path,
    out: str | Path,
    *,
    samples: int | None = None,
    seed: int | None = None,
    png: bool = False,
    overwrite: bool = False,
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
        png: also write `<id>_overlay.png` and `<id>_variance.png` beside each segmentation, and for a model that
            samples masks and a picture `<id>_sampling.png`.
        overwrite: redo the cases of a folder that already have an output.

    Returns:
        The segmentations written, without the skipped ones.

    Raises:
        FileNotFoundError: no such model, file or folder.
        ValueError: an output would replace its input, or a volume cannot be read or does not fit.
    """
    source, out = Path(source), Path(out)
    loaded, cfg = load_model(model)[:2] if isinstance(model, str | Path) else model
    samples = cfg.predict.samples if samples is None else samples
    seed = cfg.predict.seed if seed is None else seed
    todo = _targets(source, out)
    clash = [str(target) for case, target in todo if target.resolve() == case.image.resolve()]
    if clash:
        raise ValueError(f"out must not replace its input; {clash[0]} is both. Choose another folder or name")
    if source.is_dir() and not overwrite:
        waiting = [(case, target) for case, target in todo if not target.exists()]
        if len(waiting) < len(todo):
            print(f"skipping {len(todo) - len(waiting)} of {len(todo)} cases that have an output in {out}")
        todo = waiting
    for case, target in tqdm(todo, desc="predict", unit="case", disable=None):
        volume = load_case(case, cfg.data)
        _, labels, variance = predict_case(loaded, volume, cfg, samples, seed, with_variance=png)
        if is_picture(case.image):
            save_mask(target, labels)
        else:
            save_labels(target, labels, volume)
        if variance is not None:
            _draw(target, labels, variance, volume)
            if cfg.model.is_diffusion and is_picture(case.image):
                draw_sampling(f"{_stem(target)}_sampling.png", loaded, volume, cfg, samples, seed)
    return [target for _, target in todo]


def save_labels(path: str | Path, labels: np.ndarray, volume: Volume) -> None:
    """Writes labels `[*S]` as uint8 NIfTI with the affine and header of `volume`.

    The display range, which describes the intensities of the scan, is reset.
    """
    header = volume.header.copy()
    header.set_data_dtype(np.uint8)
    header["cal_min"] = header["cal_max"] = 0
    kind = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    with replacing(path) as temporary:
        nib.save(kind(labels.astype(np.uint8, copy=False), volume.affine, header), temporary)


def native_image(volume: Volume) -> np.ndarray:
    """The first image channel `[*S]` on the native grid, for pictures."""
    return volume.to_native(torch.from_numpy(volume.image[None, :1]))[0, 0].numpy()


def _member_logits(model: Segmenter, volume: Volume, cfg: Config, samples: int, seed: int) -> Iterator[torch.Tensor]:
    """Yields the logits `[C_out, *S]` of each member on the native grid; as many run at once as the budget allows."""
    model = _with_own_statistics(model)
    device = next(model.parameters()).device
    image = torch.from_numpy(volume.image).to(device)  # [C_in, *S]
    # A few states per member; the hidden values are stored by the reference only.
    cell_bytes = 4 * (4 * cfg.model.channels + 2 * cfg.model.hidden)
    at_once = max(1, MEMBER_BUDGET_BYTES // (cell_bytes * image[0].numel()))
    for first in range(0, samples, at_once):
        members = image.expand(min(at_once, samples - first), *image.shape)
        with torch.no_grad():
            yield from volume.to_native(model(members, seed=seed, first_sample=first)).cpu()


def _with_own_statistics(model: Segmenter) -> Segmenter:
    """The model with norm "batch" replaced by "instance": members in one call do not share their statistics."""
    model = copy.deepcopy(model)
    for level in model.modules():
        if isinstance(level, NCA) and level.spec.norm == "batch":
            level.spec = dataclasses.replace(level.spec, norm="instance")
    return model


def draw_sampling(path: str | Path, model: Segmenter, volume: Volume, cfg: Config, samples: int, seed: int) -> None:
    """Draws how the first sample of a picture came about, and what the ensemble says, see `report.draw_sampling`."""
    frames: list[tuple[str, np.ndarray]] = []
    last = cfg.diffusion.timesteps - 1

    def watch(t: int, x_t: torch.Tensor, x0: torch.Tensor) -> None:
        frames.append((f"x, t = {t}" if t < last else f"x, t = {t}: noise", x_t[0, 0, ..., 0].cpu().numpy()))

    image = torch.from_numpy(volume.image)[None].to(next(model.parameters()).device)
    result = medsegdiff.sample_masks(model, image, cfg.diffusion, seed=seed, watch=watch)
    every = max(1, len(frames) // 5)
    chosen = [*frames[::every][:5], ("x_0", result[0, 0, ..., 0].cpu().numpy())]
    members = medsegdiff.decode(medsegdiff.sample_volume(model, volume, cfg, samples, seed), cfg.diffusion)
    mean, variance, _ = summarise(members[:, 0, ..., 0])
    low, high = (-1.0, 1.0) if cfg.diffusion.mask == "signed" else (0.0, 1.0)
    report.draw_sampling(path, volume.image[..., 0], chosen, (low, high), mean.numpy(), variance.sqrt().numpy())


def _targets(source: Path, out: Path) -> list[tuple[Case, Path]]:
    """Pairs every input with the file that its labels go to."""
    if source.is_dir():
        if out.is_file() or out.name.endswith((*SUFFIXES, *PICTURES)):
            raise ValueError(f"out must be a folder when the input is one; got {out}")
        return [(case, out / _output_name(case.image)) for case in find_cases(images=source)]
    if not source.is_file():
        raise FileNotFoundError(f"input must be a NIfTI file, a picture, or a folder of them; {source} does not exist")
    case = Case(id=case_id(source), image=source, label=None)
    return [(case, out if out.name.endswith((*SUFFIXES, *PICTURES)) else out / _output_name(source))]


def _output_name(image: Path) -> str:
    return f"{case_id(image)}.png" if is_picture(image) else image.name


def _stem(target: Path) -> Path:
    return target.parent / case_id(target)


def _draw(target: Path, labels: np.ndarray, variance: np.ndarray, volume: Volume) -> None:
    image, spacing_mm = native_image(volume), volume.spacing_mm
    if image.shape[2] == 1:  # a picture, or a single slice: one plane says it all
        image, labels, variance, spacing_mm = image[..., 0], labels[..., 0], variance[..., 0], spacing_mm[:2]
    report.draw_overlay(f"{_stem(target)}_overlay.png", image, labels, spacing_mm=spacing_mm)
    report.draw_triptych(f"{_stem(target)}_variance.png", image, labels, variance, spacing_mm=spacing_mm)
