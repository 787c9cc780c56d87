"""Segmentations as files that keep the geometry of their input."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ncaseg.batch import Batch, about
from ncaseg.config import Config
from ncaseg.data.dataset import Volume, load_case
from ncaseg.data.formats import FORMATS, find_format, format_of, is_picture
from ncaseg.data.index import Case, case_id, find_cases, join_channels
from ncaseg.files import check_target, remove_stale, replacing
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
            already has its output is skipped, so that an interrupted run can be repeated. A file that is missing beside
            a segmentation is made again, and the segmentation left as it is.
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
        ValueError: an output would replace its input, or has a suffix that is not written; a volume cannot be read or
            does not fit; or ``memory`` does not hold one tile, or the image while it is read.
        BatchError: cases of a folder failed in this way; the others are done.
        FloatingPointError: the model gives numbers that are not finite.
        OSError: ``scratch`` or the folder of the output has no room.
    """
    source, out = Path(source), Path(out)
    loaded, cfg = _load(model) if isinstance(model, str | Path) else model
    samples = cfg.predict.samples if samples is None else samples
    seed = cfg.predict.seed if seed is None else seed
    rule = cfg.predict.rule if rule is None else rule
    todo = _targets(source, out, len(cfg.data.modalities))
    _check_targets(todo)
    has_strip = png and cfg.model.kind == "medsegdiff" and not isinstance(loaded, EdgeModel)
    if source.is_dir() and not overwrite:
        waiting = [pair for pair in todo if not all(path.exists() for path in _outputs(*pair, png, has_strip))]
        if len(waiting) < len(todo):
            print(f"skipping {len(todo) - len(waiting)} of {len(todo)} cases that have an output in {out}")
        todo = waiting
    if memory is not None and not isinstance(loaded, EdgeModel):
        loaded = from_torch(loaded, cfg.model)
    if memory is not None:  # the bound of this call takes the place of the recipe's
        cfg = dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, max_read_gb=math.inf))
    run = _Run(loaded, cfg, samples, seed, rule, png, has_strip, memory, scratch)
    if not source.is_dir():
        with about(todo[0][0].image):
            return [run.segment(*todo[0], keep=False)]
    batch, written = Batch(), []
    for case, target in _with_progress(todo):
        with batch.case(case.id, case.image):
            written.append(run.segment(case, target, keep=not overwrite))
    batch.finish(len(todo), written)
    return written


@dataclasses.dataclass(frozen=True)
class _Run:
    """What is the same for every case of a prediction."""

    model: Segmenter | EdgeModel
    cfg: Config
    samples: int
    seed: int
    rule: str
    png: bool
    has_strip: bool
    memory: int | None
    scratch: Path | None

    def segment(self, case: Case, target: Path, *, keep: bool) -> Path:
        """Write everything that is asked for about one case; ``keep`` leaves a segmentation that is there as it is."""
        cfg = self.cfg
        if self.memory is not None:
            check_loading(case, cfg.data, self.memory)
        volume = load_case(case, cfg.data)
        labels, variance = self._predict(volume)
        if not (keep and target.exists()):
            save_labels(target, labels, volume)
        if variance is not None:
            draw_case(target, labels, variance, volume)
        if self.has_strip and volume.is_picture and not isinstance(self.model, EdgeModel):
            from ncaseg.report.sampling import draw_strip

            draw_strip(_companion(target, "sampling"), self.model, volume, cfg, self.samples, self.seed)
        return target

    def _predict(self, volume: Volume) -> tuple[np.ndarray, np.ndarray | None]:
        options: dict[str, Any] = {"with_variance": self.png, "rule": self.rule}
        if self.memory is None or not isinstance(self.model, EdgeModel):
            options = {"rule": self.rule, "with_spread": self.png}
            answered = answer(self.model, volume, self.cfg, self.samples, self.seed, **options)
            return answered.labels, answered.variance
        budget = self.memory - (volume.image.nbytes if self.cfg.predict.flips else 0)  # for the mirrored copy
        plan = plan_prediction(self.model, volume, samples=self.samples, budget_bytes=budget, **options)
        print(f"{volume.id}: {plan}", flush=True)
        scratch = self.scratch
        return predict_large(self.model, volume, self.cfg, self.samples, self.seed, plan, scratch=scratch, **options)


