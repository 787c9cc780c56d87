"""Images cut into tiles that do not overlap, and put together again.

For models that are meant to see tiles of one size. The tiles know nothing of one another; :mod:`ncaseg.tiles` is for
results that equal those of the whole.
"""

from torch import Tensor

from ncaseg.levels import Triple


def cut_mosaic(image: Tensor, tile: Triple) -> Tensor:
    """The tiles of ``[B, C, X, Y, Z]`` as ``[N * B, C, *tile]``, the last axis of the grid of tiles running fastest.

    Raises:
        ValueError: an axis is no multiple of the tile's.
    """
    batch, channels, *size = image.shape
    if any(n % t for n, t in zip(size, tile, strict=True)):
        raise ValueError(f"image must have sizes that are multiples of the tile's {tile}; got {tuple(size)}")
    x, y, z = (n // t for n, t in zip(size, tile, strict=True))
    parts = image.reshape(batch, channels, x, tile[0], y, tile[1], z, tile[2])
    return parts.permute(2, 4, 6, 0, 1, 3, 5, 7).reshape(x * y * z * batch, channels, *tile)


def join_mosaic(tiles: Tensor, size: Triple) -> Tensor:
    """What :func:`cut_mosaic` cut from images of this size, as ``[B, C, *size]``.

    Raises:
        ValueError: the size is no multiple of the tiles', or they are not so many.
    """
    channels, tile = tiles.shape[1], tiles.shape[2:]
    x, y, z = (n // t for n, t in zip(size, tile, strict=True))
    if any(n % t for n, t in zip(size, tile, strict=True)) or x * y * z == 0 or len(tiles) % (x * y * z):
        raise ValueError(f"tiles must fill images of size {size}; got {tuple(tiles.shape)}")
    parts = tiles.reshape(x, y, z, -1, channels, *tile)
    return parts.permute(3, 4, 0, 5, 1, 6, 2, 7).reshape(-1, channels, *size)
