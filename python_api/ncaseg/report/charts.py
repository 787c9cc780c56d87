"""Charts of numbers, drawn with pillow alone: curves over steps, scatters with a line."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from ncaseg.report.volumes import Colour, load_font, save_png

Series = Mapping[str, tuple[Sequence[float], Sequence[float]]]  # name -> (x values, y values)
Points = dict[str, list[tuple[float, float]]]

SERIES_COLOURS = ((31, 119, 180), (214, 90, 0), (44, 140, 60), (150, 60, 160))
WIDTH, HEIGHT = 760, 440
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 40, 54  # margins around the axes
INK, GRID = (30, 30, 30), (222, 222, 222)


def draw_curve(
    path: str | Path,
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    title: str,
    x_label: str,
) -> None:
    """Write a line chart as PNG.

    Args:
        path: the PNG to write.
        series: name -> (x values, y values), at most four; values that are not finite are left out.
        title: one line above the chart.
        x_label: what the x axis counts.

    Raises:
        ValueError: no series holds a finite point.
    """
    points = _finite_points(series, path)
    save_png(_curve_chart(points, title, x_label), path)


def draw_loss_curve(log_csv: str | Path, path: str | Path) -> None:
    """Draw ``RUN/log.csv`` as PNG: the training loss over the optimiser steps, its running mean, the validation Dice.

    Raises:
        FileNotFoundError: there is no such log.
        ValueError: the log has no ``step`` and ``loss`` columns, or no row.
    """
    with open(log_csv, newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row.get("step") and row.get("loss")]
    if not rows:
        raise ValueError(f"{log_csv} must have the columns step and loss and at least one row; found none")
    steps, losses = ([float(row[name]) for row in rows] for name in ("step", "loss"))
    series = {"loss": (steps, losses)}
    window = len(losses) // 20
    if window > 1:
        smooth = np.convolve(losses, np.full(window, 1.0 / window), mode="valid").tolist()
        series[f"mean of {window} steps"] = (steps[window // 2 :][: len(smooth)], smooth)
    scored = [(float(row["step"]), float(row["val_dice"])) for row in rows if row.get("val_dice")]
    if scored:
        series["validation Dice"] = ([step for step, _ in scored], [dice for _, dice in scored])
    draw_curve(path, series, title="training", x_label="optimiser step")


def draw_scatter(
    path: str | Path,
    groups: Series,
    *,
    title: str,
    x_label: str,
    y_label: str,
    line: tuple[float, float] | None = None,
    x_mark: float | None = None,
    y_mark: float | None = None,
) -> None:
    """Write a scatter plot as PNG.

    Args:
        path: the PNG to write.
        groups: name -> (x values, y values), at most four; points that are not finite are left out.
        title, x_label, y_label: texts around the axes.
        line: (intercept, slope) of a straight line to draw.
        x_mark, y_mark: where to draw a vertical and a horizontal line.

    Raises:
        ValueError: no group holds a finite point.
    """
    points = _finite_points(groups, path)
    xs, ys = ([p[i] for values in points.values() for p in values] for i in (0, 1))
    xs += [] if x_mark is None else [x_mark]
    ys += [] if y_mark is None else [y_mark]
    chart = _axes(xs, ys, list(points), title, x_label, y_label)
    low, high = chart.x_range
    bottom, top = chart.y_range
    if x_mark is not None:
        chart.draw.line([chart.place(x_mark, bottom), chart.place(x_mark, top)], fill=INK, width=1)
    if y_mark is not None:
        chart.draw.line([chart.place(low, y_mark), chart.place(high, y_mark)], fill=INK, width=1)
    if line is not None:
        intercept, slope = line
        ends = np.clip([intercept + slope * low, intercept + slope * high], bottom, top)
        across = (low, high) if slope == 0 else [float((y - intercept) / slope) for y in ends]
        pixels = [chart.place(x, float(y)) for x, y in zip(across, ends, strict=True)]
        chart.draw.line(pixels, fill=INK, width=2)
    for colour, values in zip(SERIES_COLOURS, points.values(), strict=False):
        for x, y in values:
            _draw_dot(chart, x, y, colour)
    save_png(chart.sheet, path)


class _Chart(NamedTuple):
    """A sheet with axes, and where a point of data lies on it in pixels."""

    sheet: Image.Image
    draw: ImageDraw.ImageDraw
    place: Callable[[float, float], tuple[float, float]]
    x_range: tuple[float, float]
    y_range: tuple[float, float]


def _finite_points(series: Series, path: str | Path) -> Points:
    points = {}
    for name, (x, y) in series.items():
        finite = [point for point in zip(x, y, strict=True) if all(map(math.isfinite, point))]
        if finite:
            points[name] = finite
    if not points:
        raise ValueError(f"series must hold at least one finite point to draw {str(path)!r}; got none")
    return points


def _curve_chart(points: Points, title: str, x_label: str) -> Image.Image:
    xs, ys = ([p[i] for values in points.values() for p in values] for i in (0, 1))
    chart = _axes(xs, ys, list(points), title, x_label)
    for i, (colour, values) in enumerate(zip(SERIES_COLOURS, points.values(), strict=False)):
        chart.draw.line([chart.place(x, y) for x, y in values], fill=colour, width=1 + min(i, 1), joint="curve")
        if len(values) < 30:  # few points: show where they are
            for x, y in values:
                _draw_dot(chart, x, y, colour)
    return chart.sheet


def _axes(
    xs: Sequence[float], ys: Sequence[float], names: Sequence[str], title: str, x_label: str, y_label: str = ""
) -> _Chart:
    """An empty chart around the values, with grid, numbers, title and the names of the series in their colours."""
    sheet = Image.new("RGB", (WIDTH, HEIGHT), (255, 255, 255))
    draw, font = ImageDraw.Draw(sheet), load_font(14)
    x_ticks, y_ticks = _ticks(xs), _ticks(ys)

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
        up = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    for x in x_ticks:
        draw.line([place(x, y_ticks[0]), place(x, y_ticks[-1])], fill=GRID)
        draw.text((place(x, y_ticks[0])[0], HEIGHT - BOTTOM + 6), f"{x:g}", fill=INK, font=font, anchor="ma")
    for y in y_ticks:
        draw.line([place(x_ticks[0], y), place(x_ticks[-1], y)], fill=GRID)
        draw.text((LEFT - 8, place(x_ticks[0], y)[1]), f"{y:g}", fill=INK, font=font, anchor="rm")
    draw.text((LEFT, 12), title, fill=INK, font=load_font(16))
    draw.text(((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 24), x_label, fill=INK, font=font, anchor="ma")
    draw.text((8, TOP - 22), y_label, fill=INK, font=font)
    legend_x = WIDTH - RIGHT
    for colour, name in reversed(list(zip(SERIES_COLOURS, names, strict=False))):
        draw.text((legend_x, 14), name, fill=colour, font=font, anchor="ra")
        legend_x -= math.ceil(font.getlength(name)) + 18
    return _Chart(sheet, draw, place, (x_ticks[0], x_ticks[-1]), (y_ticks[0], y_ticks[-1]))


def _draw_dot(chart: _Chart, x: float, y: float, colour: Colour) -> None:
    across, down = chart.place(x, y)
    chart.draw.ellipse((across - 3, down - 3, across + 3, down + 3), fill=colour)


def _ticks(values: Sequence[float]) -> list[float]:
    """About six round numbers (steps of 1, 2 or 5 times a power of ten) that enclose the values."""
    low, high = min(values), max(values)
    if low == high:
        low, high = low - 0.5, high + 0.5
    raw = (high - low) / 6
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [i * step for i in range(first, last + 1)]
