"""NQM and Dice of volumes, clean and with artefacts, into a table that grows case by case and is never half written."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ncaseg.batch import Batch
from ncaseg.config import Config, DataConfig
from ncaseg.data.dataset import Volume, load_case
from ncaseg.data.index import Case
from ncaseg.data.standard import standardise, unstandardise
from ncaseg.ensemble import DEFAULT_RULE
from ncaseg.evaluation.scores import score_volume
from ncaseg.files import read_text, replacing
from ncaseg.inference.case import Answer, answer
from ncaseg.inference.files import draw_case, save_map
from ncaseg.models.base import Segmenter
from ncaseg.quality.artifacts import CLEAN, corrupt
from ncaseg.quality.threshold import is_flagged

METRICS = ("hard_dice", "soft_dice")


@dataclass(frozen=True)
class Ensemble:
    """A model and everything about its runs that an NQM depends on."""

    model: Segmenter
    cfg: Config
    samples: int
    seed: int
    rule: str = DEFAULT_RULE
    renormalise: bool = False

    def __post_init__(self) -> None:
        if self.cfg.model.is_diffusion:
            raise ValueError(
                f"model.kind must not be {self.cfg.model.kind!r} for quality control, whose artefacts and thresholds "
                "are made for segmenters; the NQM of MedSegDiffNCA's samples is in `ncaseg evaluate --json`"
            )

    def conditions(self) -> dict[str, Any]:
        """What must be equal for two NQMs to be comparable, as plain values."""
        weights = hashlib.sha256()
        for name, tensor in self.model.state_dict().items():
            weights.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
        return {
            "recipe": self.cfg.name,
            "weights_sha256": weights.hexdigest(),
            "samples": self.samples,
            "seed": self.seed,
            "rule": self.rule,
            **({"flips": self.cfg.predict.flips} if self.cfg.predict.flips else {}),
            **self._reading(),
            "artifacts_renormalised": self.renormalise,
        }

    def _reading(self) -> dict[str, Any]:
        """What a command may say about the reading of files and changes numbers, where it is not the default."""
        given = {name: getattr(self.cfg.data, name) for name in ("label_map", "white")}
        return {f"data.{name}": value for name, value in given.items() if value != getattr(DataConfig, name)}


@dataclass(frozen=True)
class Row:
    """One measured volume: clean or with an artefact; a Dice of the merged foreground where there is a label.

    ``content`` is that of the files, see :func:`content_of`; rows of tables that lack it are measured anew.
    """

    id: str
    artifact: str
    nqm: float
    hard_dice: float | None
    soft_dice: float | None
    image: str
    content: str = ""

    @property
    def key(self) -> tuple[str, str]:
        return self.image, self.artifact


def measure(
    ensemble: Ensemble,
    cases: Sequence[Case],
    kinds: Sequence[str],
    table: str | Path,
    *,
    maps: str | Path | None = None,
    png: bool = False,
) -> list[Row]:
    """Measure every case with every artefact, and keep the table up to date.

    Args:
        ensemble: what to run.
        cases: volumes, with or without labels.
        kinds: "clean" and artefacts, see ``ncaseg.quality.artifacts``; those are applied to the normalised image.
        table: CSV of the rows; cases that it holds are not run again, unless their image or label has changed since.
        maps: folder for ``<id>_variance.nii.gz``, the population variance of the probabilities of each clean volume
            (float32, mean over output channels) in the geometry of the scan; None writes none.
        png: with ``maps``, also draw ``<id>_overlay.png`` and ``<id>_variance.png`` there.

    Returns:
        The rows of these cases and kinds, in this order.

    Raises:
        BatchError: volumes cannot be read or do not fit the model; the others are measured, their rows are ``done``.
    """
    done = {row.key: row for row in read_table(table)}
    rows: list[Row] = []
    batch = Batch()
    for case in tqdm(cases, desc="qc", unit="case", disable=None):
        map_file = None if maps is None else Path(maps) / f"{case.id}_variance.nii.gz"
        with batch.case(case.id, case.image):
            content = content_of(case)
            known = {kind for image, kind in done if image == str(case.image) and done[image, kind].content == content}
            missing = [k for k in kinds if k not in known or (k == CLEAN and _is_absent(map_file, case.id, png))]
            volume = load_case(case, ensemble.cfg.data) if missing else None
            for kind in missing:
                assert volume is not None
                row, answered = _measure_volume(ensemble, volume, case, kind, content)
                done[row.key] = row
                if kind == CLEAN and map_file is not None:
                    _write_maps(map_file, answered, volume, png)
            if missing:
                write_table(table, done.values())
            rows += [done[str(case.image), kind] for kind in kinds]
    batch.finish(len(cases), rows)
    return rows


def content_of(case: Case) -> str:
    """Tell whether image or label were replaced: 16 digits of the SHA-256 of both."""
    digest = hashlib.sha256()
    for path in (*case.files, case.label):
        if path is not None:
            with open(path, "rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def read_table(path: str | Path) -> list[Row]:
    """The rows of a table that ``write_table`` wrote; none where there is no file.

    Raises:
        ValueError: the file is not such a table.
    """
    if not Path(path).exists():
        return []
    try:
        return [_parse(entry) for entry in csv.DictReader(io.StringIO(read_text(path)))]
    except (csv.Error, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} must be a table of this command; it cannot be read as one: {error}") from error


def write_table(path: str | Path, rows: Iterable[Row], threshold: float | None = None) -> None:
    """Write rows as CSV; ``flagged`` is yes or no, and empty without a threshold."""
    names = [field.name for field in dataclasses.fields(Row)]
    with (
        replacing(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        writer = csv.DictWriter(file, fieldnames=[*names[:-2], "flagged", *names[-2:]])
        writer.writeheader()
        writer.writerows(dataclasses.asdict(row) | {"flagged": flag_of(row, threshold)} for row in rows)


def flag_of(row: Row, threshold: float | None) -> str:
    """yes or no; empty without a threshold."""
    if threshold is None:
        return ""
    return "yes" if is_flagged(row.nqm, threshold) else "no"


def _measure_volume(ensemble: Ensemble, volume: Volume, case: Case, kind: str, content: str) -> tuple[Row, Answer]:
    cfg = ensemble.cfg
    plain = unstandardise(volume.image, cfg.data)
    image = corrupt(plain, kind, seed=ensemble.seed, case=case.id, renormalise=ensemble.renormalise)
    seen = dataclasses.replace(volume, image=standardise(image, cfg.data))
    model, samples, seed, rule = ensemble.model, ensemble.samples, ensemble.seed, ensemble.rule
    answered = answer(model, seen, cfg, samples, seed, rule=rule, with_spread=True)
    assert answered.nqm is not None  # it was asked for
    scores: Mapping[str, float | None] = dict.fromkeys(METRICS)
    if volume.label is not None:
        scores = score_volume(answered.probabilities, answered.labels, volume, cfg, "one")
    return Row(
        case.id, kind, answered.nqm, scores["hard_dice"], scores["soft_dice"], str(case.image), content
    ), answered


def _write_maps(path: Path, answered: Answer, volume: Volume, png: bool) -> None:
    assert answered.variance is not None
    if png:
        draw_case(path.with_name(f"{volume.id}.nii.gz"), answered.labels, answered.variance, volume)
    save_map(path, answered.variance.astype(np.float32, copy=False), volume)


def _is_absent(path: Path | None, case: str, png: bool) -> bool:
    """Whether a file is missing beside the table that is asked for."""
    if path is None:
        return False
    drawn = [path.with_name(f"{case}_{name}.png") for name in ("overlay", "variance")] if png else []
    return not all(file.exists() for file in (path, *drawn))


def _parse(entry: Mapping[str, str]) -> Row:
    def number(text: str) -> float | None:
        return float(text) if text else None

    dices = (number(entry["hard_dice"]), number(entry["soft_dice"]))
    return Row(entry["id"], entry["artifact"], float(entry["nqm"]), *dices, entry["image"], entry.get("content", ""))
