"""Tiles without overlap: where they come from, and that they go back there."""

import pytest
import torch

from ncaseg.mosaic import cut_mosaic, join_mosaic


def test_four_tiles_of_a_picture():
    image = torch.arange(2 * 3 * 8 * 6.0).view(2, 3, 8, 6, 1)
    tiles = cut_mosaic(image, (4, 3, 1))
    assert tiles.shape == (8, 3, 4, 3, 1)
    corners = [image[:, :, x : x + 4, y : y + 3] for x in (0, 4) for y in (0, 3)]
    assert torch.equal(tiles, torch.cat(corners))
    assert torch.equal(join_mosaic(tiles, (8, 6, 1)), image)
    assert torch.equal(join_mosaic(tiles[:, :1] + 1, (8, 6, 1)), image[:, :1] + 1)


def test_volumes_go_back_too():
    image = torch.rand(1, 2, 4, 6, 10)
    assert torch.equal(join_mosaic(cut_mosaic(image, (2, 3, 5)), (4, 6, 10)), image)


def test_sizes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"multiples of the tile's \(4, 4, 1\); got \(8, 6, 1\)"):
        cut_mosaic(torch.zeros(1, 1, 8, 6, 1), (4, 4, 1))
    with pytest.raises(ValueError, match=r"tiles must fill images of size \(8, 8, 1\)"):
        join_mosaic(torch.zeros(3, 1, 4, 4, 1), (8, 8, 1))
    with pytest.raises(ValueError, match="tiles must fill"):
        join_mosaic(torch.zeros(4, 1, 4, 4, 1), (8, 6, 1))
