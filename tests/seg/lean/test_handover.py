"""Hand-over between levels in numpy against the same in torch, whole and by rows."""

import numpy as np
import pytest
import torch

from ncaseg.lean.handover import enlarge_rows, image_rows
from ncaseg.levels import ceil_divide, pad_size
from ncaseg.models.multilevel import enlarge_state, pad_to_multiple, pool_image

IMAGE = np.random.default_rng(0).random((2, 11, 7, 9), np.float32) - 0.3  # negative values too: padding adds zeros
FACTORS = (4, 2, 3)


@pytest.mark.parametrize("pad", ["replicate", "zeros", "none"])
@pytest.mark.parametrize("pool", ["max", "nearest", "average", "trilinear"])
@pytest.mark.parametrize("factors", [FACTORS, (2, 1, 1), (1, 1, 1)])
def test_image_of_a_level_is_that_of_torch(pad, pool, factors):
    full = pad_to_multiple(torch.from_numpy(IMAGE)[None], FACTORS, pad)
    expected = pool_image(full, factors, pool)[0].permute(1, 2, 3, 0).numpy()
    size = pad_size(IMAGE.shape[1:], [FACTORS], pad)
    level = ceil_divide(size, factors)
    assert expected.shape[:3] == level
    whole = image_rows(IMAGE, size, factors, range(level[0]), pad=pad, pool=pool)
    np.testing.assert_allclose(whole, expected, atol=0 if pool in ("max", "nearest") else 1e-6, rtol=0)
    for first, last in ((0, 1), (1, level[0]), (level[0] - 1, level[0])):
        part = image_rows(IMAGE, size, factors, range(first, last), pad=pad, pool=pool)
        assert np.array_equal(part, whole[first:last])


def test_factors_larger_than_the_image_leave_one_cell():
    found = image_rows(IMAGE, IMAGE.shape[1:], (20, 20, 20), range(1), pad="none", pool="max")
    assert np.array_equal(found[0, 0, 0], IMAGE.max((1, 2, 3)))


@pytest.mark.parametrize("rows", [range(0, 11), range(3, 4), range(5, 11)])
def test_enlarged_rows_are_those_of_torch(rows):
    coarse = np.random.default_rng(1).random((3, 4, 3, 5), np.float32)
    size = (11, 7, 9)
    expected = enlarge_state(torch.from_numpy(coarse)[None], FACTORS, size)[0].numpy()[rows.start : rows.stop]
    first = rows.start // FACTORS[0]
    assert np.array_equal(enlarge_rows(coarse[first:], FACTORS, size, rows, first), expected)
