"""Files to cases: which image belongs to which label. Reads names and dataset.json, never a voxel."""

import csv
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ncaseg import files
from ncaseg.data import formats
from ncaseg.data.formats.base import Format

FOLDER_PAIRS = (
    ("imagesTr", "labelsTr"),
    ("images", "labels"),
    ("imagesTr", "masksTr"),
    ("images", "masks"),
    ("ISIC2018_Task1-2_Training_Input", "ISIC2018_Task1_Training_GroundTruth"),
    ("ISIC-2017_Training_Data", "ISIC-2017_Training_Part1_GroundTruth"),
    ("CXR_png", "masks"),  # Montgomery and Shenzhen
)
GROUPS = "groups.csv"
CHANNEL = re.compile(r"(.+)_(\d{4})")  # of nnU-Net: case_0000, case_0001 are the channels of a case


@dataclass(frozen=True)
class Case:
    """One subject: ``id`` is the image's file name without its suffix; ``label`` is None without one.

    ``more`` are files of further channels, where every channel has its own.
    """

    id: str
    image: Path
    label: Path | None
    more: tuple[Path, ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        """All files of the image."""
        return (self.image, *self.more)


def find_cases(
    data: str | Path | None = None, *, images: str | Path | None = None, labels: str | Path | None = None
) -> list[Case]:
    """List the cases of a dataset, sorted by id.

    Args:
        data: a folder with ``dataset.json`` (Medical Segmentation Decathlon, whose "training" list is read, or nnU-Net,
            which lists channels instead), or with the folders ``imagesTr`` and ``labelsTr`` (or ``masksTr``),
            ``images`` and ``labels`` (or ``masks``), ``CXR_png`` and ``masks``, or those of ISIC 2017 part 1 or ISIC
            2018 task 1.
        images: instead of ``data``: a folder of NIfTI images, or of pictures (which are ignored beside NIfTI files).
            Dot-files (among them the ``._`` companions of macOS) are ignored.
        labels: the folder of their labels, matched by file name, after which pictures may have ``_segmentation`` or
            ``_mask``, and images the ``_0000`` of nnU-Net. An image without a label gives ``label=None``.

    Raises:
        FileNotFoundError: a folder or a listed file does not exist, or there is no image.
        ValueError: a label without an image, two files of one id, or a dataset.json that cannot be understood.
    """
    if (data is None) == (images is None):
        raise ValueError("give either data (a dataset's folder) or images (and labels); got both or neither")
    if data is None:
        return _paired(Path(images), None if labels is None else Path(labels))  # type: ignore[arg-type]
    if labels is not None:
        raise ValueError("labels needs images; data already names both")
    folder = Path(data)
    if (folder / "dataset.json").is_file():
        return _listed(folder / "dataset.json")
    for image_name, label_name in FOLDER_PAIRS:
        if (folder / image_name).is_dir() and (folder / label_name).is_dir():
            return _paired(folder / image_name, folder / label_name)
    expected = "dataset.json, or " + ", or ".join(" and ".join(pair) for pair in FOLDER_PAIRS)
    state = "holds none of these" if folder.is_dir() else "does not exist"
    raise FileNotFoundError(f"data must be a folder with {expected}; {folder} {state}")


def find_groups(data: str | Path | None, ids: Iterable[str] | None = None) -> dict[str, str]:
    """Which cases belong together, a patient's or a lesion's, from ``groups.csv`` in the folder of the data.

    Its columns are ``id`` (or the name of the file) and ``group``. Without the file, or without a folder, every case is
    on its own.

    Raises:
        ValueError: the file has other columns or is no table, names a case twice in different groups or, where ``ids``
            are given, a case that is not among them, or leaves one out.
    """
    path = None if data is None else Path(data) / GROUPS
    if path is None or not path.is_file():
        return {}
    text = files.read_text(path)
    header = text.partition("\n")[0]
    separator = ";" if ";" in header and "," not in header else ","
    reader = csv.DictReader(io.StringIO(text), delimiter=separator, skipinitialspace=True)
    groups: dict[str, str] = {}
    try:
        if not {"id", "group"} <= set(reader.fieldnames or ()):
            raise ValueError(f"{path} must have the columns id and group; got {reader.fieldnames}")
        for row in reader:
            # Without the spaces around them: two spellings of a patient would be two patients.
            name, group = ((row[column] or "").strip() for column in ("id", "group"))
            if not name or not group:
                raise ValueError(f"{path} must give every row an id and a group; line {reader.line_num} lacks one")
            name = case_id(name) if formats.find_format(name) else name
            if groups.setdefault(name, group) != group:
                raise ValueError(f"{path} puts {name} into two groups, {groups[name]} and {group}")
    except csv.Error as error:
        raise ValueError(f"{path} must be a table (CSV); line {reader.line_num} is not: {error}") from error
    if ids is not None:
        _check_entries(path, groups, set(ids))
    return groups


def write_pairs(images: str | Path, labels: str | Path, folder: str | Path) -> list[str]:
    """Write the pairs of two folders as ``dataset.json`` of another; return the ids of images without a label."""
    cases = find_cases(images=images, labels=labels)
    pairs = []
    for case in cases:
        if case.label is not None:
            names = [str(path.resolve()) for path in case.files]
            pairs.append({"image": names if case.more else names[0], "label": str(case.label.resolve())})
    files.write_text(Path(folder) / "dataset.json", json.dumps({"training": pairs}, indent=1) + "\n")
    return [case.id for case in cases if case.label is None]


def join_channels(cases: Sequence[Case], channels: int) -> list[Case]:
    """Cases of one file each, as cases of ``channels`` files, where their names are those of nnU-Net throughout.

    Example:
        >>> files = [Case(f"a_000{i}", Path(f"a_000{i}.nii"), None) for i in range(2)]
        >>> [(case.id, len(case.files)) for case in join_channels(files, 2)]
        [('a', 2)]
    """
    together = _by_channel({case.id: case.files for case in cases})
    if channels < 2 or any(len(paths) != channels for paths in together.values()):
        return list(cases)
    return [Case(key, paths[0], None, paths[1:]) for key, paths in sorted(together.items())]


def case_id(path: str | Path) -> str:
    """The file name without its suffix, NIfTI's or a picture's, and without the ending of a mask.

    Example:
        >>> case_id("a/hippocampus_001.nii.gz")
        'hippocampus_001'
        >>> case_id("ISIC_0000000_Segmentation.png")
        'ISIC_0000000'
    """
    return formats.format_of(path).stem(Path(path).name)


def _check_entries(path: Path, groups: Mapping[str, str], ids: set[str]) -> None:
    """A name with a slip would leave a patient on both sides of a split, without a word."""
    for names, text in ((groups.keys() - ids, "names cases that the data lack"), (ids - groups.keys(), "lacks cases")):
        if names:
            example = sorted(names)[0]
            raise ValueError(f"{path} {text}: {len(names)}, e.g. {example!r}. Each case needs one row, by its id")


def _listed(index: Path) -> list[Case]:
    content = files.read_json(index, "a description of a dataset")
    if "training" not in content and "channel_names" in content:
        return _nnunet(index, content)
    form = f'{index} must be JSON with a "training" list of {{"image": ..., "label": ...}}, or with "channel_names"'
    try:
        found = [[*_paths(index, entry["image"]), index.parent / entry["label"]] for entry in content["training"]]
        missing = [str(path) for paths in found for path in paths if not path.is_file()]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{form}; got {type(error).__name__}: {error}") from error
    if missing:
        raise FileNotFoundError(f"{index} lists {len(missing)} files that do not exist, e.g. {missing[0]}")
    cases = [Case(_name(paths[:-1]), paths[0], paths[-1], tuple(paths[1:-1])) for paths in found]
    if len({case.id for case in cases}) != len(cases):
        raise ValueError(f"{index} lists two images of one file name; ids must be unique")
    if not cases:
        raise ValueError(f'{index} has an empty "training" list')
    return sorted(cases, key=lambda case: case.id)


def _paths(index: Path, named: Any) -> list[Path]:
    """The files of an image: one, or a list with one per channel."""
    if named == []:
        raise ValueError('an "image" is an empty list')
    return [index.parent / name for name in (named if isinstance(named, list) else [named])]


def _name(files: Sequence[Path]) -> str:
    """The id of a case: the channel is no part of it, where there are several."""
    name = case_id(files[0])
    numbered = CHANNEL.fullmatch(name) if len(files) > 1 else None
    return numbered[1] if numbered else name


def _nnunet(index: Path, content: Mapping[str, Any]) -> list[Case]:
    """The cases of nnU-Net's version 2, which finds them by name: ``imagesTr/case_0000.nii.gz`` for channel 0."""
    ending, channels = content.get("file_ending"), content["channel_names"]
    form = formats.find_format(f"x{ending}")
    if form is None or not isinstance(channels, dict):
        known = formats.suffixes()
        raise ValueError(
            f'{index} must have a "file_ending" ({known}) and "channel_names"; got {ending!r}, {channels!r}'
        )
    cases = _paired(index.parent / "imagesTr", index.parent / "labelsTr", form)
    count = content.get("numTraining", len(cases))
    if str(count) != str(len(cases)):
        raise ValueError(f"{index} says that there are {count} cases (numTraining); imagesTr holds {len(cases)}")
    for case in cases:
        # A file may hold all channels; several files hold one each.
        if case.more and len(case.files) != len(channels):
            raise ValueError(f"{index} names {len(channels)} channels; case {case.id} has {len(case.files)} files")
        if case.label is None:
            raise ValueError(f"{index}: case {case.id} has no label in {index.parent / 'labelsTr'}")
    return cases


def _paired(images: Path, labels: Path | None, form: Format | None = None) -> list[Case]:
    image_of: dict[str, tuple[Path, ...]] = {key: (path,) for key, path in _volumes("images", images, form).items()}
    label_of = {} if labels is None else _volumes("labels", labels, form)
    orphans = sorted(label_of.keys() - image_of.keys())
    if orphans:
        # The names of nnU-Net, as far as that gives every label an image.
        image_of = _by_channel(image_of)
        orphans = [orphan for orphan in orphans if orphan not in image_of]
    if orphans:
        example = label_of[orphans[0]].name
        raise ValueError(f"{len(orphans)} labels in {labels} have no image of that name in {images}, e.g. {example}")
    found = sorted(image_of.items())
    return [Case(id=key, image=paths[0], label=label_of.get(key), more=paths[1:]) for key, paths in found]


def _by_channel(image_of: Mapping[str, tuple[Path, ...]]) -> dict[str, tuple[Path, ...]]:
    """Files ``case_0000``, ``case_0001`` together under ``case``, in this order; others under their own names."""
    together: dict[str, tuple[Path, ...]] = {}
    for key in sorted(image_of):
        name = CHANNEL.fullmatch(key)
        together[name[1] if name else key] = (*together.get(name[1] if name else key, ()), *image_of[key])
    return together


def _volumes(name: str, folder: Path, form: Format | None = None) -> dict[str, Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"{name} must be a folder; {folder} is not one")
    found: dict[str, Path] = {}
    for path in _images(folder, form):
        if case_id(path) in found:
            raise ValueError(f"{name} must hold one file per case; {path.name} and {found[case_id(path)].name} are two")
        found[case_id(path)] = path
    if not found:
        raise FileNotFoundError(f"{name} must hold files ending in {formats.suffixes()}; {folder} has none")
    return found


def _images(folder: Path, form: Format | None = None) -> list[Path]:
    """The files of the first format that the folder holds any of, in the order of ``FORMATS``."""
    listed = sorted(folder.iterdir())

    def of(one: Format) -> list[Path]:
        return [path for path in listed if one.is_image(path.name)]

    return next((found for one in ([form] if form else formats.FORMATS) if (found := of(one))), [])
