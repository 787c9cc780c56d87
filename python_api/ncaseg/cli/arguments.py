"""The arguments of each verb of ``ncaseg``; nothing but the standard library is imported, so that help is immediate."""

from __future__ import annotations

import argparse
import math
from pathlib import Path


def add_train(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("recipe", metavar="RECIPE", help="name of a built-in recipe, or a .toml file")
    verb.add_argument("overrides", nargs="*", metavar="key=value", help="change a recipe entry: train.steps=2000")
    _add_pairs(verb)
    verb.add_argument("-o", "--out", type=Path, required=True, metavar="RUN", help="folder of the run")


def add_predict(verb: argparse.ArgumentParser) -> None:
    _add_model(verb)
    verb.add_argument(
        "input", type=Path, metavar="INPUT", help="a .nii or .nii.gz file, a picture, or a folder of either"
    )
    _add_reading(verb)
    verb.add_argument(
        "-o", "--out", type=Path, required=True, metavar="OUT", help="output file; output folder for an input folder"
    )
    _add_ensemble(verb, default=None)
    _add_flips(verb)
    verb.add_argument("--png", action="store_true", help="also draw an overlay and a variance picture per case")
    verb.add_argument("--overwrite", action="store_true", help="redo cases of a folder that already have an output")
    verb.add_argument(
        "--memory", type=_bytes, metavar="SIZE", help="most memory to occupy, e.g. 2GB; what does not fit runs in tiles"
    )
    verb.add_argument(
        "--scratch", type=Path, metavar="DIR", help="folder for the files of tiles (default: the system's)"
    )
    verb.add_argument("--no-torch", action="store_true", help="use numpy and the C++ kernel alone (CPU)")


def add_evaluate(verb: argparse.ArgumentParser) -> None:
    _add_model(verb)
    _add_reading(verb)
    _add_pairs(verb)
    _add_ensemble(verb, default=10)
    _add_flips(verb)
    verb.add_argument("--json", type=Path, metavar="FILE", help="write all scores to this file")
    verb.add_argument("--csv", type=Path, metavar="FILE", help="write one row per case to this file")
    verb.add_argument("--split", type=Path, metavar="FILE", help="split.json of a run; only its --subset is scored")
    verb.add_argument(
        "--baselines", action="store_true", help="also score what needs no model: all, Otsu, a constant mask"
    )
    verb.add_argument(
        "--compare",
        type=_positive,
        metavar="N",
        help="also score an ensemble of N (1: a single member), and say what --samples gains over it",
    )
    verb.add_argument(
        "--subset",
        choices=("validation", "train"),
        default="validation",
        help="which cases of --split to score (default: %(default)s)",
    )
    verb.add_argument(
        "--empty",
        choices=("one", "zero", "skip"),
        default="one",
        help="score of a case whose prediction and label are both empty (default: %(default)s)",
    )


def add_folds(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "rule",
        choices=("strided", "runs", "origin"),
        help="every COUNT-th case; runs of neighbouring ids of each class; or the hospital (Montgomery, Shenzhen)",
    )
    verb.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder of the dataset")
    verb.add_argument("-o", "--out", type=Path, required=True, metavar="DIR", help="folder for fold_0.json, ...")
    verb.add_argument("--count", type=_positive, default=4, metavar="N", help="folds (default: %(default)s)")


def add_qc(verb: argparse.ArgumentParser) -> None:
    _add_model(verb)
    verb.add_argument(
        "input", type=Path, nargs="?", metavar="INPUT", help="a NIfTI file or a folder of them to inspect"
    )
    _add_reading(verb)
    verb.add_argument(
        "-o", "--out", type=Path, required=True, metavar="CSV", help="one row per case; a .json beside it"
    )
    _add_ensemble(verb, default=None)
    verb.add_argument(
        "--threshold", type=_finite, metavar="T", help="flag cases whose NQM is above T (default: calibrated)"
    )
    verb.add_argument("--calibrate", type=Path, metavar="DATA", help="fit T on the training cases of --split in DATA")
    verb.add_argument(
        "--evaluate", type=Path, metavar="DATA", help="count the failures that are flagged among its validation cases"
    )
    verb.add_argument("--split", type=Path, metavar="FILE", help="split.json of the run, for the two above")
    verb.add_argument(
        "--target",
        type=_finite,
        default=0.8,
        metavar="DICE",
        help="Dice below which a case is a failure (default: 0.8)",
    )
    metrics = ("hard_dice", "soft_dice")
    verb.add_argument(
        "--metric", choices=metrics, default=metrics[0], help="the Dice of the target (default: hard_dice)"
    )
    verb.add_argument("--inverse", action="store_true", help="regress NQM on Dice instead of Dice on NQM")
    verb.add_argument("--renormalise", action="store_true", help="bring images with artefacts back to [0, 1]")
    verb.add_argument(
        "--maps", type=Path, metavar="DIR", help="write variance maps (NIfTI) of the inspected cases to this folder"
    )
    verb.add_argument("--png", action="store_true", help="with --maps, also draw overlays and triptychs there")
    verb.add_argument("--store", action="store_true", help="keep the fitted threshold in the checkpoint")


def add_reproduce(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("paper", metavar="PAPER", help="m3d, medsegdiffnca, cdal, or a .toml file of that form")
    verb.add_argument("-o", "--out", type=Path, required=True, metavar="DIR", help="folder for the tables and runs/")
    verb.add_argument("--runs", type=Path, nargs="+", default=[], metavar="DIR", help="more folders of finished runs")
    verb.add_argument(
        "--train", action="store_true", help="first train the planned runs that are missing and fit a CPU (hours)"
    )
    verb.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="the dataset; its name chooses the planned runs, e.g. Task04_Hippocampus",
    )


def _add_model(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("model", metavar="MODEL", help="a .safetensors checkpoint, or the name of a zoo entry")


def _add_reading(verb: argparse.ArgumentParser) -> None:
    keys = "data.label_map, data.white, data.drop_channels or data.max_read_gb"
    verb.add_argument("overrides", nargs="*", metavar="key=value", help=f"how files are read: {keys}")


def _add_pairs(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="folder of the dataset: Decathlon, nnU-Net, ISIC, imagesTr beside labelsTr",
    )
    verb.add_argument("--images", type=Path, metavar="DIR", help="folder of images, instead of --data")
    verb.add_argument("--labels", type=Path, metavar="DIR", help="folder of labels with the images' file names")


def _add_ensemble(verb: argparse.ArgumentParser, *, default: int | None) -> None:
    shown = "ensemble size (default: " + ("the model's own)" if default is None else f"{default})")
    verb.add_argument("--samples", type=_samples, default=default, metavar="N", help=shown)
    verb.add_argument("--seed", type=_seed, metavar="S", help="random seed (default: the model's own)")
    verb.add_argument(
        "--rule",
        choices=("mean-logit", "mean-probability", "median"),
        help="how the members are combined (default: the model's own; the median holds all of them in memory)",
    )


def _add_flips(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--flips",
        metavar="AXES",
        help="axes along which members see the image mirrored in turn; xy gives 4 views (default: the model's own)",
    )


def _bytes(text: str) -> int:
    from ncaseg.budget import parse_bytes

    try:
        return parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _finite(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"must be a finite number; got {text!r}")
    return value


def _samples(text: str) -> int:
    from ncaseg.limits import MOST, check_limit

    value = _positive(text)
    try:
        check_limit("samples", value, MOST["predict.samples"])
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return value


def _seed(text: str) -> int:
    value = int(text)
    if not -(2**63) <= value < 2**63:
        raise argparse.ArgumentTypeError(f"must fit into 64 bits, signed; got {value}")
    return value


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1; got {value}")
    return value
