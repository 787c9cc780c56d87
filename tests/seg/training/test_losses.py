"""Dice + BCE against the specification's numbers and against sums written out by hand."""

import doctest
import math

import pytest
import torch

from ncaseg.training import losses
from ncaseg.training.losses import LOSSES, dice_bce, dice_focal, m3d_upstream, sample_dice_bce

LOGITS = torch.tensor([[-2.0, 0.5, 1.5, -0.3], [3.0, -1.0, 0.0, 2.2]], dtype=torch.float64)
TARGET = torch.tensor([[0, 1, 1, 0], [1, 0, 1, 1]], dtype=torch.float64)


def volumes(rows):
    return rows.reshape(2, 1, 1, 2, 2)  # [B, C_out, X, Y, Z]


def test_published_test_vector():
    loss = dice_bce(volumes(LOGITS), volumes(TARGET))
    assert loss.item() == pytest.approx(0.505135, abs=1e-6)
    bce = 0.314607
    assert dice_bce(volumes(LOGITS), volumes(TARGET), smooth=0.0).item() == pytest.approx(0.210361 + bce, abs=1e-6)


def test_examples_in_docstrings_run():
    result = doctest.testmod(losses)
    assert result.attempted > 0 and result.failed == 0


def test_upstream_focal_and_true_focal_are_the_published_numbers():
    x, t = volumes(LOGITS), volumes(TARGET)
    assert m3d_upstream(x, t).item() == pytest.approx(0.431768, abs=1e-6)
    assert m3d_upstream(x, t, weights=(0.0, 1.0)).item() == pytest.approx(0.314607 * 0.766798, abs=1e-6)
    assert dice_focal(x, t).item() == pytest.approx(0.190528 + 0.046697, abs=1e-6)
    assert dice_focal(x, t, gamma=0.0).item() == pytest.approx(dice_bce(x, t).item(), abs=1e-12)


def test_upstream_focal_is_cross_entropy_for_real_volumes():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 1, 80, 80, 6, generator=generator, dtype=torch.float64)
    t = (torch.rand(x.shape, generator=generator) < 0.1).double()
    assert 0 < dice_bce(x, t).item() - m3d_upstream(x, t).item() < 3e-5


@pytest.mark.parametrize("name", LOSSES)
def test_weights_apply_to_the_two_parts(name):
    x, t = volumes(LOGITS), volumes(TARGET)
    dice, term = (LOSSES[name](x, t, weights=weights).item() for weights in ((1.0, 0.0), (0.0, 1.0)))
    alone = (0.221644, 0.138325)  # of the two samples, by hand
    assert dice == pytest.approx(sum(alone) / 2 if name == "sample_dice_bce" else 0.190528, abs=1e-6)
    assert LOSSES[name](x, t, weights=(1.5, 0.5)).item() == pytest.approx(1.5 * dice + 0.5 * term, rel=1e-9)


def test_dice_per_sample_is_the_mean_of_the_samples_own():
    x, t = volumes(LOGITS), volumes(TARGET)
    only_dice = {"weights": (1.0, 0.0)}
    alone = [dice_bce(x[i : i + 1], t[i : i + 1], **only_dice).item() for i in range(2)]
    assert sample_dice_bce(x, t, **only_dice).item() == pytest.approx(sum(alone) / 2, abs=1e-12)
    assert sample_dice_bce(x, t, weights=(0.0, 1.0)).item() == dice_bce(x, t, weights=(0.0, 1.0)).item()


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_of_every_loss_are_those_of_finite_differences(name):
    x = volumes(LOGITS).clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: LOSSES[name](x, volumes(TARGET)), (x,))


def test_dice_is_over_the_whole_batch():
    # Sample means of Dice would give another number: the samples have different sizes of foreground.
    per_sample = [dice_bce(volumes(LOGITS)[i : i + 1], volumes(TARGET)[i : i + 1]).item() for i in range(2)]
    assert abs(sum(per_sample) / 2 - 0.505135) > 1e-3


def test_one_cell_by_hand():
    # p = 0.5, t = 1: Dice part 1 - (2 * 0.5 + 1) / (0.5 + 1 + 1) = 0.2, cross-entropy log 2.
    loss = dice_bce(torch.zeros(1, 1, 1), torch.ones(1, 1, 1))
    assert loss.item() == pytest.approx(0.2 + math.log(2), abs=1e-6)


def test_channels_are_summed():
    both = dice_bce(torch.cat([volumes(LOGITS)] * 2, dim=1), torch.cat([volumes(TARGET)] * 2, dim=1))
    assert both.item() == pytest.approx(2 * 0.505135, abs=2e-6)


def test_empty_channel_is_skipped_only_on_request():
    logits = torch.cat([volumes(LOGITS)] * 2, dim=1).requires_grad_()
    target = torch.cat([volumes(TARGET), torch.zeros_like(volumes(TARGET))], dim=1)
    skipped = dice_bce(logits, target, skip_empty=True)
    assert skipped.item() == pytest.approx(0.505135, abs=1e-6)
    skipped.backward()
    assert torch.count_nonzero(logits.grad[:, 1]) == 0 and torch.count_nonzero(logits.grad[:, 0]) == 8
    assert dice_bce(logits, target).item() > 1.0


def test_all_channels_empty_gives_zero_without_gradient():
    logits = volumes(LOGITS).requires_grad_()
    loss = dice_bce(logits, torch.zeros_like(logits), skip_empty=True)
    assert loss.item() == 0.0 and not loss.requires_grad


def test_extreme_logits_stay_finite():
    logits = torch.tensor([[[1e4, -1e4]]], requires_grad=True)
    loss = dice_bce(logits, torch.tensor([[[0.0, 1.0]]]))
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(logits.grad).all()


def test_shapes_must_be_equal_not_broadcastable():
    with pytest.raises(ValueError, match=r"target must have the shape of logits \(2, 1, 1, 2, 2\)"):
        dice_bce(volumes(LOGITS), volumes(TARGET)[:1])
