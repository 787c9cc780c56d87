"""Pictures of a run: overlays, the slice / prediction / variance triptych and loss curves, drawn with pillow alone."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ncaseg.files import replacing

Colour = tuple[int, int, int]

PANEL_PX = 360  # longest side of a panel: a 50-voxel volume is magnified about seven times
SAMPLING_PANEL_PX = 192
CAPTION_PX = 22
PREDICTION_COLOUR = (255, 140, 0)
LABEL_COLOUR = (0, 200, 255)
SERIES_COLOURS = ((31, 119, 180), (214, 90, 0), (44, 140, 60), (150, 60, 160))
AXIS_NAMES = "xyz"  # as stored: which of them is left, front or up is the affine's affair


def draw_overlay(
    path: str | Path,
    image: np.ndarray,
    prediction: np.ndarray,
    label: np.ndarray | None = None,
    *,
    spacing_mm: Sequence[float] | None = None,
) -> None:
    """Writes a PNG of the image with the outline of the prediction (orange) and, where given, of the label (cyan).

    A volume is shown in three planes through the middle of the prediction; small ones are magnified without smoothing.

    Args:
        path: the PNG to write.
        image: `[*S]`, 2D or 3D, any real dtype; shown between its 0.5th and 99.5th percentiles.
        prediction: `[*S]` integer labels, 0 is background.
        label: `[*S]` integer labels, or None.
        spacing_mm: size of a cell along each axis, so that anisotropic volumes keep their proportions; None is 1 mm.

    Raises:
        ValueError: the arrays differ in shape, or are not 2D or 3D.
    """
    spacing_mm = _check_picture(spacing_mm, image=image, prediction=prediction, label=label)
    grey = _to_grey(image)
    centre = _centre_of(prediction if label is None or prediction.any() else label)
    scale = PANEL_PX / max(n * mm for n, mm in zip(image.shape, spacing_mm, strict=True))
    panels = []
    for axis in range(3) if image.ndim == 3 else (None,):
        panel = _panel(_plane(grey, axis, centre), _plane_spacing(spacing_mm, axis), scale).convert("RGB")
        if label is not None:
            _draw_outline(panel, _plane(label, axis, centre), LABEL_COLOUR, width=4)
        _draw_outline(panel, _plane(prediction, axis, centre), PREDICTION_COLOUR, width=2)
        panels.append((panel, "image" if axis is None else f"{AXIS_NAMES[axis]} = {centre[axis]}"))
    legend = [("prediction", PREDICTION_COLOUR)] + ([("label", LABEL_COLOUR)] if label is not None else [])
    _save(_row_of(panels, legend), path)


def draw_triptych(
    path: str | Path,
    image: np.ndarray,
    prediction: np.ndarray,
    variance: np.ndarray,
    *,
    spacing_mm: Sequence[float] | None = None,
) -> None:
    """Writes a PNG of one slice three times: the image, the prediction, the variance over the ensemble.

    The slice is the one of the last axis that holds most of the prediction (the middle one if it is empty).

    Args:
        path: the PNG to write.
        image, prediction: as in `draw_overlay`.
        variance: `[*S]`, of the probabilities over the ensemble; white is its largest value, given in the caption.
        spacing_mm: as in `draw_overlay`.
    """
    spacing_mm = _check_picture(spacing_mm, image=image, prediction=prediction, variance=variance)
    axis = 2 if image.ndim == 3 else None
    index = image.shape[-1] // 2
    if axis is not None and prediction.any():
        index = int(np.count_nonzero(prediction, axis=(0, 1)).argmax())
    largest = float(variance.max())
    columns = {
        "image": _to_grey(image),
        "prediction": _stretch(prediction.astype(np.float64), 0.0, max(1.0, float(prediction.max()))),
        f"variance, 0 to {largest:.3g}": _stretch(variance.astype(np.float64), 0.0, largest),
    }
    in_plane = _plane_spacing(spacing_mm, axis)
    planes = {name: _plane(array, axis, (index,) * 3) for name, array in columns.items()}
    shape = next(iter(planes.values())).shape
    scale = PANEL_PX / max(n * mm for n, mm in zip(shape, in_plane, strict=True))
    _save(_row_of([(_panel(plane, in_plane, scale), name) for name, plane in planes.items()], []), path)


def draw_sampling(
    path: str | Path,
    picture: np.ndarray,
    frames: Sequence[tuple[str, np.ndarray]],
    limits: tuple[float, float],
    mean: np.ndarray,
    deviation: np.ndarray,
) -> None:
    """Writes a PNG of one sample from noise to mask, then the mean and the deviation of the ensemble.

    The first panel is the picture with the outline of the mean above one half.

    Args:
        path: the PNG to write.
        picture: `[C, H, W]` in [0, 1]; three channels are shown in colour, otherwise the first one in grey.
        frames: (caption, `[H, W]`), in the order of sampling.
        limits: values of the frames that are shown black and white.
        mean, deviation: `[H, W]`, of a mask from 0 to 1; the deviation is at most one half.

    Raises:
        ValueError: an array is not of the picture's size.
    """
    size = picture.shape[1:]
    for name, array in (*frames, ("mean", mean), ("deviation", deviation)):
        if array.shape != size:
            raise ValueError(f"{name} must have the picture's size {size}; got {array.shape}")
    grey = [(caption, _stretch(frame, *limits)) for caption, frame in frames]
    grey += [("mean", _stretch(mean, 0.0, 1.0)), ("deviation, 0 to 0.5", _stretch(deviation, 0.0, 0.5))]
    scale = SAMPLING_PANEL_PX / max(size)
    shown = picture.transpose(1, 2, 0) if len(picture) == 3 else picture[0]
    first = _panel(_stretch(shown, 0.0, 1.0), (1.0, 1.0), scale).convert("RGB")
    _draw_outline(first, mean > 0.5, PREDICTION_COLOUR, width=2)
    panels = [(first, "picture"), *((_panel(array, (1.0, 1.0), scale), caption) for caption, array in grey)]
    _save(_row_of(panels, [("mean above one half", PREDICTION_COLOUR)]), path)


def draw_curve(
    path: str | Path,
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    title: str,
    x_label: str,
) -> None:
    """Writes a line chart as PNG.

    Args:
        path: the PNG to write.
        series: name -> (x values, y values), at most four; values that are not finite are left out.
        title: one line above the chart.
        x_label: what the x axis counts.

    Raises:
        ValueError: no series holds a finite point.
    """
    points = {}
    for name, (x, y) in series.items():
        finite = [point for point in zip(x, y, strict=True) if all(map(math.isfinite, point))]
        if finite:
            points[name] = finite
    if not points:
        raise ValueError(f"series must hold at least one finite point to draw {str(path)!r}; got none")
    _save(_chart(points, title, x_label), path)


def draw_loss_curve(log_csv: str | Path, path: str | Path) -> None:
    """Draws `RUN/log.csv` as PNG: the training loss over the optimiser steps, its running mean, the validation Dice.

    Raises:
        FileNotFoundError: there is no such log.
        ValueError: the log has no `step` and `loss` columns, or no row.
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


