"""From a native grid to the grid of the network and back, by resizing as M3D-NCA does; no spacing is involved.

Arrays are channels first, ``[C, X, Y, Z]``. Cell centres of both grids span the same box (``align_corners=False``).
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def resize_image(image: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Bicubic (a = -0.75), first in the planes of the first two axes, then along the third; may overshoot."""
    x, y, z = size
    planes = torch.from_numpy(image).movedim(3, 0)  # [Z, C, X, Y]
    planes = F.interpolate(planes, (x, y), mode="bicubic", align_corners=False)
    columns = planes.permute(3, 1, 2, 0)  # [Y, C, X, Z]
    columns = F.interpolate(columns, (x, z), mode="bicubic", align_corners=False)
    return np.ascontiguousarray(columns.permute(1, 2, 0, 3).numpy())


def resize_mask(mask: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Nearest neighbour: cell i of n takes cell ``floor(i * old / n)``, as in the published code."""
    return F.interpolate(torch.from_numpy(mask)[None], list(size), mode="nearest")[0].numpy()


def resize_back(logits: Tensor, size: tuple[int, ...]) -> Tensor:
    """Trilinear, for logits ``[B, C, X, Y, Z]`` on their way to the native grid."""
    return F.interpolate(logits, list(size), mode="trilinear", align_corners=False)
