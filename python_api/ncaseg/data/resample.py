"""From a native grid to the grid of the network and back, by resizing; no spacing is involved.

Arrays are channels first, ``[C, X, Y, Z]``. Cell centres of both grids span the same box (``align_corners=False``).
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def resize_image(image: np.ndarray, size: tuple[int, ...], rule: str = "bicubic") -> np.ndarray:
    """First in the planes of the first two axes, then along the third.

    Rules: "bicubic" (a = -0.75; may overshoot), and "area": linear, with a filter that is as wide as the new cells
    where they are larger than the old ones, so that nothing is skipped.
    """
    x, y, z = size
    how: dict[str, Any] = {"mode": "bicubic"} if rule == "bicubic" else {"mode": "bilinear", "antialias": True}
    planes = torch.from_numpy(image).movedim(3, 0)  # [Z, C, X, Y]
    planes = F.interpolate(planes, (x, y), align_corners=False, **how)
    columns = planes.permute(3, 1, 2, 0)  # [Y, C, X, Z]
    columns = F.interpolate(columns, (x, z), align_corners=False, **how)
    return np.ascontiguousarray(columns.permute(1, 2, 0, 3).numpy())


def resize_mask(mask: np.ndarray, size: tuple[int, ...], rule: str = "floor") -> np.ndarray:
    """Nearest neighbour: cell i of n takes cell ``floor(i * old / n)``, as in M3D-NCA's published code.

    Rule "centre" takes the cell in which its centre lies.
    """
    mode = "nearest" if rule == "floor" else "nearest-exact"
    return F.interpolate(torch.from_numpy(mask)[None], list(size), mode=mode)[0].numpy()


def resize_back(logits: Tensor, size: tuple[int, ...]) -> Tensor:
    """Trilinear, for logits ``[B, C, X, Y, Z]`` on their way to the native grid."""
    return F.interpolate(logits, list(size), mode="trilinear", align_corners=False)
