"""Ways of scoring an ensemble of sampled masks, by name, and what needs no learning at all.

They give different numbers for the same samples: say which one a number comes from.
"""

import io
from collections.abc import Iterable

import numpy as np
from PIL import Image

from ncaseg.evaluation import metrics

AUTHOR, CDAL, M3D = "E-AUTHOR", "E-CDAL", "E-M3D"
AUTHOR_THRESHOLDS = (0.1, 0.3, 0.5, 0.7, 0.9)
LEAST_JACCARD = 0.65  # below it a case counts as failed in the challenge ISIC 2018, task 1
GREYS = 256

Scores = dict[str, float]


def e_clean(probability: np.ndarray, truth: np.ndarray, threshold: float = 0.5) -> Scores:
    """Dice and IoU of the mean of the clipped samples at one threshold.

    Args:
        probability: ``[*S]`` mean over the samples, each cut to [0, 1].
        truth: ``[*S]`` bool.

    Returns:
        ``dice``, ``iou``, and ``isic``: the IoU, or 0 below 0.65.
    """
    mask = probability > threshold
    overlap = metrics.iou(mask, truth)
    return {
        "dice": metrics.hard_dice(mask, truth),
        "iou": overlap,
        "isic": overlap if overlap >= LEAST_JACCARD else 0.0,
    }


def e_author(mean: np.ndarray, truth: np.ndarray) -> Scores:
    """The script with which MedSegDiff and MedSegDiffNCA were scored, to the letter.

    The mean is multiplied by itself (what the function named STAPLE returns), saved as JPEG, divided by its own
    maximum, and compared with the truth at five thresholds; Dice and IoU are averaged over them. On the mean these are
    thresholds of 0.316, 0.548, 0.707, 0.837 and 0.949 of its largest value, and a mean far below 0 counts as lesion.

    Args:
        mean: ``[H, W]`` of the samples, coded 0 and 1, not cut.
        truth: ``[H, W]`` of shares in [0, 1]: the mask, resized to the network's grid.

    Returns:
        ``dice`` and ``iou``.
    """
    shown = _through_jpeg(np.clip(mean.astype(np.float64) ** 2, 0.0, 1.0))
    shown = shown / max(float(shown.max()), 1e-12)
    pairs = [(shown > threshold, truth > threshold) for threshold in AUTHOR_THRESHOLDS]
    return {
        "dice": float(np.mean([metrics.hard_dice(*pair) for pair in pairs])),
        "iou": float(np.mean([metrics.iou(*pair) for pair in pairs])),
    }


def e_cdal(probability: np.ndarray, truth: np.ndarray) -> Scores:
    """cDAL's scores of one picture: Dice and IoU of the foreground alone, on the network's grid.

    The published mean IoU is their mean over pictures; the background is no class.

    Args:
        probability: ``[*S]`` of the foreground, mean over the samples, each cut to [0, 1]; above one half is found.
        truth: ``[*S]`` bool: the mask on that grid, by nearest neighbour.

    Returns:
        ``dice`` and ``iou``.
    """
    mask = probability > 0.5
    return {"dice": metrics.hard_dice(mask, truth), "iou": metrics.iou(mask, truth)}


def e_m3d(probability: np.ndarray, truth: np.ndarray) -> Scores:
    """Scores of one volume as the published M3D-NCA code takes them, on the network's grid, padding included.

    Args:
        probability: ``[*S]`` of the merged foreground.
        truth: ``[*S]`` bool: the label on that grid, by nearest neighbour.

    Returns:
        ``soft_dice``, which the published code reports, and ``hard_dice`` at one half.
    """
    return {
        "soft_dice": metrics.soft_dice(probability, truth),
        "hard_dice": metrics.hard_dice(probability > 0.5, truth),
    }


def check_means(dice: float, overlap: float) -> None:
    """The mean Dice of any cases is at most ``2 J / (1 + J)`` of their mean IoU J, since Dice is concave in it.

    Raises:
        AssertionError: it is not, so that the scores do not belong together.
    """
    assert dice <= 2 * overlap / (1 + overlap) + 1e-9, f"mean Dice {dice} cannot be, with mean IoU {overlap}"


def otsu(channel: np.ndarray) -> np.ndarray:
    """The mask of the cells darker than Otsu's threshold, which separates two classes best.

    Args:
        channel: any shape, values in [0, 1].

    Reference:
        Otsu, A Threshold Selection Method from Gray-Level Histograms, 1979, equation 18.
    """
    counts, edges = np.histogram(channel, bins=GREYS, range=(0.0, 1.0))
    centres = (edges[:-1] + edges[1:]) / 2
    share = np.cumsum(counts) / counts.sum()
    moment = np.cumsum(counts * centres) / counts.sum()
    between = share * (1 - share)
    with np.errstate(divide="ignore", invalid="ignore"):
        separation = np.where(between > 0, (moment[-1] * share - moment) ** 2 / between, 0.0)
    return channel < edges[1 + int(separation.argmax())]


def constant_mask(masks: Iterable[np.ndarray], count: int = 20) -> np.ndarray:
    """The one mask that has the highest mean Dice over some masks, among the level sets of their mean.

    Args:
        masks: bool arrays of one shape; at least one.

    Raises:
        ValueError: there is none.
    """
    known = list(masks)
    if not known:
        raise ValueError("masks must hold at least one; got none")
    mean = np.mean(known, axis=0)
    candidates = [mean > threshold for threshold in np.arange(count) / count]
    return max(candidates, key=lambda mask: float(np.mean([metrics.hard_dice(mask, known_one) for known_one in known])))


def _through_jpeg(image: np.ndarray) -> np.ndarray:
    """``[H, W]`` in [0, 1] as it comes back from an 8-bit grey JPEG of pillow's default quality."""
    file = io.BytesIO()
    Image.fromarray((image * 255 + 0.5).astype(np.uint8)).save(file, format="JPEG")
    return np.asarray(Image.open(io.BytesIO(file.getvalue())), np.float64) / 255
