"""Compare two runs, row by row.

    python -m benchmarks.harness.compare BEFORE AFTER      each a file of results, or a commit that has one

Runs from different machines, thread counts or versions are not compared: exit code 1 says which field differs.
"""

import argparse

from benchmarks.harness.record import find, read, values


def check_comparable(before: dict, after: dict) -> None:
    """Refuse two runs whose figures mean different things."""
    for group, ignored in (("machine", {"kernel_isa", "limits"}), ("versions", {"ncakern"})):
        for name in (before[group].keys() | after[group].keys()) - ignored:
            old, new = before[group].get(name), after[group].get(name)
            if old != new:
                raise SystemExit(f"not comparable: {name} was {old!r} and is {new!r}")


def compare(before: list[dict], after: list[dict]) -> str:
    """Tabulate after / before of every row that both have: more throughput is better, less memory is."""
    old, new = values(before), values(after)
    lines = [f"{'case':14} {'mode':9} {'metric':20} {'provider':12} {'before':>9} {'after':>9} {'ratio':>7}"]
    for key in (key for key in new if key in old):
        case, mode, metric, provider = key
        ratio = new[key] / old[key]
        lines.append(f"{case:14} {mode:9} {metric:20} {provider:12} {old[key]:9.2f} {new[key]:9.2f} {ratio:6.2f}x")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before")
    parser.add_argument("after")
    options = parser.parse_args()
    before, after = read(find(options.before)), read(find(options.after))
    check_comparable(before[0], after[0])
    print(compare(before, after))


if __name__ == "__main__":
    main()
