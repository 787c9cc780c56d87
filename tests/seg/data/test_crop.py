"""Random boxes: the same of image and target, where they may lie, and the border of what is too small."""

import pytest
import torch

from ncaseg.data.crop import random_box, repeat_border


def case(size=(9, 11, 6)):
    """An image that counts its cells, and a target with two cells of foreground in one corner."""
    image = torch.arange(float(torch.Size(size).numel())).view(1, *size)
    target = torch.zeros(1, *size)
    target[0, 0, 0, :2] = 1.0
    return image, target


def boxes(size, places, count=60, **more):
    image, target = case(**more)
    return [random_box(image, target, size, places, torch.Generator().manual_seed(seed)) for seed in range(count)]


@pytest.mark.parametrize("places", ["uniform", "balanced"])
def test_image_and_target_are_cut_alike(places):
    image, target = case()
    for box, mask in boxes((4, 5, 0), places):
        assert box.shape == mask.shape == (1, 4, 5, 6)
        first = int(box[0, 0, 0, 0])
        x, y = first // 66, first // 6 % 11
        assert torch.equal(box, image[:, x : x + 4, y : y + 5]) and torch.equal(mask, target[:, x : x + 4, y : y + 5])


def test_uniform_boxes_reach_every_place_and_a_seed_names_one():
    starts = {int(box[0, 0, 0, 0]) for box, _ in boxes((7, 11, 6), "uniform")}
    assert starts == {0, 66, 132}
    image, target = case()
    one, two = (random_box(image, target, (3, 3, 3), "uniform", torch.Generator().manual_seed(4))[0] for _ in range(2))
    assert torch.equal(one, two)


def test_half_of_the_balanced_boxes_are_centred_on_foreground():
    count = 400
    found = boxes((1, 1, 1), "balanced", count)
    share = sum(mask.any().item() for _, mask in found) / count
    assert abs(share - 0.5) < 0.075  # 3 sd; of the cells 2 in 594 are foreground
    assert sum(mask.any().item() for _, mask in boxes((1, 1, 1), "uniform", count)) / count < 0.05
    hit = boxes((5, 5, 4), "balanced")
    assert all(int(box[0, 0, 0, 0]) == 0 for box, mask in hit if mask.sum() == 2)  # as far as the border allows


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_case_of_one_kind_takes_what_there_is(value):
    image, target = case()
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        _, mask = random_box(image, torch.full_like(target, value), (2, 2, 2), "balanced", generator)
        assert torch.equal(mask, torch.full((1, 2, 2, 2), value))


def test_what_is_too_small_repeats_its_border():
    image, target = case((3, 4, 2))
    box, mask = random_box(image, target, (5, 4, 5), "balanced", torch.Generator().manual_seed(0))
    assert box.shape == mask.shape == (1, 5, 4, 5)
    assert torch.equal(box[:, 1:4, :, 1:3], image)
    assert torch.equal(box[:, 0], box[:, 1]) and torch.equal(box[:, 4], box[:, 3])
    assert torch.equal(box[..., 0], box[..., 1]) and torch.equal(box[..., 4], box[..., 2])
    assert mask.unique().tolist() == [0.0, 1.0]
    assert repeat_border(image, (2, 4, 1)) is image
