"""The fire mask: published known answers, and an independent implementation cell by cell."""

import itertools

import pytest
import torch
from kern.oracle import cell_fires

import ncakern
from ncakern._philox import philox4x32

# Random123, kat_vectors: counter, key, output of philox4x32-10.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def _words(text: str) -> tuple[torch.Tensor, ...]:
    return tuple(torch.tensor(int(word, 16)) for word in text.split())


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS, ids=["zeros", "ones", "pi"])
def test_philox_gives_published_answers(counter: str, key: str, expected: str) -> None:
    assert philox4x32(_words(counter), _words(key)) == _words(expected)


@pytest.mark.parametrize("seed", [0, 1, -1, 2**62 + 12345, -(2**63)])
@pytest.mark.parametrize(
    ("size", "origin", "extent"),
    [((3, 9), (0, 0), (3, 9)), ((2, 5), (7, 6), (11, 17)), ((2, 3, 5), (1, 4, 3), (4, 9, 10))],
    ids=["2d", "2d-tile", "3d-tile"],
)
def test_mask_equals_scalar_oracle(seed: int, size: tuple, origin: tuple, extent: tuple) -> None:
    where = {"step": 5, "fire_rate": 0.3}
    mask = ncakern.fire_mask((2, *size), seed=seed, first_sample=3, origin=origin, extent=extent, **where)
    for cell in itertools.product(range(2), *map(range, size)):
        position = tuple(o + i for o, i in zip(origin, cell[1:], strict=True))
        expected = cell_fires(position, sample=3 + cell[0], seed=seed, extent=extent, **where)
        assert mask[cell].item() == expected, f"cell {cell}"


@pytest.mark.parametrize(("fire_rate", "expected"), [(0.0, 0.0), (1.0, 1.0)])
def test_rates_zero_and_one_are_exact(fire_rate: float, expected: float) -> None:
    mask = ncakern.fire_mask((2, 64, 64), seed=3, step=0, fire_rate=fire_rate)
    assert mask.float().mean().item() == expected


def test_fire_rate_is_the_probability_of_an_update() -> None:
    mask = ncakern.fire_mask((4, 128, 128), seed=11, step=2, fire_rate=0.3)
    # 65,536 draws: the standard deviation of the mean is 0.0018.
    assert abs(mask.float().mean().item() - 0.3) < 0.009


def test_mask_depends_on_seed_step_and_sample() -> None:
    def draw(**changes: int) -> torch.Tensor:
        return ncakern.fire_mask((1, 16, 16), **{"seed": 1, "step": 0, "fire_rate": 0.5, "first_sample": 0, **changes})

    masks = [draw(), draw(seed=2), draw(seed=1 + 2**32), draw(step=1), draw(first_sample=1)]
    for a, b in itertools.combinations(masks, 2):
        assert 64 < (a != b).sum() < 192  # 256 cells, half of which should differ
    assert torch.equal(draw(), draw())


def test_tensor_seed_draws_the_same_bits() -> None:
    seed = 0x0123456789ABCDEF
    expected = ncakern.fire_mask((1, 8, 8), seed=seed, step=0, fire_rate=0.5)
    assert torch.equal(ncakern.fire_mask((1, 8, 8), seed=torch.tensor(seed), step=0, fire_rate=0.5), expected)
