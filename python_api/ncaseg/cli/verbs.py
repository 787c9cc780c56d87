"""The verbs of the command line ``ncaseg``; each loads what it needs when it runs, and returns its exit code."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ncaseg.config import Config
    from ncaseg.data.index import Case
    from ncaseg.papers.paper import PlannedRun

EXIT_USAGE, EXIT_DATA, EXIT_ENVIRONMENT = 2, 3, 4
DATA_ERRORS = (ValueError, TypeError, FileNotFoundError, IsADirectoryError, NotADirectoryError, FloatingPointError)


class UsageError(Exception):
    """An argument names something that does not exist or does not fit."""


def train(args: argparse.Namespace) -> None:
    _check_pairs(args)
    from ncaseg.config import load_recipe

    with _usage_errors():
        cfg = load_recipe(args.recipe, args.overrides)
    from ncaseg.report.charts import draw_loss_curve
    from ncaseg.training.loop import train

    data = args.data if args.images is None else _list_pairs(args.images, args.labels, args.out)
    model = train(cfg, data, args.out)
    draw_loss_curve(args.out / "log.csv", args.out / "loss.png")
    print(f"wrote {model}, {args.out / 'split.json'}, {args.out / 'log.csv'}, {args.out / 'loss.png'}")
    _next(f"ncaseg evaluate {model} --data {data} --split {args.out / 'split.json'} --json {args.out / 'scores.json'}")


def folds(args: argparse.Namespace) -> None:
    from ncaseg.data.folds import find_folds, save_folds

    paths = save_folds(args.out, find_folds(args.data, args.rule, args.count))
    print(f"wrote {', '.join(map(str, paths))}")
    _next(f"mkdir -p RUN && cp {paths[0]} RUN/split.json && ncaseg train RECIPE --data {args.data} --out RUN")


def predict(args: argparse.Namespace) -> None:
    from ncaseg.batch import BatchError
    from ncaseg.inference.files import predict_path

    if args.scratch is not None and args.memory is None:
        raise UsageError("--scratch needs --memory SIZE")
    model, cfg = (_load_edge_model if _is_without_torch(args) else _load_model)(args.model, args.overrides)
    cfg = _with_flips(cfg, args.flips)
    names = ("samples", "seed", "rule", "png", "overwrite", "memory", "scratch")
    options = {name: getattr(args, name) for name in names}
    try:
        written = predict_path((model, cfg), args.input, args.out, **options)
    except BatchError as error:
        print(f"wrote {len(error.done)} segmentations to {args.out}; {len(error.failed)} failed")
        raise
    print(f"wrote {len(written)} segmentation{'s' * (len(written) != 1)} to {args.out}")
    _next(f"ncaseg evaluate {args.model} --images DIR --labels DIR --json scores.json")


def evaluate(args: argparse.Namespace) -> int | None:
    _check_pairs(args)
    from ncaseg.data.formats import format_of
    from ncaseg.evaluation.cases import evaluate, find_labelled_cases, restrict
    from ncaseg.files import check_target, remove_stale

    for option, target in (("json", args.json), ("csv", args.csv)):
        if target is not None:
            check_target(target)
            if target.suffix.lower() != f".{option}":  # a label, say, which would be replaced
                raise UsageError(f"--{option} must be a file ending in .{option}; got {target}")
            remove_stale(target.parent)
    model, cfg = _load_model(args.model, args.overrides)
    cfg = _with_flips(cfg, args.flips)
    cases = find_labelled_cases(data=args.data, images=args.images, labels=args.labels)
    known: Sequence[Case] | None = [] if args.baselines else None
    if args.split is not None:
        if args.baselines and args.subset == "validation":
            known = restrict(cases, args.split, "train")
        cases = restrict(cases, args.split, args.subset)
    scores = evaluate(
        model,
        cfg,
        cases,
        name=args.model,
        samples=args.samples,
        seed=cfg.predict.seed if args.seed is None else args.seed,
        empty=args.empty,
        rule=args.rule,
        compare=args.compare,
        known=known,
        data=(args.data or args.images).resolve().name,
        show=True,
        json_file=args.json,
        csv_file=args.csv,
    )
    worst = min(scores["cases"], key=lambda case: math.inf if case["hard_dice"] is None else case["hard_dice"])
    image = next(case.image for case in cases if case.id == worst["id"])
    suffix = format_of(image).written[0]
    _next(f"ncaseg predict {args.model} {image} -o lowest{suffix} --png   # the case with the lowest score")
    return _tell_failures(scores.get("failed", {}), len(scores["cases"]))


def _tell_failures(failed: Mapping[str, str], good: int) -> int | None:
    """Print what failed beside what was done; the exit code."""
    if not failed:
        return None
    print(f"ncaseg: error: {len(failed)} of {len(failed) + good} cases failed, the others are done:", file=sys.stderr)
    for line in failed.values():
        print(f"  {line}", file=sys.stderr)
    return EXIT_DATA


def qc(args: argparse.Namespace) -> int | None:
    _check_qc(args)
    import json

    from ncaseg.checkpoint.model import add_metadata
    from ncaseg.data.formats import format_of
    from ncaseg.evaluation.cases import find_labelled_cases, restrict
    from ncaseg.inference.files import list_inputs
    from ncaseg.quality import control
    from ncaseg.quality.table import Ensemble

    model, cfg, metadata = _load_checkpoint(args.model, args.overrides)
    samples = cfg.predict.samples if args.samples is None else args.samples
    seed = cfg.predict.seed if args.seed is None else args.seed
    rule = cfg.predict.rule if args.rule is None else args.rule
    calibration, evaluation = (
        () if data is None else restrict(find_labelled_cases(data=data), args.split, subset)
        for data, subset in ((args.calibrate, "train"), (args.evaluate, "validation"))
    )
    options = {name: getattr(args, name) for name in ("threshold", "metric", "target", "inverse", "maps", "png")}
    result = control.run_qc(
        Ensemble(model, cfg, samples, seed, rule, args.renormalise),
        args.out,
        cases=() if args.input is None else list_inputs(args.input),
        calibration_cases=calibration,
        evaluation_cases=evaluation,
        stored=json.loads(metadata["quality"]) if "quality" in metadata else None,
        **options,
    )
    if args.store:
        add_metadata(args.model, {"quality": json.dumps(control.to_store(result.report))})
    print(control.format_result(result))
    failed = _tell_failures(result.failed, len(result.rows))
    if result.threshold is None:
        _next(f"ncaseg qc {args.model} {args.input} -o {args.out} --calibrate DATA --split RUN/split.json")
    elif not result.rows:
        _next(f"ncaseg qc {args.model} DIR -o new.csv --threshold {result.threshold:.6g}")
    else:
        worst = max(result.rows, key=lambda row: row.nqm)
        suffix = format_of(worst.image).written[0]
        _next(f"ncaseg predict {args.model} {worst.image} -o doubtful{suffix} --png   # the case with the highest NQM")
    return EXIT_DATA if result.flagged else failed


def _check_qc(args: argparse.Namespace) -> None:
    if args.out.suffix != ".csv":
        raise UsageError(f"--out must be a file ending in .csv; got {args.out}")
    if args.input is None and args.calibrate is None and args.evaluate is None:
        raise UsageError("give INPUT to inspect, or --calibrate or --evaluate a dataset")
    if (args.calibrate is not None or args.evaluate is not None) and args.split is None:
        raise UsageError("--calibrate and --evaluate need --split FILE, the split.json of the model's run")
    if args.calibrate is not None and args.threshold is not None:
        raise UsageError("--calibrate finds a threshold; leave out --threshold")
    if args.store and (args.calibrate is None or not Path(args.model).is_file()):
        raise UsageError("--store needs --calibrate and a checkpoint file")
    if args.png and args.maps is None:
        raise UsageError("--png needs --maps DIR")


def reproduce(args: argparse.Namespace) -> None:
    from ncaseg.papers.paper import load_paper

    if args.train and args.data is None:
        raise UsageError("--train needs --data DIR, the dataset to train on")
    with _usage_errors():
        paper = load_paper(args.paper)
    from ncaseg.papers import reproduce

    finished = reproduce.finished_runs(paper, args.out, args.runs)
    if args.train:
        reproduce.run_missing(paper, args.data, args.out, finished)
        finished = reproduce.finished_runs(paper, args.out, args.runs)
    written = reproduce.write_tables(paper, finished, args.out, Path(args.paper).stem, args.data)
    print(f"wrote {', '.join(map(str, written))} from {len(finished)} finished runs")
    missing = [] if args.data is None else reproduce.missing_runs(paper, args.data, finished)
    if missing:
        _advise(args, missing)


def _advise(args: argparse.Namespace, missing: Sequence[PlannedRun]) -> None:
    light = [run for run in missing if run.trained]
    heavy = [run for run in missing if not run.trained]
    if light:
        print(f"not run yet: {', '.join(run.id for run in light)}")
    if heavy:
        print(f"not run yet, and left out by --train: {', '.join(run.id for run in heavy)}")
    if light:
        more = " ".join(["", "--runs", *map(str, args.runs)]) if args.runs else ""
        command = f"ncaseg reproduce {args.paper} -o {args.out} --data {args.data}{more} --train"
        _next(f"{command}   # takes hours; can be repeated")
    else:
        first = heavy[0]
        recipe = " ".join([first.recipe, *first.overrides])
        _next(f"ncaseg train {recipe} --data {args.data} --out {args.out / 'runs' / first.id}   # for a larger machine")


def demo(args: argparse.Namespace) -> None:
    from ncaseg.cli.demo import run_demo

    result = run_demo(args.out)
    _next(f"ncaseg predict {result.model} {result.image} -o seg.nii.gz --png")


def doctor(args: argparse.Namespace) -> None:
    from ncaseg.cli.doctor import print_report

    print_report()
    _next("ncaseg demo -o demo")


def _list_pairs(images: Path, labels: Path, run: Path) -> Path:
    """Write the pairs of two folders as RUN/dataset.json, so that the run names its data; return RUN."""
    from ncaseg.data.index import write_pairs

    left_out = write_pairs(images, labels, run)
    if left_out:
        print(f"note: {len(left_out)} images have no label and are left out, e.g. {left_out[0]}", file=sys.stderr)
    return run


def _check_pairs(args: argparse.Namespace) -> None:
    if (args.data is None) == (args.images is None):
        raise UsageError("give either --data DIR (with dataset.json) or --images DIR with --labels DIR")
    if args.data is not None and args.labels is not None:
        raise UsageError("--labels needs --images; --data finds its own labels")
    if args.images is not None and args.labels is None:
        raise UsageError("--images needs --labels DIR, whose files have the images' names")


def _load_model(name: str, overrides: Sequence[str]):
    return _load_checkpoint(name, overrides)[:2]


def _load_checkpoint(name: str, overrides: Sequence[str]):
    from ncaseg.checkpoint.model import load_model
    from ncaseg.config import with_reading

    with _usage_errors():
        model, cfg, metadata = load_model(name)
        return model, with_reading(cfg, overrides), metadata


def _load_edge_model(name: str, overrides: Sequence[str]):
    from ncaseg.config import with_reading
    from ncaseg.lean.model import load_edge_model

    with _usage_errors():
        model, cfg = load_edge_model(name)
        return model, with_reading(cfg, overrides)


def _with_flips(cfg: Config, flips: str | None) -> Config:
    """The recipe with the axes that were asked for; "none" for none of them."""
    if flips is None:
        return cfg
    import dataclasses

    with _usage_errors():
        predict = dataclasses.replace(cfg.predict, flips="" if flips == "none" else flips)
        return dataclasses.replace(cfg, predict=predict)


def _is_without_torch(args: argparse.Namespace) -> bool:
    """Whether to predict without torch: as asked, where there is none, and within a budget, to spare its memory."""
    import importlib.util

    if args.no_torch or args.memory is not None:
        return True
    if importlib.util.find_spec("torch") is None:
        print("torch is not installed: predicting with numpy and the C++ kernel alone")
        return True
    return False


@contextmanager
def _usage_errors() -> Iterator[None]:
    """What fails in here was named on the command line."""
    try:
        yield
    except DATA_ERRORS as error:
        raise UsageError(str(error)) from error


def _next(command: str) -> None:
    print(f"next: {command}")
