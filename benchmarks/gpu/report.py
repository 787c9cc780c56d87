"""The rows of a run on an accelerator as Markdown tables: throughput, share of the roofline, peak memory."""

METRICS = {
    "throughput": ("Throughput, million cell-steps/s (medians)", "{:.0f}"),
    "roofline": (
        "Share of the roofline: the least time for this work on this card, over the time taken",
        "{:.0%}",
    ),
    "peak": ("Peak memory on top of state and parameters, MiB", "{:.0f}"),
}


def tables(rows: list[dict]) -> str:
    """One table per metric: a line per case and mode, a column per provider; in brackets a kernel's ratio to eager."""
    if not rows:
        return "no rows"
    providers = list(dict.fromkeys(row["provider"] for row in rows))
    lines = [conditions(rows[0])]
    for metric, (title, shape) in METRICS.items():
        found = {(r["case"], r["mode"], r["provider"]): r for r in rows if r["metric"] in (metric, "failed")}
        lines += ["", f"{title}:", "", _line(["case", "pass", *providers]), _line(["---"] * (2 + len(providers)))]
        for case, mode in dict.fromkeys((row["case"], row["mode"]) for row in rows):
            cells = {provider: found.get((case, mode, provider)) for provider in providers}
            shown = [_cell(row, shape) + _ratio(row, cells.get("eager")) for row in cells.values()]
            lines.append(_line([case, mode, *shown]))
    return "\n".join(lines)


def conditions(row: dict) -> str:
    """Where and with what it was measured."""
    machine, versions, ceilings = row["machine"], row["versions"], row["ceilings"]
    rates = ", ".join(f"{name} {ceilings[name] / 1e12:.0f} TFLOP/s" for name in ("fp32", "tf32", "bf16"))
    return (
        f"{machine['gpu']}, torch {versions['torch']}, Triton {versions['triton']}, CUDA {versions['cuda']}, "
        f"commit {row['commit']}{' with changes' if row['dirty'] else ''}, {row['date'][:10]}. "
        f"Measured ceilings: copy {ceilings['copy'] / 1e12:.2f} TB/s, {rates}."
    )


def _cell(row: dict | None, shape: str) -> str:
    if row is None:
        return ""
    return row["reason"] if row["metric"] == "failed" else shape.format(row["value"])


def _ratio(row: dict | None, eager: dict | None) -> str:
    """How many times eager's figure, or one over that of memory; nothing where a figure is missing or is a share."""
    if row is None or eager is None or "failed" in (row["metric"], eager["metric"]) or row["metric"] == "roofline":
        return ""
    if not row["provider"].startswith("kernel"):
        return ""
    ratio = row["value"] / eager["value"]
    return f" ({1 / ratio if row['metric'] == 'peak' else ratio:.1f}x)"


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
