"""How far the tests' results lie from float64, over how far plain PyTorch's do: the worst case of every output.

    NCAKERN_MARGINS=margins.jsonl pytest -m gpu tests/kern/test_triton_gpu.py
    python -m benchmarks.gpu.margins margins.jsonl [--page FILE]

The tests allow 4. Where plain PyTorch is exact by luck, errors are counted in roundings of the largest element instead.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path

from benchmarks.harness import record

ROUNDING = 2.0**-23  # float32


def ratio(row: dict) -> float:
    """The error over plain PyTorch's, which counts as a quarter of two roundings at least: the bound of the tests."""
    least = max(row["plain"], 2 * ROUNDING * row["largest"] / 4)
    return row["error"] / least if least else 0.0


def table(rows: Iterable[dict]) -> str:
    """A line per output: how often it was compared, its worst ratio, and where."""
    found: dict[str, list[dict]] = {}
    for row in rows:
        found.setdefault(row["name"], []).append(row)
    lines = ["| output | compared | worst error / plain | its error | in |", "| --- | --- | --- | --- | --- |"]
    for name, compared in sorted(found.items(), key=lambda pair: -max(map(ratio, pair[1]))):
        worst = max(compared, key=ratio)
        where = worst["test"].replace("|", "/")
        lines.append(f"| {name} | {len(compared)} | {ratio(worst):.2f} | {worst['error']:.1e} | {where} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path, help="what tests wrote with NCAKERN_MARGINS")
    parser.add_argument("--page", type=Path, help="also write the table here")
    options = parser.parse_args()
    text = table(record.read(options.rows) if options.rows.exists() else [])
    if options.page:
        record.write_file(options.page, text + "\n")
    print(text)


if __name__ == "__main__":
    main()
