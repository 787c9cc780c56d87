"""Pictures of volumes: overlays and the slice / prediction / variance triptych, drawn with pillow alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
AXIS_NAMES = "xyz"  # as stored: which of them is left, front or up is the affine's affair


def draw_overlay(
    path: str | Path,
    image: np.ndarray,
    prediction: np.ndarray,
    label: np.ndarray | None = None,
    *,
    spacing_mm: Sequence[float] | None = None,
) -> None:
    """Write a PNG of the image with the outline of the prediction (orange) and, where given, of the label (cyan).

    A volume is shown in three planes through the middle of the prediction; small ones are magnified without smoothing.
    Only slices are copied, so that large volumes, and those in mapped files, cost no memory of their size.

    Args:
        path: the PNG to write.
        image: ``[*S]``, 2D or 3D, any real dtype; shown between the 0.5th and 99.5th percentiles of the planes.
        prediction: ``[*S]`` integer labels, 0 is background.
        label: ``[*S]`` integer labels, or None.
        spacing_mm: size of a cell along each axis, so that anisotropic volumes keep their proportions; None is 1 mm.

    Raises:
        ValueError: the arrays differ in shape, or are not 2D or 3D.
    """
    spacing_mm = _check_picture(spacing_mm, image=image, prediction=prediction, label=label)
    centre = _centre_of(prediction if label is None or prediction.any() else label)
    scale = PANEL_PX / max(n * mm for n, mm in zip(image.shape, spacing_mm, strict=True))
    axes = range(3) if image.ndim == 3 else (None,)
    panels = []
    for axis, grey in zip(axes, _to_grey([_plane(image, axis, centre) for axis in axes]), strict=True):
        panel = _panel(grey, _plane_spacing(spacing_mm, axis), scale).convert("RGB")
        if label is not None:
            _draw_outline(panel, _plane(label, axis, centre), LABEL_COLOUR, width=4)
        _draw_outline(panel, _plane(prediction, axis, centre), PREDICTION_COLOUR, width=2)
        panels.append((panel, "image" if axis is None else f"{AXIS_NAMES[axis]} = {centre[axis]}"))
    legend = [("prediction", PREDICTION_COLOUR)] + ([("label", LABEL_COLOUR)] if label is not None else [])
    save_png(_row_of(panels, legend), path)


def draw_triptych(
    path: str | Path,
    image: np.ndarray,
    prediction: np.ndarray,
    variance: np.ndarray,
    *,
    spacing_mm: Sequence[float] | None = None,
) -> None:
    """Write a PNG of one slice three times: the image, the prediction, the variance over the ensemble.

    The slice is the one of the last axis that holds most of the prediction (the middle one if it is empty).

    Args:
        path: the PNG to write.
        image, prediction: as in ``draw_overlay``; the percentiles are those of the slice.
        variance: ``[*S]``, of the probabilities over the ensemble; white is its largest value, given in the caption.
        spacing_mm: as in ``draw_overlay``.
    """
    spacing_mm = _check_picture(spacing_mm, image=image, prediction=prediction, variance=variance)
    axis = 2 if image.ndim == 3 else None
    index = image.shape[-1] // 2
    if axis is not None and prediction.any():
        index = int(_profiles(prediction)[axis].argmax())
    largest = float(variance.max())
    shown, labels, spread = (_plane(array, axis, (index,) * 3) for array in (image, prediction, variance))
    columns = {
        "image": _to_grey([shown])[0],
        "prediction": _stretch(labels, 0.0, max(1.0, float(prediction.max()))),
        f"variance, 0 to {largest:.3g}": _stretch(spread, 0.0, largest),
    }
    in_plane = _plane_spacing(spacing_mm, axis)
    scale = PANEL_PX / max(n * mm for n, mm in zip(shown.shape, in_plane, strict=True))
    save_png(_row_of([(_panel(plane, in_plane, scale), name) for name, plane in columns.items()], []), path)


def draw_sampling(
    path: str | Path,
    picture: np.ndarray,
    frames: Sequence[tuple[str, np.ndarray]],
    limits: tuple[float, float],
    mean: np.ndarray,
    deviation: np.ndarray,
) -> None:
    """Write a PNG of one sample from noise to mask, then the mean and the deviation of the ensemble.

    The first panel is the picture with the outline of the mean above one half.

    Args:
        path: the PNG to write.
        picture: ``[C, H, W]`` in [0, 1]; three channels are shown in colour, otherwise the first one in grey.
        frames: (caption, ``[H, W]``), in the order of sampling.
        limits: values of the frames that are shown black and white.
        mean, deviation: ``[H, W]``, of a mask from 0 to 1; the deviation is at most one half.

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
    save_png(_row_of(panels, [("mean above one half", PREDICTION_COLOUR)]), path)


def load_font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, ``size`` pixels high."""
    return ImageFont.load_default(size=size)


def save_png(picture: Image.Image, path: str | Path) -> None:
    """Write a picture under a temporary name and rename it."""
    with replacing(path) as temporary:
        picture.save(temporary, format="PNG")


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
    """Map [low, high] to 0..255."""
    values = array.astype(np.float64)
    return (np.clip((values - low) / max(high - low, 1e-12), 0.0, 1.0) * 255).astype(np.uint8)


def _to_grey(planes: Sequence[np.ndarray]) -> list[np.ndarray]:
    low, high = np.percentile(np.concatenate([plane.ravel() for plane in planes]), (0.5, 99.5))
    return [_stretch(plane, float(low), float(high)) for plane in planes]


def _profiles(labels: np.ndarray) -> list[np.ndarray]:
    """How many cells of ``[*S]`` are not 0 at each place along each axis; one slice at a time."""
    profiles = [np.zeros(n, np.int64) for n in labels.shape]
    for place, cells in enumerate(labels):
        profiles[0][place] = np.count_nonzero(cells)
        for axis, profile in enumerate(profiles[1:]):
            others = tuple(other for other in range(cells.ndim) if other != axis)
            profile += np.count_nonzero(cells, axis=others)
    return profiles


def _centre_of(labels: np.ndarray) -> tuple[int, ...]:
    if not labels.any():
        return tuple(n // 2 for n in labels.shape)
    return tuple(int(round(np.average(np.arange(len(counts)), weights=counts))) for counts in _profiles(labels))


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
    """Colour the inner border of every label, ``width`` pixels wide, after magnifying the labels to the panel."""
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
    """Put panels side by side, each under its caption, above a legend."""
    gap, font = 8, load_font(14)
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
