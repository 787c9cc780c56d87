"""Segmentations as files that keep the geometry of their input."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np

from ncaseg.config import Config
from ncaseg.data.dataset import Volume, load_case
from ncaseg.data.index import SUFFIXES, Case, case_id, find_cases
from ncaseg.data.pictures import SUFFIXES as PICTURES
from ncaseg.data.pictures import is_picture, save_mask
from ncaseg.files import replacing
from ncaseg.inference.case import answer, native_image, predict_large
from ncaseg.lean.model import EdgeModel, from_torch
from ncaseg.lean.tiled import check_loading, plan_prediction

# Nothing up here loads torch: a model that is an EdgeModel does without.
if TYPE_CHECKING:
    from ncaseg.models.base import Segmenter


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
    """Segment one NIfTI file or picture, or every one of a folder, into files of the same geometry.

    A picture gives a PNG of 0 and 255 (of label values, where there are several). Of NIfTI, affine, qform and sform
    with their codes, voxel sizes and units are the input's; the voxels are uint8 labels.

    Args:
        model: a checkpoint file, the name of a zoo entry, or what ``load_model`` returned as (model, cfg).
        source: a ``.nii`` or ``.nii.gz`` file, a picture, or a folder of either.
        out: for a file: the file to write, or a folder for it. For a folder: a folder; names are kept, and a case that
            already has its output is skipped, so that an interrupted run can be repeated.
        samples: members of the ensemble; None takes the recipe's.
        seed: names the random stream; None takes the recipe's.
        rule: how members become one, see ``ncaseg.ensemble.combine``; None takes the recipe's.
        png: also write ``<id>_overlay.png`` and ``<id>_variance.png`` beside each segmentation, and for MedSegDiffNCA
            and a picture ``<id>_sampling.png``.
        overwrite: redo the cases of a folder that already have an output.
        memory: the most bytes that this process may occupy; what was chosen is printed for every case. Needs a model
            on the CPU. None sets no limit.
        scratch: folder for the files of volumes that do not fit; None is the system's temporary folder.

    Returns:
        The segmentations written, without the skipped ones.

    Raises:
        FileNotFoundError: no such model, file or folder.
        ValueError: an output would replace its input, a volume cannot be read or does not fit, or ``memory`` does not
            hold one tile, or the image while it is read.
        OSError: ``scratch`` has no room.
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
            answered = answer(loaded, volume, cfg, samples, seed, rule=rule, with_spread=png)
            labels, variance = answered.labels, answered.variance
        if is_picture(case.image):
            save_mask(target, labels)
        else:
            save_labels(target, labels, volume)
        if variance is not None:
            draw_case(target, labels, variance, volume)
            if cfg.model.kind == "medsegdiff" and is_picture(case.image) and not isinstance(loaded, EdgeModel):
                from ncaseg.report.sampling import draw_strip

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
    """Write labels ``[*S]`` as uint8 NIfTI with the affine and header of ``volume``; see ``save_map``."""
    save_map(path, labels.astype(np.uint8, copy=False), volume)


def save_map(path: str | Path, voxels: np.ndarray, volume: Volume) -> None:
    """Write ``[*S]`` on the native grid as NIfTI of its own dtype with the affine and header of ``volume``.

    The display range, which describes the intensities of the scan, is reset.
    """
    header = volume.header.copy()
    header.set_data_dtype(voxels.dtype)
    header["cal_min"] = header["cal_max"] = 0
    kind = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    with replacing(path) as temporary:
        nib.save(kind(voxels, volume.affine, header), temporary)


def draw_case(target: Path, labels: np.ndarray, variance: np.ndarray, volume: Volume) -> None:
    """Draw ``<id>_overlay.png`` and ``<id>_variance.png`` beside the segmentation ``target``."""
    from ncaseg.report import volumes

    image, spacing_mm = native_image(volume), volume.spacing_mm
    if image.shape[2] == 1:  # a picture, or a single slice: one plane says it all
        image, labels, variance, spacing_mm = image[..., 0], labels[..., 0], variance[..., 0], spacing_mm[:2]
    volumes.draw_overlay(f"{_stem(target)}_overlay.png", image, labels, spacing_mm=spacing_mm)
    volumes.draw_triptych(f"{_stem(target)}_variance.png", image, labels, variance, spacing_mm=spacing_mm)


def _load(name_or_path: str | Path) -> tuple[Segmenter, Config]:
    from ncaseg.checkpoint.model import load_model

    return load_model(name_or_path)[:2]


def _with_progress(todo: Sequence[tuple[Case, Path]]) -> Iterable[tuple[Case, Path]]:
    """The cases behind a progress bar, where tqdm is installed."""
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:
        return todo
    return tqdm(todo, desc="predict", unit="case", disable=None)


def _targets(source: Path, out: Path) -> list[tuple[Case, Path]]:
    """Pair every input with the file that its labels go to."""
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
