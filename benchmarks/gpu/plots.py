"""Draw a run on an accelerator: throughput and peak memory over the size of the grid, one line per provider.

    python -m benchmarks.gpu.plots ROWS.jsonl [-o FOLDER]

Into FOLDER (default: ROWS without its suffix): tables.md; series.csv, the numbers of the plots; and, where matplotlib
is there, <metric>-<mode>.png, with a panel per problem and logarithmic axes.
"""

import argparse
import csv
import io
import math
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from benchmarks.gpu.report import conditions, tables
from benchmarks.harness import record

AXES = {"throughput": "million cell-steps/s", "peak": "peak memory, MiB"}
COLUMNS = ("metric", "mode", "problem", "provider", "cells", "steps", "value")


class Point(NamedTuple):
    """One figure: of a problem, such as "A-nonorm", on a grid of so many cells."""

    metric: str
    mode: str
    problem: str
    provider: str
    cells: int
    steps: int
    value: float


def points(rows: Iterable[dict]) -> list[Point]:
    """What there is to draw, by the size of the grid. A row's case is named as in `load_gpu_cases`: A-40x40x40-n64."""
    found = []
    for row in rows:
        if row["metric"] in AXES:
            problem, size, steps = row["case"].rsplit("-", 2)
            cells = math.prod(map(int, size.split("x")))
            key = (row["metric"], row["mode"], problem, row["provider"])
            found.append(Point(*key, cells, int(steps.removeprefix("n")), row["value"]))
    return sorted(found)


def table(found: list[Point]) -> str:
    """The points as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(found)
    return text.getvalue()


def draw(found: list[Point], metric: str, mode: str, *, title: str, path: Path) -> None:
    """Write one picture: a panel per problem, a line per provider. Needs matplotlib."""
    from matplotlib.figure import Figure

    chosen = [point for point in found if (point.metric, point.mode) == (metric, mode)]
    problems = list(dict.fromkeys(point.problem for point in chosen))
    figure = Figure(figsize=(1 + 3.5 * len(problems), 4.5), layout="constrained")
    panels = figure.subplots(1, len(problems), squeeze=False, sharey=True)[0]
    colours = {name: f"C{i}" for i, name in enumerate(sorted({point.provider for point in chosen}))}
    for panel, problem in zip(panels, problems, strict=True):
        for provider, colour in colours.items():
            line = [point for point in chosen if (point.problem, point.provider) == (problem, provider)]
            xs, ys = [point.cells for point in line], [point.value for point in line]
            panel.plot(xs, ys, "o-", color=colour, label=provider)
        panel.set(title=problem, xlabel="cells", xscale="log", yscale="log")
        panel.grid(True, which="both", alpha=0.3)
    panels[0].set_ylabel(AXES[metric])
    panels[-1].legend(fontsize="small")
    figure.suptitle(f"{mode}: {title}", fontsize="small", wrap=True)
    part = path.with_suffix(".part")
    figure.savefig(part, format="png", dpi=120)
    part.rename(path)


def write(rows: list[dict], folder: Path) -> list[Path]:
    """Write tables, numbers and, with matplotlib, pictures; returns what was written."""
    found = points(rows)
    record.write_file(folder / "tables.md", tables(rows) + "\n")
    record.write_file(folder / "series.csv", table(found))
    written = [folder / "tables.md", folder / "series.csv"]
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        print("matplotlib is not installed: no pictures, the numbers are in series.csv")
        return written
    for metric, mode in sorted({(point.metric, point.mode) for point in found}):
        written.append(folder / f"{metric}-{mode}.png")
        draw(found, metric, mode, title=conditions(rows[0]), path=written[-1])
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path, help="a file that benchmarks.gpu.run wrote")
    parser.add_argument("-o", "--out", type=Path, help="folder to write to")
    options = parser.parse_args()
    rows = record.read(options.rows)
    if not rows:
        raise SystemExit(f"{options.rows} holds no rows: benchmarks.gpu.run writes them, one per figure")
    for path in write(rows, options.out or options.rows.with_suffix("")):
        print(path)


if __name__ == "__main__":
    main()
