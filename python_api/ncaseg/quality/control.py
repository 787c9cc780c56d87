"""Quality control of a model: flags on a folder, the threshold from calibration cases, and how many failures it finds.

All files lie beside the table ``NAME.csv``: ``NAME.json`` with conditions, threshold and results; tables and scatter
plots of calibration and evaluation. Rerun an interrupted command to resume it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from ncaseg.batch import BatchError
from ncaseg.data.index import Case
from ncaseg.files import check_target, read_json, remove_stale, write_text
from ncaseg.provenance import describe
from ncaseg.quality.artifacts import CLEAN, KINDS
from ncaseg.quality.table import METRICS, Ensemble, Row, flag_of, measure, write_table
from ncaseg.quality.threshold import RATES, TARGET_DICE, calibrate, detect, is_flagged
from ncaseg.report.charts import draw_scatter
from ncaseg.report.markdown import percent

CALIBRATION_KINDS = (CLEAN, "spike")  # spikes widen the range of NQM, as in the paper
EVALUATION_KINDS = (CLEAN, *KINDS)


class Result(NamedTuple):
    """The rows of the inspected cases, the threshold or None, and the content of ``NAME.json``."""

    rows: list[Row]
    threshold: float | None
    report: dict[str, Any]
    failed: Mapping[str, str] = MappingProxyType({})  # the errors of inspected cases

    @property
    def flagged(self) -> list[Row]:
        return [] if self.threshold is None else [row for row in self.rows if is_flagged(row.nqm, self.threshold)]


def run_qc(
    ensemble: Ensemble,
    out: str | Path,
    *,
    cases: Sequence[Case] = (),
    calibration_cases: Sequence[Case] = (),
    evaluation_cases: Sequence[Case] = (),
    threshold: float | None = None,
    stored: Mapping[str, Any] | None = None,
    metric: str = "hard_dice",
    target: float = TARGET_DICE,
    inverse: bool = False,
    maps: str | Path | None = None,
    png: bool = False,
) -> Result:
    """Measure what is asked for and write the tables.

    Args:
        ensemble: model, seed and size of the ensemble.
        out: ``NAME.csv``, the table of ``cases``.
        cases: volumes to inspect.
        calibration_cases: labelled training volumes, on which the threshold is fitted, clean and with a spike each.
        evaluation_cases: labelled volumes on which found failures are counted, clean and with each artefact.
        threshold: flag NQMs above it. None takes that of the calibration (this one or the last), else ``stored``.
        stored: what an earlier run kept in the checkpoint, see ``to_store``.
        metric: "hard_dice" of the thresholded prediction, or the "soft_dice" that the published code reports.
        target: the Dice below which a segmentation has failed.
        inverse: regress NQM on Dice.
        maps, png: variance maps and pictures of ``cases``, see ``ncaseg.quality.table.measure``.

    Raises:
        NoThreshold: the calibration has none.
        ValueError: ``out`` is not a CSV, or holds results of other conditions; failures are to be counted without a
            threshold.
        BatchError: volumes to calibrate or to evaluate on cannot be read or do not fit; the others are in the tables.
            Those of ``cases`` are in the result.
    """
    files = _Files(out)
    for path in (files.csv, files.json):
        check_target(path)
    remove_stale(files.csv.parent)
    report = _claim(files.json, ensemble.conditions())
    report |= {"made": describe()}
    if calibration_cases:
        rows = measure(ensemble, calibration_cases, CALIBRATION_KINDS, files.table("calibration"))
        fit = calibrate([r.nqm for r in rows], _dices(rows, metric), target=target, inverse=inverse)
        report["calibration"] = {"metric": metric, **dataclasses.asdict(fit)}
        line = (fit.intercept, fit.slope)
        _draw(files.picture("calibration"), rows, metric, fit.threshold, target, line, "calibration")
    limit, source = _choose_threshold(threshold, report, stored, ensemble)
    report |= {"threshold": limit, "threshold_from": source}
    if evaluation_cases:
        if limit is None:
            raise ValueError("counting found failures needs a threshold: give --threshold, or --calibrate a dataset")
        rows = measure(ensemble, evaluation_cases, EVALUATION_KINDS, files.table("detection"))
        write_table(files.table("detection"), rows, limit)
        report["detection"] = detection_of(rows, metric, limit, target)
        _draw(files.picture("detection"), rows, metric, limit, target, None, "evaluation")
    failed: Mapping[str, str] = {}
    try:
        inspected = measure(ensemble, cases, (CLEAN,), files.csv, maps=maps, png=png)
    except BatchError as error:
        inspected, failed = error.done, error.failed
    if cases:
        write_table(files.csv, inspected, limit)
    write_text(files.json, json.dumps(report, indent=1, allow_nan=False) + "\n")
    return Result(inspected, limit, report, failed)


def detection_of(rows: Sequence[Row], metric: str, threshold: float, target: float = TARGET_DICE) -> dict[str, Any]:
    """Counts and rates of found failures, per artefact and over all rows, with the definitions beside them."""
    groups = {**_by_artifact(rows), "all": list(rows)}
    counts = {
        name: detect([r.nqm for r in group], _dices(group, metric), threshold, target=target).to_dict()
        for name, group in groups.items()
    }
    failure, flag = f"{metric} < {target}", f"NQM > {threshold:.6g}"
    return {"metric": metric, "failure": failure, "flag": flag, "definitions": dict(RATES), "counts": counts}


def to_store(report: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint keeps of a calibration, so that later runs need no threshold."""
    conditions = {name: report["conditions"][name] for name in ("samples", "rule")}
    return {"threshold": report["threshold"], **conditions, "calibration": report["calibration"]}


