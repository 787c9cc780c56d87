"""What is most likely to be got wrong in M3D-NCA and is tested nowhere else."""

import torch

from ncaseg.config import M3DConfig
from ncaseg.models import build_model


def trained(**keywords):
    torch.manual_seed(0)
    model = build_model(M3DConfig(channels=6, hidden=8, **keywords))
    for level in model.levels:
        torch.nn.init.normal_(level.out_weight, std=0.3)
    return model


def states_of(model, image, **keywords):
    """The last state of every level."""
    seen = []
    hooks = [level.register_forward_hook(lambda _, __, state: seen.append(state)) for level in model.levels]
    model(image, **keywords)
    for hook in hooks:
        hook.remove()
    return seen


TWO = {"kernel_sizes": (3, 3), "scales": ((2, 2, 2),)}


def test_evaluation_mode_and_training_mode_are_one():
    model = trained(kernel_sizes=(3,), steps=(3,))
    image = torch.rand(2, 1, 5, 6, 7)
    assert torch.equal(model.train()(image, seed=0), model.eval()(image, seed=0))
    assert not list(model.buffers())  # no running statistics


def test_image_stays_frozen_at_every_level():
    image = torch.rand(1, 1, 8, 6, 10)
    coarse, fine = states_of(trained(steps=(3, 3), **TWO), image, seed=0)
    assert torch.equal(fine[..., 0], image[:, 0])
    assert torch.equal(coarse[..., 0], torch.nn.functional.max_pool3d(image, 2)[:, 0])


def test_steps_are_listed_from_coarse_to_fine():
    image = torch.rand(1, 1, 8, 8, 8)
    coarse, fine = states_of(trained(steps=(0, 2), **TWO), image, seed=0)
    assert not coarse[..., 1:].any() and fine[..., 1:].any()


def test_fire_mask_is_shared_by_all_channels_of_a_cell():
    (state,) = states_of(trained(kernel_sizes=(3,), steps=(1,)), torch.rand(1, 1, 9, 9, 9), seed=0)
    changed = state[..., 1:] != 0
    assert torch.equal(changed.any(-1), changed.all(-1))
    assert 0.4 < changed.any(-1).float().mean() < 0.6


def test_batch_statistics_couple_the_samples_and_instance_statistics_do_not():
    image = torch.rand(2, 1, 6, 6, 6)
    for norm, is_coupled in (("batch", True), ("instance", False), ("none", False)):
        model = trained(kernel_sizes=(3,), steps=(4,), norm=norm)
        alone, together = model(image[:1], seed=0), model(image, seed=0)[:1]
        assert torch.allclose(alone, together, atol=1e-5) != is_coupled


def test_border_is_reflected():
    # A filter that reads the neighbour before a cell finds, at the first cell, the second one.
    model = trained(kernel_sizes=(3,), steps=(1,), norm="none", fire_rate=1.0)
    (level,) = model.levels
    with torch.no_grad():
        for parameter in level.parameters():
            parameter.zero_()
        level.perceive_weight[0, 0, 0, 1, 1] = 1.0
        level.hidden_weight[0, 6] = 1.0  # the identity fills the first six entries
        level.out_weight[1, 0] = 1.0
    image = torch.rand(1, 1, 5, 4, 3)
    expected = torch.cat([image[:, :, 1:2], image[:, :, :-1]], dim=2)
    assert torch.equal(model(image, seed=0), expected)
