"""The command line ``ncaseg``: its grammar and its exit codes; what a verb does is in :mod:`ncaseg.cli.verbs`.

Exit codes: 0 done, 2 usage (arguments, recipe, model name), 3 data (or ``qc`` flags a case), 4 environment (a package,
the disk, memory, a build, a folder in use), 128 and the number of a signal that ended it.
"""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from ncaseg.cli import arguments, terminal, verbs

SIGNALLED = 128  # plus the number of the signal, as shells have it: 130 for Ctrl-C
ENVIRONMENT_ERRORS = (ImportError, OSError, MemoryError, RuntimeError)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code; argparse itself exits with 2 on unknown arguments."""
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
    with terminal.lenient():
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    """Run a verb; the exit code."""
    try:
        code = args.run(args)
        if sys.stdout is not None:
            sys.stdout.flush()  # a full disk behind standard output shows here
    except verbs.UsageError as error:
        return _fail(error, verbs.EXIT_USAGE, args.debug)
    except verbs.DATA_ERRORS as error:
        return _fail(error, verbs.EXIT_DATA, args.debug)
    except ENVIRONMENT_ERRORS as error:
        return _fail(error, verbs.EXIT_ENVIRONMENT, args.debug)
    except KeyboardInterrupt as stop:
        saved = getattr(stop, "saved", "")
        print(f"\nncaseg: interrupted{saved and '; ' + saved}; rerun the same command to resume", file=sys.stderr)
        return SIGNALLED + getattr(stop, "number", signal.SIGINT)
    return 0 if code is None else code


def build_parser() -> argparse.ArgumentParser:
    """The whole grammar; imports nothing but the standard library, so that help is immediate."""
    parser = argparse.ArgumentParser(
        prog="ncaseg",
        allow_abbrev=False,
        description="Segmentation of medical images with neural cellular automata.",
        epilog="First steps: `ncaseg doctor`, then `ncaseg demo -o demo`. Research use; not a medical device.",
    )
    common = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    added = parser.add_subparsers(dest="verb", metavar="VERB", required=True)

    def add(name: str, run, text: str) -> argparse.ArgumentParser:
        verb = added.add_parser(name, help=text, description=text, parents=[common], allow_abbrev=False)
        verb.set_defaults(run=run)
        return verb

    arguments.add_train(
        add("train", verbs.train, "Train a recipe on a folder of cases; resumes RUN if it was interrupted.")
    )
    arguments.add_folds(add("folds", verbs.folds, "Write the splits of a cross-validation."))
    arguments.add_predict(
        add("predict", verbs.predict, "Segment a NIfTI file, a picture, or a folder of either; geometry is kept.")
    )
    arguments.add_evaluate(add("evaluate", verbs.evaluate, "Score a model against labels, case by case."))
    arguments.add_qc(
        add("qc", verbs.qc, "Flag doubtful segmentations by the spread of the ensemble; exit code 3 if any is flagged.")
    )
    arguments.add_reproduce(
        add(
            "reproduce",
            verbs.reproduce,
            "Write the tables of a paper: its printed numbers beside those of finished runs.",
        )
    )
    demo = add("demo", verbs.demo, "Train on synthetic volumes, segment one and draw it: no download, a few minutes.")
    demo.add_argument("-o", "--out", type=Path, required=True, metavar="DIR", help="folder for everything it writes")
    add("doctor", verbs.doctor, "Say what is installed, which backend will run and how fast it is.")
    return parser


def _fail(error: BaseException, code: int, debug: bool) -> int:
    if debug:
        import traceback

        traceback.print_exception(error)
    message = " ".join(str(error).split()) or type(error).__name__
    print(f"ncaseg: error: {message}", file=sys.stderr)
    return code