def format_result(result: Result) -> str:
    """Everything for the eye: the line of the calibration, the table of found failures, and one line per case."""
    report, threshold = result.report, result.threshold
    parts = []
    if "calibration" in report:
        parts.append(format_calibration(report["calibration"]))
    if "detection" in report:
        parts.append(format_detection(report["detection"]))
    if result.rows:
        width = max(len("case"), *(len(row.id) for row in result.rows))
        lines = [f"{r.id:<{width}}  {r.nqm:>8.4f}  {flag_of(r, threshold) or '-'}" for r in result.rows]
        parts.append("\n".join([f"{'case':<{width}}  {'NQM':>8}  flagged", *lines]))
        if threshold is not None:
            parts.append(f"{len(result.flagged)} of {len(result.rows)} cases flagged: NQM > {threshold:.6g}")
    return "\n\n".join(parts)


def format_calibration(calibration: Mapping[str, Any]) -> str:
    """The fitted line and its threshold as one line of text."""
    return (
        f"{calibration['metric']} = {calibration['intercept']:.4f} {calibration['slope']:+.4f} NQM over "
        f"{calibration['points']} volumes (correlation {calibration['correlation']:.3f}): "
        f"{calibration['target']} is met at NQM {calibration['threshold']:.4f}"
    )


def format_detection(detection: Mapping[str, Any]) -> str:
    """The result of ``detection_of`` as text."""
    names = ("cases", "TP", "FP", "FN", "TN")
    lines = [f"{'volumes':<10}" + "".join(f"{name:>6}" for name in names) + "".join(f"  {rate}" for rate in RATES)]
    for kind, counts in detection["counts"].items():
        numbers = "".join(f"{counts[name]:>6}" for name in names)
        lines.append(f"{kind:<10}{numbers}" + "".join(f"  {percent(counts[rate]):>{len(rate)}}" for rate in RATES))
    lines.append(f"positive: flagged, {detection['flag']}; true: failed, {detection['failure']}")
    return "\n".join(lines + [f"{name} = {text}" for name, text in detection["definitions"].items()])


class _Files:
    """Where everything beside ``NAME.csv`` lies."""

    def __init__(self, out: str | Path) -> None:
        self.csv = Path(out)
        if self.csv.suffix != ".csv":
            raise ValueError(f"out must be a file ending in .csv; got {out}")
        self.json = self.csv.with_suffix(".json")

    def table(self, name: str) -> Path:
        return self.csv.with_suffix(f".{name}.csv")

    def picture(self, name: str) -> Path:
        return self.csv.with_suffix(f".{name}.png")


def _claim(path: Path, conditions: Mapping[str, Any]) -> dict[str, Any]:
    """The report so far; results of other conditions are not mixed with these."""
    if path.exists():
        try:
            report = read_json(path, "a report of this command")
            before = dict(report["conditions"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} must be a report of this command; it is not: {error}") from error
        changes = [
            f"{key}: {before.get(key)!r} -> {conditions.get(key)!r}"
            for key in {**before, **conditions}
            if before.get(key) != conditions.get(key)
        ]
        if changes:
            raise ValueError(f"{path} holds results of other conditions; choose another file. {'; '.join(changes)}")
        return report
    report = {"conditions": dict(conditions)}
    write_text(path, json.dumps(report, indent=1) + "\n")
    return report


def _choose_threshold(
    given: float | None, report: Mapping[str, Any], stored: Mapping[str, Any] | None, ensemble: Ensemble
) -> tuple[float | None, str | None]:
    """The threshold and where it is from."""
    if given is not None:
        return given, "argument"
    if "calibration" in report:
        return report["calibration"]["threshold"], "calibration"
    if stored is None:
        return None, None
    # The deviation over N members depends on N: thresholds hold for one size of the ensemble.
    kept, now = ((source["samples"], source["rule"]) for source in (stored, ensemble.conditions()))
    if kept != now:
        raise ValueError(
            f"the checkpoint's threshold is for samples and rule {kept}; got {now}. Use these, or give --threshold"
        )
    return stored["threshold"], "checkpoint"


def _draw(
    path: Path,
    rows: Sequence[Row],
    metric: str,
    threshold: float,
    target: float,
    line: tuple[float, float] | None,
    title: str,
) -> None:
    groups = {}
    for kind, group in _by_artifact(rows).items():
        scored = [(row.nqm, dice) for row, dice in zip(group, _dices(group, metric), strict=True) if dice is not None]
        groups[kind] = ([x for x, _ in scored], [y for _, y in scored])
    draw_scatter(
        path,
        groups,
        title=f"{title}: {metric} < {target}, NQM > {threshold:.4g}",
        x_label="NQM",
        y_label="Dice",
        line=line,
        x_mark=threshold,
        y_mark=target,
    )


def _by_artifact(rows: Sequence[Row]) -> dict[str, list[Row]]:
    kinds = dict.fromkeys(row.artifact for row in rows)
    return {kind: [row for row in rows if row.artifact == kind] for kind in kinds}


def _dices(rows: Sequence[Row], metric: str) -> list[float | None]:
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {', '.join(METRICS)}; got {metric!r}")
    return [getattr(row, metric) for row in rows]
