"""Turn runs into tables: one table of all of them for the project's README, and a page with all tables of each.

python -m benchmarks.harness.report RUN ...            print the page; each a file of results, or a commit that has one
python -m benchmarks.harness.report RUN ... --write    and put both where they belong: README.md, rollout/FIGURES.md

Several runs are for several instruction sets: their columns stand side by side.
"""

import argparse
import os
import re
from pathlib import Path

from benchmarks.harness.cases import load_cases
from benchmarks.harness.record import ROOT, find, read, write_file
from benchmarks.harness.tables import (
    bf16_peak_table,
    bf16_table,
    peak_table,
    ratio_table,
    saved_table,
    scaling_table,
    side_by_side_table,
    throughput_table,
)

README, PAGE = ROOT / "README.md", ROOT / "benchmarks" / "rollout" / "FIGURES.md"
MARKERS = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"
NAMES = {"avx512": "AVX-512", "avx2": "AVX2", "neon": "NEON", "scalar": "baseline"}


def report(rows: list[dict]) -> str:
    """Write the rows of one run as Markdown: conditions, tables, and what the cases are."""
    tables = [
        throughput_table(rows),
        ratio_table(rows, load_cases()),
        bf16_table(rows),
        saved_table(rows),
        peak_table(rows),
        bf16_peak_table(rows),
        scaling_table(rows),
    ]
    return "\n\n".join([conditions(rows[0]), *(text for text in tables if text), problems(rows)])


def side_by_side(runs: dict[Path, list[dict]]) -> str:
    """Write the speeds of some runs as one table, with what each was measured on."""
    named = {name_of(rows): rows for rows in runs.values()}
    if len(named) < len(runs):
        raise SystemExit(
            f"runs must differ by the kernel's instruction set; got {', '.join(map(name_of, runs.values()))}"
        )
    origins = "\n".join(f"* {name}: {conditions(rows[0])}" for name, rows in named.items())
    rows = [row for each in named.values() for row in each]
    return "\n\n".join([side_by_side_table(named), origins, problems(rows)])


def page(runs: dict[Path, list[dict]]) -> str:
    """Write all tables of some runs as a page that names their files."""
    parts = [
        "# Figures of the rollout",
        "Written by `python -m benchmarks.harness.report`; `../README.md` explains them.",
    ]
    for path, rows in runs.items():
        parts.append(f"## {name_of(rows)}\n\n`{os.path.relpath(path, ROOT)}`: {report(rows)}")
    return "\n\n".join(parts) + "\n"


def name_of(rows: list[dict]) -> str:
    """The instruction set of a run's kernel."""
    isa = rows[0]["machine"]["kernel_isa"]
    return NAMES.get(isa, isa)


def problems(rows: list[dict]) -> str:
    """Say what the cases are."""
    return "\n".join(f"* {problem}" for problem in dict.fromkeys(row["problem"] for row in rows))


def conditions(row: dict) -> str:
    """Say in one sentence where and with what a run was measured."""
    machine, versions = row["machine"], row["versions"]
    limits = " ".join(f"{name}={value}" for name, value in machine.get("limits", {}).items())
    return (
        f"{machine['cpu']}, {machine['torch_threads']} threads of {machine['cpus']} logical CPUs, "
        f"kernel on {machine['kernel_isa']}, torch {versions['torch']} on {machine['torch_isa']}, "
        f"{f'limited by {limits}, ' if limits else ''}"
        f"Python {versions['python']}, commit {row['commit']}{' with changes' if row['dirty'] else ''}, "
        f"{row['date'][:10]}; float32 where nothing else is said."
    )


def replace_between_markers(text: str, block: str) -> str:
    """Put `block` between the markers of `text`, whatever lies there."""
    begin, end = MARKERS
    if text.count(begin) != 1 or text.count(end) != 1:
        raise SystemExit(f"the page must hold {begin} and {end} once each")
    return re.sub(f"{begin}.*{end}", lambda _: f"{begin}\n{block}\n{end}", text, flags=re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a file of results, or a commit that has one")
    parser.add_argument("--write", action="store_true", help="put the tables into README.md and rollout/FIGURES.md")
    options = parser.parse_args()
    runs = {path: read(path) for path in map(find, options.runs)}
    print(page(runs))
    if options.write:
        write_file(README, replace_between_markers(README.read_text(), side_by_side(runs)))
        write_file(PAGE, page(runs))


if __name__ == "__main__":
    main()
