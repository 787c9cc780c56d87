"""A recipe from end to end on phantoms of its size, each stage a process of its own: seconds, peak memory, Dice.

    python -m benchmarks.segmentation.phantom_run run m3d-prostate RUN train.steps=60 train.epochs=0
    python -m benchmarks.segmentation.phantom_run table    # the records as PHANTOM.md; with names, these alone

Phantoms are ellipsoids in a bias field with noise, easier than any organ: this shows that a recipe works at its size
and what it takes, not how well it segments patients. Peaks are those of whole processes: Python, libraries and the
loaded volumes included. A folder with a run in it is refused, since what its training took is not known any more.
"""

import argparse
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.harness import record
from ncaseg import config
from ncaseg.data.phantom import write_phantoms
from ncaseg.data.split import load_split
from ncaseg.report.markdown import table

RECORDS = record.RESULTS / "phantom_run"
PAGE = Path(__file__).with_name("PHANTOM.md")
# The process tells its own peak: the one that the system tells its parent starts from the parent's memory.
CHILD = """
import sys
from ncaseg.budget import peak_bytes
from ncaseg.cli import main
code = main(sys.argv[1:])
print(peak_bytes())
sys.exit(code)
"""


class Cost(NamedTuple):
    """What a process took: wall clock, and the most memory that it occupied."""

    seconds: float
    peak_bytes: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run")
    running.add_argument("recipe")
    running.add_argument("folder", type=Path, help="phantoms and run are kept here")
    running.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    running.add_argument("--count", type=int, default=8, help="phantoms (default: %(default)s)")
    running.add_argument("--samples", type=int, default=4, help="members of the ensemble (default: %(default)s)")
    running.add_argument("--memory", default="400MB", help="budget of the last prediction (default: %(default)s)")
    commands.add_parser("table").add_argument("records", nargs="*")
    options = parser.parse_args()
    if options.command == "run":
        shared = record.describe_run()
        rows = run(options.recipe, options.folder, options.overrides, options.count, options.samples, options.memory)
        print(record.write(rows, shared, RECORDS))
    else:
        record.write_file(PAGE, render(record.read_all(RECORDS, options.records)))


def run(recipe: str, folder: Path, overrides: Sequence[str], count: int, samples: int, memory: str) -> list[dict]:
    """Train, score and segment; one row per stage."""
    if (folder / "run").exists():
        raise FileExistsError(f"{folder} must not hold a run yet; delete {folder / 'run'} or choose another folder")
    size = config.load_recipe(recipe, overrides).data.size
    data, out = write_phantoms(folder / "phantoms", count, seed=0, size=size), folder / "run"
    model = out / "model.safetensors"
    scored = ["--split", out / "split.json", "--samples", samples, "--compare", 1, "--json", out / "scores.json"]
    costs = {
        "training": measure(["train", recipe, *overrides, "--data", data, "--out", out]),
        f"evaluation, {samples} + 1 runs": measure(["evaluate", model, "--data", data, *scored]),
    }
    case = load_split(out / "split.json").validation[0]
    image, common = data / "imagesTr" / f"{case}.nii.gz", ["-o", out / "prediction.nii.gz", "--samples", 1]
    for name, more in {"torch": [], "no torch": ["--no-torch"], memory: ["--memory", memory]}.items():
        costs[f"prediction, one run, {name}"] = measure(["predict", model, image, *common, *more])
    scores = json.loads((out / "scores.json").read_text(encoding="utf-8"))
    shared = {
        "recipe": recipe,
        "overrides": list(overrides),
        "size": list(size),
        "phantoms": count,
        "parameters": scores["parameters"],
        "hard_dice": scores["mean"]["hard_dice"],
        "soft_dice": scores["mean"]["soft_dice"],
        "cases": scores["num_cases"],
    }
    return [shared | {"stage": name} | cost._asdict() for name, cost in costs.items()]


def measure(arguments: Sequence[object]) -> Cost:
    """Run `ncaseg` with these arguments.

    Raises:
        subprocess.CalledProcessError: it failed; what it said is on the terminal.
    """
    command = [sys.executable, "-c", CHILD, *map(str, arguments)]
    print(shlex.join(["ncaseg", *command[3:]]), flush=True)
    began = time.monotonic()
    child = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    seconds = time.monotonic() - began
    *said, peak = child.stdout.splitlines()
    print("\n".join(said), flush=True)
    return Cost(seconds, int(peak))


def render(rows: Iterable[dict]) -> str:
    """The records as a page, a section per run."""
    found = list(rows)
    parts = ["# Recipes from end to end on phantoms\n", __doc__.split("\n\n")[2]]
    for date in dict.fromkeys(row["date"] for row in found):
        stages = [row for row in found if row["date"] == date]
        first = stages[0]
        size = "x".join(map(str, first["size"]))
        changes = " ".join(f"`{change}`" for change in first["overrides"]) or "none"
        dice = f"hard Dice {first['hard_dice']:.3f}, soft Dice {first['soft_dice']:.3f}"
        parts += [
            f"## {first['recipe']}, {first['parameters']:,} parameters, phantoms of {size} cells\n",
            f"Changes to the recipe: {changes}.\n{first['phantoms']} phantoms; on the {first['cases']} that were not "
            f"trained on: {dice}.\n{record.describe_origin(stages)}\n",
            table(["stage", "seconds", "peak"], [_show(row) for row in stages]),
        ]
    return "\n".join(parts) + "\n"


def _show(row: dict) -> list[str]:
    return [row["stage"], f"{row['seconds']:,.0f}", f"{row['peak_bytes'] / 1e9:.2f} GB"]


if __name__ == "__main__":
    main()
