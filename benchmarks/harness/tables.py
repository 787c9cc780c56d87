"""The tables of a run as Markdown; a table without rows is left out."""

import re

from benchmarks.harness.cases import Case
from benchmarks.harness.record import SAVED, THROUGHPUT, values

HEADINGS = {"forward": "forward", "training": "forward + backward"}
MISSING = "-"

Values = dict[tuple[str, str, str, str], float]


def throughput_table(rows: list[dict]) -> str:
    providers = float32_providers(rows, "throughput")
    return metric_table(rows, "throughput", providers, f"Medians, {THROUGHPUT}:", "{:.2f}")


def ratio_table(rows: list[dict], cases: dict[str, Case]) -> str:
    """Tabulate the kernel over every other provider, and what the project promises."""
    others = [name for name in float32_providers(rows, "throughput") if name != "kernel"]
    found, lines = values(rows), []
    for case, mode in keys(rows, "throughput", ["kernel"]):
        own = found[case, mode, "throughput", "kernel"]
        marks = cases[case].mark.get(mode, {}) if case in cases else {}
        promised = ", ".join(f"{least:g}x {other}" for other, least in marks.items())
        cells = [ratio(own, found.get((case, mode, "throughput", other))) for other in others]
        lines.append([case, HEADINGS[mode], *cells, promised])
    head = ["case", "pass", *(f"kernel / {name}" for name in others), "promised"]
    return table("Times as fast:", head, lines if others else [])


def side_by_side_table(runs: dict[str, list[dict]]) -> str:
    """Tabulate several runs, by names that the columns bear: the kernel's speed, and how many times that of others."""
    lines, head = [], ["case", "pass"]
    others: dict[str, list[str]] = {}
    for name, rows in runs.items():
        others[name] = [other for other in float32_providers(rows, "throughput") if other != "kernel"]
        head += [f"{name}: kernel", *(f"/ {other}" for other in others[name])]
    found = {name: values(rows) for name, rows in runs.items()}
    for case, mode in dict.fromkeys(key for rows in runs.values() for key in keys(rows, "throughput", ["kernel"])):
        cells = [case, HEADINGS[mode]]
        for name in runs:
            speed = {other: found[name].get((case, mode, "throughput", other)) for other in ("kernel", *others[name])}
            cells += [number(speed["kernel"]), *(ratio(speed["kernel"], speed[other]) for other in others[name])]
        lines.append(cells)
    return table(f"The kernel, {THROUGHPUT} (medians), and how many times as fast as others it is:", head, lines)


def bf16_table(rows: list[dict]) -> str:
    """Tabulate the providers with a bfloat16 state, and the kernel on it over both torch.compile and float32."""
    found, lines = values(rows), []
    for case, mode in keys(rows, "throughput", ["compile-bf16", "kernel-bf16"]):
        compiled, own, wide = (
            found.get((case, mode, "throughput", name)) for name in ("compile-bf16", "kernel-bf16", "kernel")
        )
        lines.append([case, HEADINGS[mode], number(compiled), number(own), ratio(own, compiled), ratio(own, wide)])
    head = ["case", "pass", "compile-bf16", "kernel-bf16", "kernel / compile", "bf16 / float32 kernel"]
    return table(f"With a bfloat16 state, {THROUGHPUT}:", head, lines)


def saved_table(rows: list[dict]) -> str:
    providers = float32_providers(rows, "saved")
    return metric_table(rows, "saved", providers, f"Kept for the backward pass, {SAVED}:", "{:.0f}")


def peak_table(rows: list[dict]) -> str:
    providers = float32_providers(rows, "peak")
    return metric_table(rows, "peak", providers, "Peak memory of a call beyond state and parameters, MiB:", "{:.0f}")


def bf16_peak_table(rows: list[dict]) -> str:
    providers = ["compile-bf16", "kernel-bf16"]
    return metric_table(rows, "peak", providers, "Peak memory with a bfloat16 state, MiB:", "{:.0f}")


def scaling_table(rows: list[dict]) -> str:
    """Tabulate the kernel over thread counts, with the last over the first, and its share of the FMA peak."""
    counts = sorted(
        {int(found[1]) for row in rows if (found := re.fullmatch(r"throughput-(\d+)threads", row["metric"]))}
    )
    found, lines = values(rows), []
    has_share = any(row["metric"] == "fma-share" for row in rows)
    metrics = [f"throughput-{count}threads" for count in counts]
    for case, mode in dict.fromkeys([*keys(rows, "fma-share"), *(k for m in metrics for k in keys(rows, m))]):
        speeds = [found.get((case, mode, metric, "kernel")) for metric in metrics]
        share = found.get((case, mode, "fma-share", "kernel"))
        gain = [ratio(speeds[-1], speeds[0])] if len(counts) > 1 else []
        percent = [MISSING if share is None else f"{share:.0%}"] if has_share else []
        lines.append([case, HEADINGS[mode], *map(number, speeds), *gain, *percent])
    threads = [f"{count} thread{'s' * (count > 1)}" for count in counts]
    gain = [f"{counts[-1]} / {counts[0]}"] if len(counts) > 1 else []
    head = ["case", "pass", *threads, *gain, *(["share of FMA peak"] if has_share else [])]
    shown = [f"the kernel by number of threads, {THROUGHPUT}"] if counts else []
    shown += ["what the kernel executes of the CPU's FMA peak"] if has_share else []
    title = "; ".join(shown)
    return table(f"{title[:1].upper()}{title[1:]}:", head, lines)


def metric_table(rows: list[dict], metric: str, providers: list[str], title: str, form: str) -> str:
    found = values(rows)
    lines = [
        [case, HEADINGS[mode], *(number(found.get((case, mode, metric, name)), form) for name in providers)]
        for case, mode in keys(rows, metric, providers)
    ]
    return table(title, ["case", "pass", *providers], lines)


def keys(rows: list[dict], metric: str, providers: list[str] | None = None) -> list[tuple[str, str]]:
    """List (case, mode) of the rows with this metric and one of these providers, cases together."""
    chosen = [row for row in rows if row["metric"] == metric and (providers is None or row["provider"] in providers)]
    cases, modes = (list(dict.fromkeys(row[key] for row in chosen)) for key in ("case", "mode"))
    present = {(row["case"], row["mode"]) for row in chosen}
    return [(case, mode) for case in cases for mode in modes if (case, mode) in present]


def float32_providers(rows: list[dict], metric: str) -> list[str]:
    names = dict.fromkeys(row["provider"] for row in rows if row["metric"] == metric)
    return [name for name in names if not name.endswith("-bf16")]


def number(value: float | None, form: str = "{:.2f}") -> str:
    return MISSING if value is None else form.format(value)


def ratio(value: float | None, other: float | None) -> str:
    return MISSING if value is None or other is None else f"{value / other:.1f}x"


def table(title: str, head: list[str], lines: list[list[str]]) -> str:
    """Write a title and a table, or nothing without lines."""
    if not lines:
        return ""
    return "\n".join([title, "", *(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *lines))])
