"""Mean and deviation of a data set: to the numbers that the network sees, and back."""

import numpy as np

from ncaseg.config import DataConfig


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
