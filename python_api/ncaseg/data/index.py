"""Files to cases: which image belongs to which label. Reads names and dataset.json, never a voxel."""

import csv
import json
from dataclasses import dataclass
from pathlib import Path

from ncaseg.data import pictures

SUFFIXES = (".nii.gz", ".nii")
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
# Of the masks of ISIC and Shenzhen, in either case: ISIC_0000000_segmentation.png, CHNCXR_0001_0_mask.png.
MASK_ENDINGS = ("_segmentation", "_mask")
NO_IMAGES = "_superpixels"  # files of ISIC 2016 and 2017 beside the images


@dataclass(frozen=True)
class Case:
    """One subject: ``id`` is the image's file name without its suffix; ``label`` is None without one."""

    id: str
    image: Path
    label: Path | None


def find_cases(
    data: str | Path | None = None, *, images: str | Path | None = None, labels: str | Path | None = None
) -> list[Case]:
    """List the cases of a dataset, sorted by id.

    Args:
        data: a folder with ``dataset.json`` (Medical Segmentation Decathlon; its "training" list is read), or with the
            folders ``imagesTr`` and ``labelsTr`` (or ``masksTr``), ``images`` and ``labels`` (or ``masks``),
            ``CXR_png`` and ``masks``, or those of ISIC 2017 part 1 or ISIC 2018 task 1.
        images: instead of ``data``: a folder of NIfTI images, or of pictures (which are ignored beside NIfTI files).
            Dot-files (among them the ``._`` companions of macOS) are ignored.
        labels: the folder of their labels, matched by file name, after which pictures may have ``_segmentation`` or
            ``_mask``. An image without a label gives ``label=None``.

    Raises:
        FileNotFoundError: a folder or a listed file does not exist, or there is no image.
        ValueError: a label without an image, two files of one id, or a dataset.json that cannot be understood.
    """
    if (data is None) == (images is None):
        raise ValueError("give either data (a dataset's folder) or images (and labels); got both or neither")
    if data is None:
        return _paired(Path(images), None if labels is None else Path(labels))  # type: ignore[arg-type]
    if labels is not None:
        raise ValueError("labels goes with images; data already names both")
    folder = Path(data)
    if (folder / "dataset.json").is_file():
        return _listed(folder / "dataset.json")
    for image_name, label_name in FOLDER_PAIRS:
        if (folder / image_name).is_dir() and (folder / label_name).is_dir():
            return _paired(folder / image_name, folder / label_name)
    expected = "dataset.json, or " + ", or ".join(" and ".join(pair) for pair in FOLDER_PAIRS)
    state = "holds none of these" if folder.is_dir() else "does not exist"
    raise FileNotFoundError(f"data must be a folder with {expected}; {folder} {state}")


def find_groups(data: str | Path | None) -> dict[str, str]:
    """Which cases belong together, a patient's or a lesion's, from ``groups.csv`` in the folder of the data.

    Its columns are ``id`` and ``group``. Without the file, or without a folder, every case is on its own.

    Raises:
        ValueError: the file has other columns.
    """
    path = None if data is None else Path(data) / GROUPS
    if path is None or not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if not {"id", "group"} <= set(reader.fieldnames or ()):
            raise ValueError(f"{path} must have the columns id and group; got {reader.fieldnames}")
        return {row["id"]: row["group"] for row in reader}


def case_id(path: str | Path) -> str:
    """The file name without its suffix, NIfTI's or a picture's, and without the ending of a mask.

    Example:
        >>> case_id("a/hippocampus_001.nii.gz")
        'hippocampus_001'
        >>> case_id("ISIC_0000000_Segmentation.png")
        'ISIC_0000000'
    """
    name = Path(path).name
    for suffix in SUFFIXES:
        if name.endswith(suffix):
            return name.removesuffix(suffix)
    if not pictures.is_picture(path):
        raise ValueError(f"{path} must be a NIfTI file ending in {' or '.join(SUFFIXES)}, or a picture")
    stem = Path(path).stem
    ending = next((ending for ending in MASK_ENDINGS if stem.lower().endswith(ending)), "")
    return stem[: len(stem) - len(ending)]


def _listed(index: Path) -> list[Case]:
    try:
        entries = json.loads(index.read_text(encoding="utf-8"))["training"]
        pairs = [(index.parent / entry["image"], index.parent / entry["label"]) for entry in entries]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        form = 'a "training" list of {"image": ..., "label": ...}'
        raise ValueError(f"{index} must be JSON with {form}; got {type(error).__name__}: {error}") from error
    missing = [str(path) for pair in pairs for path in pair if not path.is_file()]
    if missing:
        raise FileNotFoundError(f"{index} lists {len(missing)} files that do not exist, e.g. {missing[0]}")
    cases = [Case(id=case_id(image), image=image, label=label) for image, label in pairs]
    if len({case.id for case in cases}) != len(cases):
        raise ValueError(f"{index} lists two images of one file name; ids must be unique")
    if not cases:
        raise ValueError(f'{index} has an empty "training" list')
    return sorted(cases, key=lambda case: case.id)


def _paired(images: Path, labels: Path | None) -> list[Case]:
    image_of = _volumes("images", images)
    label_of = {} if labels is None else _volumes("labels", labels)
    orphans = sorted(label_of.keys() - image_of.keys())
    if orphans:
        example = label_of[orphans[0]].name
        raise ValueError(f"{len(orphans)} labels in {labels} have no image of that name in {images}, e.g. {example}")
    return [Case(id=key, image=image_of[key], label=label_of.get(key)) for key in sorted(image_of)]


def _volumes(name: str, folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"{name} must be a folder; {folder} is not one")
    found: dict[str, Path] = {}
    for path in _images(folder):
        if case_id(path) in found:
            raise ValueError(f"{name} must hold one file per case; {path.name} and {found[case_id(path)].name} are two")
        found[case_id(path)] = path
    if not found:
        raise FileNotFoundError(
            f"{name} must hold files ending in {' or '.join(SUFFIXES)}, or pictures; {folder} has none"
        )
    return found


def _images(folder: Path) -> list[Path]:
    """The NIfTI files of a folder; where there is none, its pictures."""
    visible = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    volumes = [path for path in visible if path.name.endswith(SUFFIXES)]
    return volumes or [path for path in visible if pictures.is_picture(path) and not path.stem.endswith(NO_IMAGES)]
