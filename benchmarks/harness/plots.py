"""Draw a run: speed-ups of the kernel, and its throughput over threads.

python -m benchmarks.harness.plots COMMIT|FILE      NAME-speedup.svg and NAME-threads.svg beside the file of results

Needs matplotlib (`pip install 'ncakern[plot]'`).
"""

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.harness.record import find, read, values
from benchmarks.harness.tables import HEADINGS, float32_providers, keys

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BAR_WIDTH = 0.8  # of all bars of a case together
INCHES = (9.0, 3.2)


def draw(path: Path) -> list[Path]:
    """Write the figures that the rows of a run have data for; return their paths."""
    rows = read(path)
    written = []
    for name, figure in (("speedup", draw_speedup(rows)), ("threads", draw_threads(rows))):
        if figure is not None:
            target = path.with_name(f"{path.stem}-{name}.svg")
            part = target.with_suffix(".part")
            figure.savefig(part, format="svg", metadata={"Date": None})
            part.rename(target)
            written.append(target)
    return written


def draw_speedup(rows: list[dict]) -> "Figure | None":
    """Bars of kernel / provider for each case, one panel for each mode, on a logarithmic axis that starts at 1."""
    found = values(rows)
    others = [name for name in float32_providers(rows, "throughput") if name != "kernel"]
    modes = list(dict.fromkeys(mode for _, mode in keys(rows, "throughput", ["kernel"])))
    if not others or not modes:
        return None
    figure = new_figure()
    for axes, mode in zip(figure.subplots(1, len(modes), sharey=True, squeeze=False)[0], modes, strict=True):
        cases = [case for case, other_mode in keys(rows, "throughput", ["kernel"]) if other_mode == mode]
        for i, other in enumerate(others):
            speed = {case: found.get((case, mode, "throughput", other)) for case in cases}
            pairs = [(x, found[c, mode, "throughput", "kernel"] / speed[c]) for x, c in enumerate(cases) if speed[c]]
            width = BAR_WIDTH / len(others)
            places = [x + (i - (len(others) - 1) / 2) * width for x, _ in pairs]
            bars = axes.bar(places, [ratio for _, ratio in pairs], width, label=f"over {other}")
            axes.bar_label(bars, fmt="%.1f", fontsize=7)
        axes.set_yscale("log")
        axes.set_xticks(range(len(cases)), cases, fontsize=8)
        axes.set_title(HEADINGS[mode])
    axes.margins(y=0.1)
    axes.set_ylim(bottom=1)  # last, for it fixes the top of both panels too
    figure.axes[0].set_ylabel("times as fast")
    figure.axes[0].legend(fontsize=8)
    return figure


def draw_threads(rows: list[dict]) -> "Figure | None":
    """Lines of throughput on n threads over that on the fewest, one for each case, beside the line of n."""
    found = values(rows)
    counts = sorted({int(n[1]) for row in rows if (n := re.fullmatch(r"throughput-(\d+)threads", row["metric"]))})
    if len(counts) < 2:
        return None
    metrics = [f"throughput-{count}threads" for count in counts]
    pairs = keys(rows, metrics[0], ["kernel"])
    modes = list(dict.fromkeys(mode for _, mode in pairs))
    figure = new_figure()
    for axes, mode in zip(figure.subplots(1, len(modes), sharey=True, squeeze=False)[0], modes, strict=True):
        axes.plot(counts, [count / counts[0] for count in counts], color="grey", linestyle="--", label="ideal")
        for case in (case for case, other_mode in pairs if other_mode == mode):
            speeds = [found[case, mode, metric, "kernel"] for metric in metrics]
            axes.plot(counts, [speed / speeds[0] for speed in speeds], marker="o", label=case)
        axes.set_xticks(counts)
        axes.set_xlabel("threads")
        axes.set_title(HEADINGS[mode])
    figure.axes[0].set_ylabel(f"times that of {counts[0]} thread{'s' * (counts[0] > 1)}")
    figure.axes[0].legend(fontsize=8)
    return figure


def new_figure() -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=INCHES, layout="constrained")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a file of results, or a commit that has one")
    for path in draw(find(parser.parse_args().run)):
        print(path)


if __name__ == "__main__":
    main()