def _check_picture(spacing_mm: Sequence[float] | None, **arrays: np.ndarray | None) -> Sequence[float]:
    image = arrays["image"]
    if image is None or image.ndim not in (2, 3):
        raise ValueError(f"image must be 2D or 3D; got shape {None if image is None else image.shape}")
    for name, array in arrays.items():
        if array is not None and array.shape != image.shape:
            raise ValueError(f"{name} must have the image's shape {image.shape}; got {array.shape}")
    if spacing_mm is None:
        return (1.0,) * image.ndim
    if len(spacing_mm) != image.ndim:
        raise ValueError(f"spacing_mm must have {image.ndim} values; got {len(spacing_mm)}")
    return spacing_mm


def _stretch(array: np.ndarray, low: float, high: float) -> np.ndarray:
    """Maps [low, high] to 0..255."""
    return (np.clip((array - low) / max(high - low, 1e-12), 0.0, 1.0) * 255).astype(np.uint8)


def _to_grey(image: np.ndarray) -> np.ndarray:
    low, high = np.percentile(image, (0.5, 99.5))
    return _stretch(image.astype(np.float64), float(low), float(high))


def _centre_of(labels: np.ndarray) -> tuple[int, ...]:
    if not labels.any():
        return tuple(n // 2 for n in labels.shape)
    return tuple(int(round(axis.mean())) for axis in np.nonzero(labels))


def _plane(volume: np.ndarray, axis: int | None, index: Sequence[int]) -> np.ndarray:
    """One slice as rows and columns; of a volume with the later of its two axes pointing up."""
    return volume if axis is None else volume.take(index[axis], axis=axis).T[::-1]


def _plane_spacing(spacing_mm: Sequence[float], axis: int | None) -> tuple[float, ...]:
    """Spacing of a slice's rows and columns."""
    if axis is None:
        return tuple(spacing_mm)
    return tuple(mm for i, mm in enumerate(spacing_mm) if i != axis)[::-1]


def _panel(plane: np.ndarray, spacing: Sequence[float], scale: float) -> Image.Image:
    height, width = (max(1, round(n * mm * scale)) for n, mm in zip(plane.shape[:2], spacing, strict=True))
    shrinks = width < plane.shape[1] or height < plane.shape[0]
    return Image.fromarray(np.ascontiguousarray(plane)).resize(
        (width, height), Image.Resampling.BOX if shrinks else Image.Resampling.NEAREST
    )


def _draw_outline(panel: Image.Image, plane: np.ndarray, colour: Colour, *, width: int) -> None:
    """Colours the inner border of every label, `width` pixels wide, after magnifying the labels to the panel."""
    labels = np.ascontiguousarray(plane.astype(np.uint8))
    labels = np.asarray(Image.fromarray(labels).resize(panel.size, Image.Resampling.NEAREST))
    border = np.zeros(labels.shape, bool)
    for shift in range(1, width + 1):
        padded = np.pad(labels, shift)
        for axis in (0, 1):
            for step in (-shift, shift):
                border |= np.roll(padded, step, axis)[shift:-shift, shift:-shift] != labels
    panel.paste(colour, mask=Image.fromarray((border & (labels > 0)).astype(np.uint8) * 255))


def _row_of(panels: Sequence[tuple[Image.Image, str]], legend: Sequence[tuple[str, Colour]]) -> Image.Image:
    """Puts panels side by side, each under its caption, above a legend."""
    gap, font = 8, _font(14)
    # A narrow panel still gets room for its caption.
    widths = [max(panel.width, math.ceil(font.getlength(name))) for panel, name in panels]
    height = max(panel.height for panel, _ in panels)
    foot = CAPTION_PX if legend else 0
    size = (sum(widths) + gap * (len(panels) + 1), height + CAPTION_PX + foot + 2 * gap)
    sheet = Image.new("RGB", size, (24, 24, 24))
    draw = ImageDraw.Draw(sheet)
    left = gap
    for (panel, name), width in zip(panels, widths, strict=True):
        draw.text((left, gap), name, fill=(230, 230, 230), font=font)
        sheet.paste(panel.convert("RGB"), (left, gap + CAPTION_PX))
        left += width + gap
    left = gap
    for name, colour in legend:
        draw.text((left, sheet.height - foot - 2), name, fill=colour, font=font)
        left += math.ceil(font.getlength(name)) + 3 * gap
    return sheet


def _chart(points: Mapping[str, Sequence[tuple[float, float]]], title: str, x_label: str) -> Image.Image:
    width, height, left, right, top, bottom = 760, 440, 70, 20, 40, 54
    black, grid = (30, 30, 30), (222, 222, 222)
    sheet = Image.new("RGB", (width, height), (255, 255, 255))
    draw, font = ImageDraw.Draw(sheet), _font(14)
    x_ticks, y_ticks = (_ticks([p[i] for values in points.values() for p in values]) for i in (0, 1))

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
        up = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return left + across * (width - left - right), height - bottom - up * (height - top - bottom)

    for x in x_ticks:
        draw.line([place(x, y_ticks[0]), place(x, y_ticks[-1])], fill=grid)
        draw.text((place(x, y_ticks[0])[0], height - bottom + 6), f"{x:g}", fill=black, font=font, anchor="ma")
    for y in y_ticks:
        draw.line([place(x_ticks[0], y), place(x_ticks[-1], y)], fill=grid)
        draw.text((left - 8, place(x_ticks[0], y)[1]), f"{y:g}", fill=black, font=font, anchor="rm")
    draw.text((left, 12), title, fill=black, font=_font(16))
    draw.text(((left + width - right) / 2, height - 24), x_label, fill=black, font=font, anchor="ma")
    legend_x = width - right
    for colour, name in reversed(list(zip(SERIES_COLOURS, points, strict=False))):
        draw.text((legend_x, 14), name, fill=colour, font=font, anchor="ra")
        legend_x -= math.ceil(font.getlength(name)) + 18
    for i, (colour, values) in enumerate(zip(SERIES_COLOURS, points.values(), strict=False)):
        pixels = [place(x, y) for x, y in values]
        draw.line(pixels, fill=colour, width=1 + min(i, 1), joint="curve")
        if len(pixels) < 30:  # few points: show where they are
            for x, y in pixels:
                draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour)
    return sheet


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


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


def _save(picture: Image.Image, path: str | Path) -> None:
    with replacing(path) as temporary:
        picture.save(temporary, format="PNG")
