"""The command line `ncaseg`: arguments and exit codes only; each verb loads what it needs when it runs.

Exit codes: 0 done, 2 usage (arguments, recipe, model name), 3 data, 4 environment (a package, the disk, a build).
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

EXIT_USAGE, EXIT_DATA, EXIT_ENVIRONMENT, EXIT_INTERRUPTED = 2, 3, 4, 130
DATA_ERRORS = (ValueError, TypeError, FileNotFoundError, IsADirectoryError, NotADirectoryError, FloatingPointError)
ENVIRONMENT_ERRORS = (ImportError, OSError, MemoryError, RuntimeError)


class UsageError(Exception):
    """An argument names something that does not exist or does not fit."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit code; argparse itself exits with 2 on unknown arguments."""
    # OpenMP reads this when torch loads it. Threads that wait then sleep instead of spinning: that costs some 8 % on
    # idle cores; on cores that other processes use, small volumes ran 14 times faster (two cores, 16,000 cells).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    parser = build_parser()
    # key=value may follow the options, where argparse would call it unrecognized.
    args, rest = parser.parse_known_args(argv)
    overrides = [text for text in rest if hasattr(args, "overrides") and "=" in text and not text.startswith("-")]
    unknown = [text for text in rest if text not in overrides]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}; see `ncaseg {args.verb} --help`")
    if overrides:
        args.overrides = [*args.overrides, *overrides]
    try:
        args.run(args)
    except UsageError as error:
        return _fail(error, EXIT_USAGE, args.debug)
    except DATA_ERRORS as error:
        return _fail(error, EXIT_DATA, args.debug)
    except ENVIRONMENT_ERRORS as error:
        return _fail(error, EXIT_ENVIRONMENT, args.debug)
    except KeyboardInterrupt:
        print("\nncaseg: interrupted; the same command goes on where it stopped", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The whole grammar; imports nothing but the standard library, so that help is immediate."""
    parser = argparse.ArgumentParser(
        prog="ncaseg",
        allow_abbrev=False,
        description="Segmentation of medical volumes with neural cellular automata.",
        epilog="First steps: `ncaseg doctor`, then `ncaseg demo -o demo`. Research use; not a medical device.",
    )
    common = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)

    def add(name: str, run, text: str) -> argparse.ArgumentParser:
        verb = verbs.add_parser(name, help=text, description=text, parents=[common], allow_abbrev=False)
        verb.set_defaults(run=run)
        return verb

    _add_train(add("train", _train, "Train a recipe on a folder of volumes; goes on where RUN stopped."))
    _add_predict(add("predict", _predict, "Segment a NIfTI file, a picture, or a folder of either; geometry is kept."))
    _add_evaluate(add("evaluate", _evaluate, "Score a model against labels, case by case."))
    demo = add("demo", _demo, "Train on synthetic volumes, segment one and draw it: no download, a few minutes.")
    demo.add_argument("-o", "--out", type=Path, required=True, metavar="DIR", help="folder for everything it writes")
    add("doctor", _doctor, "Say what is installed, which backend will run and how fast it is.")
    return parser


def _add_train(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("recipe", metavar="RECIPE", help="name of a built-in recipe, or a .toml file")
    verb.add_argument("overrides", nargs="*", metavar="key=value", help="change a recipe entry: train.steps=2000")
    _add_pairs(verb)
    verb.add_argument("-o", "--out", type=Path, required=True, metavar="RUN", help="folder of the run")


def _add_predict(verb: argparse.ArgumentParser) -> None:
    _add_model(verb)
    verb.add_argument(
        "input", type=Path, metavar="INPUT", help="a .nii or .nii.gz file, a picture, or a folder of either"
    )
    verb.add_argument("-o", "--out", type=Path, required=True, metavar="OUT", help="file, or folder for a folder")
    _add_ensemble(verb, default=None)
    verb.add_argument("--png", action="store_true", help="also draw an overlay and a variance picture per case")
    verb.add_argument("--overwrite", action="store_true", help="redo cases of a folder that already have an output")


def _add_evaluate(verb: argparse.ArgumentParser) -> None:
    _add_model(verb)
    _add_pairs(verb)
    _add_ensemble(verb, default=10)
    verb.add_argument("--json", type=Path, metavar="FILE", help="write every number here")
    verb.add_argument("--csv", type=Path, metavar="FILE", help="write one row per case here")
    verb.add_argument("--split", type=Path, metavar="FILE", help="split.json of a run; only its --subset is scored")
    verb.add_argument(
        "--floors", action="store_true", help="also score what needs no model: all, Otsu, a constant mask"
    )
    verb.add_argument("--subset", choices=("validation", "train"), default="validation", help="default: %(default)s")
    verb.add_argument(
        "--empty",
        choices=("one", "zero", "skip"),
        default="one",
        help="score where neither prediction nor label has a cell (default: %(default)s)",
    )


def _add_model(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("model", metavar="MODEL", help="a .safetensors checkpoint, or the name of a zoo entry")


def _add_pairs(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--data", type=Path, metavar="DIR", help="folder in the layout of the Decathlon (dataset.json) or of ISIC"
    )
    verb.add_argument("--images", type=Path, metavar="DIR", help="folder of images, instead of --data")
    verb.add_argument("--labels", type=Path, metavar="DIR", help="folder of labels with the images' file names")


def _add_ensemble(verb: argparse.ArgumentParser, *, default: int | None) -> None:
    shown = "ensemble size (default: " + ("the model's own)" if default is None else f"{default})")
    verb.add_argument("--samples", type=_positive, default=default, metavar="N", help=shown)
    verb.add_argument("--seed", type=int, metavar="S", help="random seed (default: the model's own)")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1; got {value}")
    return value


def _train(args: argparse.Namespace) -> None:
    _check_pairs(args)
    from ncaseg.config import load_recipe

    with _usage_errors():
        cfg = load_recipe(args.recipe, args.overrides)
    from ncaseg.report import draw_loss_curve
    from ncaseg.train import train

    data = args.data if args.images is None else _list_pairs(args.images, args.labels, args.out)
    model = train(cfg, data, args.out)
    draw_loss_curve(args.out / "log.csv", args.out / "loss.png")
    print(f"wrote {model}, {args.out / 'split.json'}, {args.out / 'log.csv'}, {args.out / 'loss.png'}")
    _next(f"ncaseg evaluate {model} --data {data} --split {args.out / 'split.json'} --json {args.out / 'scores.json'}")


def _predict(args: argparse.Namespace) -> None:
    from ncaseg.predict import predict_path

    model, cfg = _load_model(args.model)
    options = {"samples": args.samples, "seed": args.seed, "png": args.png, "overwrite": args.overwrite}
    written = predict_path((model, cfg), args.input, args.out, **options)
    print(f"wrote {len(written)} segmentation{'s' * (len(written) != 1)} to {args.out}")
    _next(f"ncaseg evaluate {args.model} --images DIR --labels DIR --json scores.json")


def _evaluate(args: argparse.Namespace) -> None:
    _check_pairs(args)
    from ncaseg import evaluate

    model, cfg = _load_model(args.model)
    cases = evaluate.find_labelled_cases(data=args.data, images=args.images, labels=args.labels)
    known = []
    if args.split is not None:
        known = evaluate.restrict(cases, args.split, "train") if args.floors and args.subset == "validation" else []
        cases = evaluate.restrict(cases, args.split, args.subset)
    seed = cfg.predict.seed if args.seed is None else args.seed
    scores = evaluate.score_cases(model, cfg, cases, name=args.model, samples=args.samples, seed=seed, empty=args.empty)
    if args.floors:
        from ncaseg.score_samples import score_floors

        scores["floors"] = score_floors(cfg, cases, known)
    print(evaluate.format_table(scores))
    if args.json is not None:
        evaluate.write_json(scores, args.json)
    if args.csv is not None:
        evaluate.write_csv(scores, args.csv)
    worst = min(scores["cases"], key=lambda case: math.inf if case["hard_dice"] is None else case["hard_dice"])
    image = next(case.image for case in cases if case.id == worst["id"])
    suffix = ".nii.gz" if image.name.endswith((".nii", ".nii.gz")) else ".png"
    _next(f"ncaseg predict {args.model} {image} -o lowest{suffix} --png   # the case with the lowest score")


def _demo(args: argparse.Namespace) -> None:
    from ncaseg.demo import run_demo

    result = run_demo(args.out)
    _next(f"ncaseg predict {result.model} {result.image} -o seg.nii.gz --png")


def _doctor(args: argparse.Namespace) -> None:
    from ncaseg.doctor import print_report

    print_report()
    _next("ncaseg demo -o demo")


def _list_pairs(images: Path, labels: Path, run: Path) -> Path:
    """Writes the pairs of two folders as RUN/dataset.json, so that the run names its data; returns RUN."""
    import json

    from ncaseg.data.index import find_cases
    from ncaseg.files import write_text

    cases = find_cases(images=images, labels=labels)
    pairs = [{"image": str(c.image.resolve()), "label": str(c.label.resolve())} for c in cases if c.label is not None]
    write_text(run / "dataset.json", json.dumps({"training": pairs}, indent=1) + "\n")
    return run


def _check_pairs(args: argparse.Namespace) -> None:
    if (args.data is None) == (args.images is None):
        raise UsageError("give either --data DIR (with dataset.json) or --images DIR with --labels DIR")
    if args.data is not None and args.labels is not None:
        raise UsageError("--labels goes with --images; --data finds its own labels")
    if args.images is not None and args.labels is None:
        raise UsageError("--images needs --labels DIR, whose files have the images' names")


def _load_model(name: str):
    from ncaseg.checkpoint import load_model

    with _usage_errors():
        model, cfg, _ = load_model(name)
    return model, cfg


@contextmanager
def _usage_errors() -> Iterator[None]:
    """What fails in here was named on the command line."""
    try:
        yield
    except DATA_ERRORS as error:
        raise UsageError(str(error)) from error


def _fail(error: BaseException, code: int, debug: bool) -> int:
    if debug:
        import traceback

        traceback.print_exception(error)
    message = " ".join(str(error).split()) or type(error).__name__
    print(f"ncaseg: error: {message}", file=sys.stderr)
    return code


def _next(command: str) -> None:
    print(f"next: {command}")
