"""The two permutations are each other's inverse, and views."""

import torch

from ncaseg.models.layout import to_channels_first, to_channels_last


def test_channel_axis_moves_to_the_end_and_back():
    image = torch.arange(2 * 3 * 4 * 5 * 6).reshape(2, 3, 4, 5, 6)
    state = to_channels_last(image)
    assert state.shape == (2, 4, 5, 6, 3)
    assert state[1, 3, 2, 4, 2] == image[1, 2, 3, 2, 4]
    assert torch.equal(to_channels_first(state), image)
    assert state.data_ptr() == image.data_ptr()
