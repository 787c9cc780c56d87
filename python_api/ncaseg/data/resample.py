"""From a native grid to the grid of the network and back, by resizing as M3D-NCA does; no spacing is involved.

Arrays are channels first, the last three axes are space. Cell centres of both grids span the same box, as with
``align_corners=False`` in torch.
"""

import numpy as np

CUBIC = -0.75  # the coefficient of OpenCV and torch


def resize_image(image: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Cubic convolution along each axis of ``[..., X, Y, Z]`` float32; may overshoot."""
    for axis, new in enumerate(size, start=image.ndim - 3):
        old = image.shape[axis]
        if new != old:
            place = centres(old, new, range(new))
            low = np.floor(place).astype(np.int64)
            weights = _cubic_weights(place - low)
            image = _gather(image, axis, [(low - 1 + tap, weight) for tap, weight in enumerate(weights)])
    return np.ascontiguousarray(image)


def resize_mask(mask: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Nearest neighbour: cell i of n takes cell ``floor(i * old / n)``, as in the published code."""
    for axis, new in enumerate(size, start=mask.ndim - 3):
        mask = mask.take(np.arange(new) * mask.shape[axis] // new, axis=axis)
    return mask


def resize_back(values: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Trilinear, for logits ``[..., X, Y, Z]`` on their way to the native grid."""
    for axis, new in enumerate(size, start=values.ndim - 3):
        if new != values.shape[axis]:
            values = linear(values, axis, np.maximum(centres(values.shape[axis], new, range(new)), 0))
    return np.ascontiguousarray(values)


def centres(old: int, new: int, cells: range) -> np.ndarray:
    """Where the centres of some cells of the new grid lie on the old one, in its cells; below 0 at the border."""
    return (np.asarray(cells) + 0.5) * (old / new) - 0.5


def linear(values: np.ndarray, axis: int, place: np.ndarray) -> np.ndarray:
    """Linear interpolation at places of at least 0 along one axis; beyond the last cell it stays constant."""
    low = place.astype(np.int64)
    share = place - low
    return _gather(values, axis, [(low, 1 - share), (low + 1, share)])


def _cubic_weights(t: np.ndarray) -> list[np.ndarray]:
    """Weights of the cells at -1, 0, 1 and 2 for a place at ``t`` in [0, 1) (Keys 1981)."""

    def near(d: np.ndarray) -> np.ndarray:
        return ((CUBIC + 2) * d - (CUBIC + 3)) * d * d + 1

    def far(d: np.ndarray) -> np.ndarray:
        return ((CUBIC * d - 5 * CUBIC) * d + 8 * CUBIC) * d - 4 * CUBIC

    return [far(t + 1), near(t), near(1 - t), far(2 - t)]


def _gather(values: np.ndarray, axis: int, taps: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """The weighted sum of the cells that each tap names along an axis; borders are repeated."""
    shape = [-1 if a == axis else 1 for a in range(values.ndim)]
    total: np.ndarray | None = None
    for cells, weight in taps:
        part = values.take(cells, axis=axis, mode="clip") * weight.astype(np.float32).reshape(shape)
        total = part if total is None else total + part
    assert total is not None  # there are two or four taps
    return total
