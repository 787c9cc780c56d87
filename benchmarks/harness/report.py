"""Turn the rows of a run into the tables of the project's README, between its two markers.

python -m benchmarks.harness.report COMMIT|FILE            print
python -m benchmarks.harness.report COMMIT|FILE --write    and put it into README.md
"""

import argparse
import re

from benchmarks.harness.cases import load_cases
from benchmarks.harness.record import ROOT, find, read
from benchmarks.harness.tables import (
    bf16_peak_table,
    bf16_table,
    peak_table,
    ratio_table,
    saved_table,
    scaling_table,
    throughput_table,
)

README = ROOT / "README.md"
MARKERS = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"


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
    problems = "\n".join(f"* {problem}" for problem in dict.fromkeys(row["problem"] for row in rows))
    return "\n\n".join([conditions(rows[0]), *(text for text in tables if text), problems])


def conditions(row: dict) -> str:
    """Say in one sentence where and with what a run was measured."""
    machine, versions = row["machine"], row["versions"]
    return (
        f"{machine['cpu']}, {machine['torch_threads']} threads of {machine['cpus']} logical CPUs, "
        f"kernel on {machine['kernel_isa']}, torch {versions['torch']} on {machine['torch_isa']}, "
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
    parser.add_argument("run", help="a file of results, or a commit that has one")
    parser.add_argument("--write", action="store_true", help="put the tables into README.md")
    options = parser.parse_args()
    block = report(read(find(options.run)))
    print(block)
    if options.write:
        part = README.with_suffix(".part")
        part.write_text(replace_between_markers(README.read_text(), block))
        part.rename(README)


if __name__ == "__main__":
    main()
