"""Turn the rows of a run into the table of the project's README, between its two markers.

python benchmarks/report.py COMMIT|FILE            print
python benchmarks/report.py COMMIT|FILE --write    and put it into README.md
"""

import argparse
import math
import re
from pathlib import Path

from cases import load_cases
from record import SAVED, THROUGHPUT, find, read, values

README = Path(__file__).parents[1] / "README.md"
MARKERS = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"
HEADINGS = {"forward": "forward", "training": "forward + backward"}


def table(rows: list[dict]) -> str:
    """Write the rows of one run as Markdown: conditions, throughput with the kernel's ratios, and saved bytes."""
    cases = load_cases()
    found = values(rows)
    names, modes, providers = (list(dict.fromkeys(row[key] for row in rows)) for key in ("case", "mode", "provider"))
    others = [name for name in providers if name != "kernel"]
    has_kernel = "kernel" in providers

    ratios = [f"kernel / {name}" for name in others if has_kernel]
    head = ["case", "pass", *providers, *ratios, *["promised"] * has_kernel]
    lines = [conditions(rows[0]), "", f"Medians, {THROUGHPUT}:", "", *_head(head)]
    for name in names:
        for mode in modes:
            speed = {provider: found.get((name, mode, "throughput", provider), math.nan) for provider in providers}
            cells = [name, HEADINGS[mode], *(f"{value:.2f}" for value in speed.values())]
            if has_kernel:
                cells += [f"{speed['kernel'] / speed[other]:.1f}x" for other in others]
                marks = cases[name].mark.get(mode, {}) if name in cases else {}
                cells += [", ".join(f"{least:g}x {other}" for other, least in marks.items())]
            lines.append(_line(cells))

    lines += ["", f"Kept for the backward pass, {SAVED}:", "", *_head(["case", *providers])]
    for name in names:
        lines.append(_line([name, *(f"{found.get((name, 'training', 'saved', p), math.nan):.0f}" for p in providers)]))
    lines += ["", *(f"* {problem}" for problem in dict.fromkeys(row["problem"] for row in rows))]
    return "\n".join(lines)


def conditions(row: dict) -> str:
    """Say in one sentence where and with what a run was measured."""
    machine, versions = row["machine"], row["versions"]
    return (
        f"{machine['cpu']}, {machine['torch_threads']} threads of {machine['cpus']} logical CPUs, "
        f"kernel on {machine['kernel_isa']}, torch {versions['torch']} on {machine['torch_isa']}, "
        f"Python {versions['python']}, commit {row['commit']}{' with changes' if row['dirty'] else ''}, "
        f"{row['date'][:10]}; float32."
    )


def replace_between_markers(text: str, block: str) -> str:
    """Put `block` between the markers of `text`, whatever lies there."""
    begin, end = MARKERS
    if text.count(begin) != 1 or text.count(end) != 1:
        raise SystemExit(f"the page must hold {begin} and {end} once each")
    return re.sub(f"{begin}.*{end}", lambda _: f"{begin}\n{block}\n{end}", text, flags=re.DOTALL)


def _head(cells: list[str]) -> list[str]:
    return [_line(cells), _line(["---"] * len(cells))]


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a file of results, or a commit that has one")
    parser.add_argument("--write", action="store_true", help="put the table into README.md")
    options = parser.parse_args()
    block = table(read(find(options.run)))
    print(block)
    if options.write:
        part = README.with_suffix(".part")
        part.write_text(replace_between_markers(README.read_text(), block))
        part.rename(README)


if __name__ == "__main__":
    main()
