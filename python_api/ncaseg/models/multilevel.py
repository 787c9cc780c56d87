"""The hand-over between resolution levels: pool the image, enlarge the state, cut nested patches.

Images and labels are channels first ``[B, C, X, Y, Z]``, states channels last ``[B, X, Y, Z, C]``. Factors, sizes and
offsets are triples, one entry per axis.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ncaseg.levels import Triple, ceil_divide, smaller


def pool_image(image: Tensor, factors: Triple, mode: str = "max") -> Tensor:
    """The image of a coarser level: one cell for every block of ``factors`` cells, or what is left of a block.

    Modes: "max" (factors of 2 repeated give the same) and "average" over the block, "nearest" (its first cell), and
    "trilinear" (interpolation at its centre, without smoothing).
    """
    if factors == (1, 1, 1):
        return image
    size_x, size_y, size_z = image.shape[2:]
    x, y, z = factors = smaller(factors, (size_x, size_y, size_z))
    if mode == "max":
        return F.max_pool3d(image, factors, ceil_mode=True)
    if mode == "average":
        return F.avg_pool3d(image, factors, ceil_mode=True, count_include_pad=False)
    if mode == "nearest":
        return image[:, :, ::x, ::y, ::z]
    size = ceil_divide((size_x, size_y, size_z), factors)
    return F.interpolate(image, size, mode="trilinear", align_corners=False)


def enlarge_state(state: Tensor, factors: Triple, size: Triple | None = None) -> Tensor:
    """Nearest upsampling of a state: cell x of the result is cell ``x // factor``; cut to ``size`` where given."""
    for axis, factor in enumerate(factors, start=1):
        if factor > 1:
            state = state.repeat_interleave(factor, dim=axis)
        if size is not None:
            state = state.narrow(axis, 0, size[axis - 1])
    return state


def pad_to_multiple(volume: Tensor, factors: Triple, mode: str) -> Tensor:
    """Pad ``[B, C, X, Y, Z]`` at the end of each axis to a multiple of ``factors``: "replicate", "zeros" or "none"."""
    missing = [-have % factor for have, factor in zip(volume.shape[2:], factors, strict=True)]
    if mode == "none" or not any(missing):
        return volume
    amounts = [amount for m in reversed(missing) for amount in (0, m)]
    return F.pad(volume, amounts, mode="replicate") if mode == "replicate" else F.pad(volume, amounts)


def draw_offsets(batch: int, size: Triple, patch: Triple, generator: torch.Generator) -> list[Triple]:
    """For each sample and axis an integer drawn uniformly from 0 to ``size - patch``, both included."""
    spans = [have - want + 1 for have, want in zip(size, patch, strict=True)]
    columns = [torch.randint(span, (batch,), generator=generator).tolist() for span in spans]
    return list(zip(*columns, strict=True))


def draw_offsets_around(
    cells: list[Triple | None], size: Triple, patch: Triple, generator: torch.Generator
) -> list[Triple]:
    """As :func:`draw_offsets`, but the patch of a sample that has a cell is drawn from those that hold it."""
    offsets = draw_offsets(len(cells), size, patch, generator)
    for sample, cell in enumerate(cells):
        if cell is not None:
            x, y, z = (_offset_around(c, s, p, generator) for c, s, p in zip(cell, size, patch, strict=True))
            offsets[sample] = (x, y, z)
    return offsets


def _offset_around(cell: int, size: int, patch: int, generator: torch.Generator) -> int:
    last = min(cell, size - patch)
    first = min(max(0, cell - patch + 1), last)
    return int(torch.randint(first, last + 1, (), generator=generator))


def draw_foreground(label: Tensor, chance: float, generator: torch.Generator) -> list[Triple | None]:
    """For each sample of ``[B, C, X, Y, Z]`` and with probability ``chance`` a random voxel of its foreground."""
    found: list[Triple | None] = []
    for sample in label:
        voxels = sample.amax(dim=0).nonzero()
        if torch.rand((), generator=generator).item() >= chance or len(voxels) == 0:
            found.append(None)
            continue
        x, y, z = voxels[int(torch.randint(len(voxels), (), generator=generator))].tolist()
        found.append((x, y, z))
    return found


def crop(volume: Tensor, offsets: list[Triple], size: Triple, *, first_axis: int) -> Tensor:
    """Cut a box of ``size`` at its own offset out of every sample; the space begins at axis ``first_axis``."""
    boxes = []
    for sample, offset in zip(volume, offsets, strict=True):
        for axis, (start, length) in enumerate(zip(offset, size, strict=True), start=first_axis - 1):
            sample = sample.narrow(axis, start, length)
        boxes.append(sample)
    return torch.stack(boxes)