def list_inputs(source: Path) -> list[Case]:
    """The NIfTI file or picture, or every one of the folder, as cases without labels.

    Raises:
        FileNotFoundError: there is no such file, or none in the folder.
    """
    if source.is_dir():
        cases = find_cases(images=source)
        _tell_left_out(source, {path for case in cases for path in case.files})
        return cases
    if not source.is_file():
        raise FileNotFoundError(f"input must be a NIfTI file, a picture, or a folder of them; {source} does not exist")
    return [Case(id=case_id(source), image=source, label=None)]


def _tell_left_out(folder: Path, taken: Set[Path]) -> None:
    """A folder is of one format: say which images of another one it holds."""
    others = (path for path in sorted(folder.iterdir()) if path not in taken)
    rest = [path for path in others if any(form.is_image(path.name) for form in FORMATS)]
    if rest:
        kind = next(form.name for form in FORMATS if form.is_image(rest[0].name))
        count = f"{len(rest)} of another format ({kind})"
        print(f"note: {folder} also holds {count}, which are left out: {rest[0].name}, ...")


def save_labels(path: str | Path, labels: np.ndarray, volume: Volume) -> None:
    """Write labels ``[*S]`` in the format of the name: NIfTI as uint8 with the affine and header of ``volume``."""
    _save(path, labels.astype(np.uint8, copy=False), volume)


def save_map(path: str | Path, voxels: np.ndarray, volume: Volume) -> None:
    """Write ``[*S]`` on the native grid as NIfTI of its own dtype with the affine and header of ``volume``.

    The display range, which describes the intensities of the scan, is reset.
    """
    _save(path, voxels, volume)


def _save(path: str | Path, voxels: np.ndarray, volume: Volume) -> None:
    with replacing(path) as temporary:
        format_of(path).write(temporary, voxels, volume.affine, volume.header)


def draw_case(target: Path, labels: np.ndarray, variance: np.ndarray, volume: Volume) -> None:
    """Draw ``<id>_overlay.png`` and ``<id>_variance.png`` beside the segmentation ``target``."""
    from ncaseg.report import volumes

    image, spacing_mm = native_image(volume), volume.spacing_mm
    if image.shape[2] == 1:  # a picture, or a single slice: one plane says it all
        image, labels, variance, spacing_mm = image[..., 0], labels[..., 0], variance[..., 0], spacing_mm[:2]
    volumes.draw_overlay(_companion(target, "overlay"), image, labels, spacing_mm=spacing_mm)
    volumes.draw_triptych(_companion(target, "variance"), image, labels, variance, spacing_mm=spacing_mm)


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


def _targets(source: Path, out: Path, channels: int) -> list[tuple[Case, Path]]:
    """Pair every input with the file that its labels go to."""
    cases = list_inputs(source)
    if source.is_dir():
        cases = join_channels(cases, channels)
        if out.is_file() or find_format(out) is not None:
            raise ValueError(f"out must be a folder when the input is one; got {out}")
        return [(case, out / (_output_name(case.image) if not case.more else _joined_name(case))) for case in cases]
    if out.is_dir() or not out.suffix:
        return [(cases[0], out / _output_name(source))]
    written = format_of(source).written
    if not out.name.lower().endswith(written):
        ends = " or ".join(written)
        raise ValueError(f"out must end in {ends} for {source.name}, or be a folder that exists; got {out}")
    return [(cases[0], out)]


def _check_targets(todo: Sequence[tuple[Case, Path]]) -> None:
    """Everything about the outputs that can be known before the work; what killed processes left there is removed."""
    clash = [str(target) for case, target in todo if target.resolve() == case.image.resolve()]
    if clash:
        raise ValueError(f"out must not replace its input; {clash[0]} is both. Choose another folder or name")
    for _, target in todo:
        check_target(target)
    for folder in {target.parent for _, target in todo}:
        remove_stale(folder)


def _outputs(case: Case, target: Path, png: bool, has_strip: bool) -> list[Path]:
    """All files that a case ends in."""
    drawn = ["overlay", "variance"] if png else []
    drawn += ["sampling"] if has_strip and is_picture(case.image) else []
    return [target, *(_companion(target, name) for name in drawn)]


def _companion(target: Path, name: str) -> Path:
    return target.parent / f"{case_id(target)}_{name}.png"


def _joined_name(case: Case) -> str:
    return f"{case.id}{format_of(case.image).suffix(_output_name(case.image))}"


def _output_name(image: Path) -> str:
    return format_of(image).output_name(image.name)
