"""Random boxes of one training case, with the border repeated where the case is smaller than the box.

Images and targets are ``[C, X, Y, Z]`` on the CPU.
"""

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ncaseg.levels import Triple, or_native, smaller

HALF = 0.5  # of the balanced boxes are centred on foreground


def random_box(
    image: Tensor, target: Tensor, size: tuple[int, ...], places: str, generator: Generator
) -> tuple[Tensor, Tensor]:
    """The same box of image and target.

    Args:
        image: ``[C_in, X, Y, Z]`` float32.
        target: ``[C_out, X, Y, Z]`` float32, masks.
        size: cells of the box; 0 takes the whole axis.
        places: "uniform": every place is as likely; "balanced": centred on a random cell of the foreground for one half
            of the boxes and of the background for the other, as far as the border allows (one of what there is, where
            the case lacks either).
        generator: source of all random numbers.

    Returns:
        Both of the size of the box.
    """
    x, y, z = or_native(size, image.shape[1:])
    image, target = repeat_border(image, (x, y, z)), repeat_border(target, (x, y, z))
    room = [have - want for have, want in zip(image.shape[1:], (x, y, z), strict=True)]
    if places == "balanced":
        centre = _balanced_cell(target, generator)
        start = [min(max(c - want // 2, 0), most) for c, want, most in zip(centre, (x, y, z), room, strict=True)]
    else:
        start = [int(torch.randint(most + 1, (), generator=generator)) for most in room]
    box = (slice(None), *(slice(s, s + want) for s, want in zip(start, (x, y, z), strict=True)))
    return image[box], target[box]


def repeat_border(volume: Tensor, size: Triple) -> Tensor:
    """``[C, X, Y, Z]`` of at least ``size``: the cells of the border are repeated, half of them at either end."""
    have = volume.shape[1:]
    missing = [want - kept for want, kept in zip(size, smaller(have, size), strict=True)]
    amounts = [amount for m in reversed(missing) for amount in (m // 2, m - m // 2)]
    return F.pad(volume[None], amounts, mode="replicate")[0] if any(missing) else volume


def _balanced_cell(target: Tensor, generator: Generator) -> list[int]:
    foreground = target.amax(dim=0) > 0
    is_wanted = torch.rand((), generator=generator).item() < HALF
    cells = (foreground == is_wanted).nonzero()
    if len(cells) == 0:
        cells = (foreground != is_wanted).nonzero()
    return cells[int(torch.randint(len(cells), (), generator=generator))].tolist()
