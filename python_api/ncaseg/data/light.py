"""What befalls photographs: a cast of colour, uneven light, hairs before the lens, dark corners.

Images are ``[C, X, Y, Z]`` float32 in [0, 1] on the CPU; every slice of the third axis gets the same. What is drawn
comes from one generator. Targets are none of this module's business.
"""

import math

import torch
from torch import Generator, Tensor

SOFT_EDGE = 0.05  # of dark corners, in half sides: they fade over a few cells, as the edge of a lens does
DARKEST_HAIR, PALEST_HAIR = 0.0, 0.35
FAINTEST_HAIR = 0.3  # a hair that is thinner than a cell covers a part of it


def cast(image: Tensor, gain: tuple[float, float], generator: Generator) -> Tensor:
    """Each channel times a factor of its own, drawn uniformly from ``gain``; what exceeds 1 is clipped."""
    low, high = gain
    factors = low + (high - low) * torch.rand(image.shape[0], generator=generator)
    return (image * factors.view(-1, 1, 1, 1)).clamp(max=1.0)


def uneven_light(image: Tensor, strength: tuple[float, float], generator: Generator) -> Tensor:
    """Light that falls off along a random direction of the picture.

    The factor is ``1 + s d``: s is drawn uniformly from ``strength``, and d runs linearly from -1 at one corner or side
    to 1 at the one opposite. What exceeds 1 is clipped.
    """
    low, high = strength
    size, angle = (torch.rand(2, generator=generator) * torch.tensor([high - low, 2 * math.pi])).tolist()
    x, y = _places(image)
    along = math.cos(angle) * x + math.sin(angle) * y
    along = along / (abs(math.cos(angle)) + abs(math.sin(angle)))
    return (image * (1 + (low + size) * along)[..., None]).clamp(max=1.0)


def dark_corners(image: Tensor, radius: tuple[float, float], generator: Generator) -> Tensor:
    """A fade to black outside the ellipse about the centre whose axes are the sides times a number from ``radius``.

    From 1.42 on nothing is cut off; 1 touches the sides.
    """
    low, high = radius
    limit = low + (high - low) * torch.rand((), generator=generator).item()
    x, y = _places(image)
    shown = ((limit - torch.sqrt(x**2 + y**2)) / SOFT_EDGE + 1).clamp(0.0, 1.0)
    return image * shown[..., None]


def hairs(image: Tensor, count: tuple[int, int], generator: Generator) -> Tensor:
    """Dark curved lines, one cell wide: from ``count[0]`` to ``count[1]`` of them.

    Each is a parabola between two random points, in or somewhat beside the picture, with a darkness and an opacity of
    its own. Where hairs cross, the last one drawn is seen.
    """
    number = int(torch.randint(count[0], count[1] + 1, (), generator=generator))
    ends = torch.rand(number, 3, 2, generator=generator) * 1.4 - 0.2  # in sides: start, bend, end
    start, bend, end = ends.unbind(1)
    bend = (start + end) / 2 + 0.3 * (bend - 0.5)
    tint = DARKEST_HAIR + (PALEST_HAIR - DARKEST_HAIR) * torch.rand(number, generator=generator)
    cover = FAINTEST_HAIR + (1 - FAINTEST_HAIR) * torch.rand(number, generator=generator)
    rows, columns = image.shape[1:3]
    t = torch.linspace(0, 1, 3 * max(rows, columns))[:, None, None]  # no cell is skipped, up to 3 sides long
    points = (1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t**2 * end
    x, y = ((points * torch.tensor([rows, columns])).floor().long()).unbind(-1)  # [points, hairs]
    inside = (x >= 0) & (x < rows) & (y >= 0) & (y < columns)
    which = torch.full((rows, columns), -1)
    for hair in range(number):
        seen = inside[:, hair]
        which[x[seen, hair], y[seen, hair]] = hair
    opaque = torch.where(which < 0, 0.0, cover[which])[None, ..., None]
    return image * (1 - opaque) + opaque * tint[which][None, ..., None]


def _places(image: Tensor) -> tuple[Tensor, Tensor]:
    """Where the cells of X and Y lie, from -1 to 1: ``[X, 1]`` and ``[1, Y]``."""
    x, y = (torch.arange(0.5, n) * (2 / n) - 1 for n in image.shape[1:3])
    return x[:, None], y[None, :]
