"""The result of an evaluation as a table for the eye, as JSON and as CSV."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ncaseg.evaluation.result import METRICS
from ncaseg.files import replacing, write_text


def format_table(scores: Mapping[str, Any]) -> str:
    """The result as text: one line per case, per-class means, mean and standard deviation."""
    width = max(len("mean"), *(len(row["id"]) for row in scores["cases"]))
    lines = [f"{'case':<{width}}  " + "  ".join(f"{metric:>9}" for metric in METRICS)]
    named = [(row["id"], row) for row in scores["cases"]] + [(key, scores[key]) for key in ("mean", "std")]
    lines += [f"{name:<{width}}  " + "  ".join(f"{_show(row[m]):>9}" for m in METRICS) for name, row in named]
    lines.append(_describe_missed(scores["missed"]))
    for value, entry in scores["classes"].items():
        spread = scores.get("classes_std", {}).get(value, {})
        shown = [_show(number) + _show_spread(spread.get(name)) for name, number in entry.items()]
        pairs = ", ".join(" ".join(pair) for pair in zip(entry, shown, strict=True))
        lines.append(f"label {value}: {pairs}{_describe_empty(scores, value)}")
    if "protocols" in scores:
        lines.append(format_protocols(scores["protocols"]))
    if "floors" in scores:
        lines.append(format_protocols({f"baseline {name}": entry for name, entry in scores["floors"].items()}))
    if "comparison" in scores:
        lines.append(_describe_gain(scores))
    count, members = scores["num_cases"], scores["samples"]
    if text := _describe_empty(scores, "foreground"):
        lines.append(f"foreground{text}")
    lines.append(f"{count} cases, ensemble of {members}, native geometry; {scores['conditions']['empty']}")
    return "\n".join(lines)


def write_json(scores: Mapping[str, Any], path: str | Path) -> None:
    """Write the result of ``score_cases``."""
    write_text(path, json.dumps(scores, indent=1, allow_nan=False) + "\n")


def write_csv(scores: Mapping[str, Any], path: str | Path) -> None:
    """Write one row per case; per-class columns are called ``label_<value>_<metric>``."""
    rows = []
    for case in scores["cases"]:
        nested = {f"label_{v}_{name}": number for v, entry in case["classes"].items() for name, number in entry.items()}
        nested |= {
            f"{p} {key}": number for p, entry in case.get("protocols", {}).items() for key, number in entry.items()
        }
        rows.append({"id": case["id"], **{metric: case[metric] for metric in METRICS}, **nested})
    with (
        replacing(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _describe_empty(scores: Mapping[str, Any], name: str) -> str:
    """How many scores of this name say nothing about the model, since there was nothing to find."""
    empty = [row["id"] for row in scores["cases"] if name in row.get("empty", ())]
    if not empty:
        return ""
    counted = {"one": "counted as 1", "zero": "counted as 0", "skip": "left out"}
    how = counted[scores["conditions"]["empty"].rpartition(" ")[2]]
    named = f"{', '.join(empty[:5])}{', ...' if len(empty) > 5 else ''}"
    return f"; empty in prediction and label in {len(empty)} of {scores['num_cases']} cases, {how}: {named}"


def _describe_missed(missed: Mapping[str, int]) -> str:
    """Beside the mean, which a few of them can hide in."""
    count = max(missed["of"], 1)
    shown = (f"{missed[key]} ({100 * missed[key] / count:.1f} %)" for key in ("below_0.3", "zero"))
    return "missed, of {}: hard_dice below 0.3 in {}, 0 in {}".format(missed["of"], *shown)


def _describe_gain(scores: Mapping[str, Any]) -> str:
    gains = {name: gain for name, gain in scores["comparison"]["gain"].items() if gain is not None}
    points = ", ".join(f"{name} {gain['mean']:+.2f} (sd {gain['std']:.2f})" for name, gain in gains.items())
    return f"ensemble of {scores['samples']} over {scores['comparison']['samples']}, points: {points}"


def _show(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _show_spread(value: float | None) -> str:
    return "" if value is None else f" (sd {value:.4f})"


def format_protocols(scores: Mapping[str, Mapping[str, float]]) -> str:
    """One line per protocol or baseline."""
    width = max(map(len, scores))
    shown = {name: ", ".join(f"{key} {value:.4f}" for key, value in row.items()) for name, row in scores.items()}
    return "\n".join(f"{name:<{width}}  {text}" for name, text in shown.items())
