"""All cases of a run, read once before its first step: what is broken is found now, and what differs is said."""

from collections import Counter
from collections.abc import Sequence

import nibabel as nib
import numpy as np

from ncaseg.config.settings import DataConfig
from ncaseg.config.settings.label_map import parse_label_map
from ncaseg.data.dataset import CaseStore, Volume
from ncaseg.data.formats.base import Value

SHOWN = 5  # broken cases in a message
SPACING_RATIO = 1.05  # spacings further apart are reported


def survey(volumes: CaseStore, ids: Sequence[str], cfg: DataConfig) -> list[str]:
    """Read every case and compare them.

    Returns:
        Lines about what differs between the cases and will not be mended: orientation, spacing, labels that never
        occur.

    Raises:
        ValueError: cases that cannot be used (all are counted, some are named); no label has a cell of foreground; an
            entry of ``data.label_map`` that no label uses; masks of two values that differ in which is foreground.
    """
    found, broken = _Found(), []
    for case in ids:
        try:
            found.add(volumes[case])
        except (ValueError, FileNotFoundError) as error:
            broken.append(str(error))
    if broken:
        more = f" and {len(broken) - SHOWN} more" if len(broken) > SHOWN else ""
        raise ValueError(f"{len(broken)} of {len(ids)} cases cannot be used: {'; '.join(broken[:SHOWN])}{more}")
    found.check(cfg)
    return found.report(cfg)


class _Found:
    """What the cases said so far; volumes themselves are not kept."""

    def __init__(self) -> None:
        self.axes: Counter[str] = Counter()
        self.example: dict[str, str] = {}
        self.spacings: list[tuple[float, ...]] = []
        self.labels: Counter[int] = Counter()
        self.values: set[Value] = set()
        self.bright: dict[Value, str] = {}  # the foreground of masks of two values, with a case
        self.empty = 0

    def add(self, volume: Volume) -> None:
        axes = "".join(axis or "?" for axis in nib.aff2axcodes(volume.affine))
        self.axes[axes] += 1
        self.example.setdefault(axes, volume.id)
        self.spacings.append(volume.spacing_mm)
        present = [value for value in np.unique(volume.require_label()).tolist() if value > 0]
        self.labels.update(present)
        self.empty += not present
        self.values.update(volume.meaning)
        for value, label in volume.meaning.items():
            if label and value != label:
                self.bright.setdefault(value, volume.id)

    def check(self, cfg: DataConfig) -> None:
        entries = parse_label_map(cfg.label_map)
        # Values beyond the entries are background only, so a palette's numbers cannot be told from its colours here.
        unused = [str(entry) for entry in entries if not any(entry.matches(value) for value in self.values)]
        if unused:
            raise ValueError(
                f"data.label_map has entries that no label uses: {', '.join(unused)}; the labels hold "
                f"{sorted(self.values, key=str)}. Correct or remove them"
            )
        if not entries and len(self.bright) > 1:
            pairs = ", ".join(f"{value} (e.g. {case})" for value, case in self.bright.items())
            raise ValueError(
                f"masks differ in what stands for foreground: {pairs}. Say which it is with data.label_map"
            )
        if not self.labels and not cfg.allow_empty:
            raise ValueError(
                f"all {self.empty} labels are empty: nothing in them is foreground, so there is nothing to learn. "
                "Check the folder and the export of the labels, or set data.allow_empty=true"
            )

    def report(self, cfg: DataConfig) -> list[str]:
        lines = []
        if len(self.axes) > 1:
            groups = ", ".join(f"{n} {axes} (e.g. {self.example[axes]})" for axes, n in self.axes.most_common())
            lines.append(
                f"orientation differs: {groups}; axes are used as they are stored. Give all cases one orientation"
            )
        least, most = np.min(self.spacings, 0), np.max(self.spacings, 0)
        if (most > SPACING_RATIO * least).any():
            texts = ["x".join(f"{mm:.3g}" for mm in spacing) for spacing in (least, most)]
            lines.append(f"spacing differs: from {texts[0]} to {texts[1]} mm; cells are used as they are stored")
        absent = [value for value in cfg.labels if value not in self.labels]
        if absent and self.labels:
            lines.append(f"data.labels {absent} occur in no label")
        if self.empty:
            shown = f"{self.empty} of {len(self.spacings)} labels are empty"
            lines.append(f"{shown}; where the answer is empty as well, the Dice is 1 and says nothing")
        return lines
