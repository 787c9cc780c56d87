"""The numbers that the network sees: colour constancy; mean and deviation of a data set, and back."""

import numpy as np

from ncaseg.config import DataConfig

ORDER = 6  # of the norm: between the mean (1) and the brightest cell (infinity); the value that its authors found best
SHADE = 0.7  # what the norm becomes: skin is about as bright, and highlights still fit below 1


def shades_of_gray(image: np.ndarray) -> np.ndarray:
    """A picture as white light of one strength would show it, ``[C, *S]`` float32 in [0, 1].

    Every channel is divided by its Minkowski norm ``(mean I^6)^(1/6)``, which is taken for the colour of the light, and
    multiplied by 0.7; what exceeds 1 is clipped. A black channel stays black.

    Reference:
        Finlayson and Trezzi, Shades of Gray and Colour Constancy, Color Imaging Conference, 2004.
    """
    space = tuple(range(1, image.ndim))
    norm = np.mean(np.maximum(image, 0) ** ORDER, axis=space, dtype=np.float64, keepdims=True) ** (1 / ORDER)
    gain = np.divide(SHADE, norm, out=np.zeros_like(norm), where=norm > 0).astype(np.float32)
    return np.clip(image * gain, 0, 1)


def standardise(image: np.ndarray, cfg: DataConfig) -> np.ndarray:
    """``(image - data.mean) / data.std`` per channel of ``[C, *S]`` float32; the image itself where these are empty."""
    if not cfg.mean:
        return image
    mean, std = _columns(image, cfg)
    return (image - mean) / std


def unstandardise(image: np.ndarray, cfg: DataConfig) -> np.ndarray:
    """What :func:`standardise` was given, up to rounding: the numbers that changes of intensity act on."""
    if not cfg.mean:
        return image
    mean, std = _columns(image, cfg)
    return image * std + mean


def _columns(image: np.ndarray, cfg: DataConfig) -> tuple[np.ndarray, np.ndarray]:
    mean, std = (np.array(values, np.float32).reshape(-1, *[1] * (image.ndim - 1)) for values in (cfg.mean, cfg.std))
    return mean, std
