"""Random crops of images and labels, each taken inside the one before, with an own place for every sample.

Images and labels are channels first ``[B, C, X, Y, Z]``; sizes and offsets are triples, one entry per axis.
"""

import torch
from torch import Generator, Tensor

from ncaseg.levels import Triple, ceil_divide, floor_divide, larger, minus, region, times


class NestedCrops:
    """What is left of a batch after the crops so far.

    Args:
        image, label: the batch at full resolution.
        generator: draws the places.
        foreground: probability that all crops of a sample hold one voxel of its foreground, which is drawn at random.

    Attributes:
        image, label: the current crops, at full resolution.
    """

    def __init__(self, image: Tensor, label: Tensor, *, generator: Generator, foreground: float = 0.0) -> None:
        self.image, self.label = image, label
        self._generator = generator
        self._voxels: list[Triple | None] = [None] * len(image)
        if foreground > 0:
            self._voxels = draw_foreground(label, foreground, generator)

    @property
    def size(self) -> Triple:
        """Cells of the current crops at full resolution."""
        x, y, z = self.image.shape[2:]
        return x, y, z

    def cut(self, patch: Triple, factors: Triple) -> list[Triple]:
        """Take a patch of a level whose cells span ``factors`` cells of full resolution.

        A patch holds whole cells of its level: one that does not fill an axis leaves out a last cell that the volume's
        edge cuts.

        Returns:
            The offset of every sample, in cells of the level.
        """
        if patch == ceil_divide(self.size, factors):
            return [(0, 0, 0)] * len(self.image)
        room = larger(floor_divide(self.size, factors), patch)
        cells = [None if voxel is None else floor_divide(voxel, factors) for voxel in self._voxels]
        offsets = draw_offsets_around(cells, room, patch, self._generator)
        # In cells of full resolution the crop begins here, and the next one is taken inside it.
        starts = [times(offset, factors) for offset in offsets]
        self._voxels = [v if v is None else minus(v, s) for v, s in zip(self._voxels, starts, strict=True)]
        inside = region(self.size, patch, factors)
        self.image, self.label = crop(self.image, starts, inside), crop(self.label, starts, inside)
        return offsets


def draw_offsets(batch: int, size: Triple, patch: Triple, generator: Generator) -> list[Triple]:
    """For each sample and axis an integer drawn uniformly from 0 to ``size - patch``, both included."""
    spans = [have - want + 1 for have, want in zip(size, patch, strict=True)]
    columns = [torch.randint(span, (batch,), generator=generator).tolist() for span in spans]
    return list(zip(*columns, strict=True))


def draw_offsets_around(cells: list[Triple | None], size: Triple, patch: Triple, generator: Generator) -> list[Triple]:
    """As :func:`draw_offsets`, but the patch of a sample that has a cell is drawn from those that hold it."""
    offsets = draw_offsets(len(cells), size, patch, generator)
    for sample, cell in enumerate(cells):
        if cell is not None:
            x, y, z = (_offset_around(c, s, p, generator) for c, s, p in zip(cell, size, patch, strict=True))
            offsets[sample] = (x, y, z)
    return offsets


def _offset_around(cell: int, size: int, patch: int, generator: Generator) -> int:
    last = min(cell, size - patch)
    first = min(max(0, cell - patch + 1), last)
    return int(torch.randint(first, last + 1, (), generator=generator))


def draw_foreground(label: Tensor, chance: float, generator: Generator) -> list[Triple | None]:
    """For each sample of ``[B, C, X, Y, Z]`` and with probability ``chance`` a random voxel of its foreground."""
    chosen: list[Triple | None] = []
    for sample in label:
        voxels = sample.amax(dim=0).nonzero()
        if torch.rand((), generator=generator).item() >= chance or len(voxels) == 0:
            chosen.append(None)
            continue
        x, y, z = voxels[int(torch.randint(len(voxels), (), generator=generator))].tolist()
        chosen.append((x, y, z))
    return chosen


def crop(volume: Tensor, offsets: list[Triple], size: Triple) -> Tensor:
    """Cut a box of ``size`` at its own offset out of every sample of ``[B, C, X, Y, Z]``."""
    boxes = []
    for sample, (x, y, z) in zip(volume, offsets, strict=True):
        boxes.append(sample[:, x : x + size[0], y : y + size[1], z : z + size[2]])
    return torch.stack(boxes)
