"""The denoising automata: published sizes, the wiring of channels, levels and attention."""

import doctest

import pytest
import torch

from ncaseg import config
from ncaseg.config import MedSegDiffConfig
from ncaseg.models import build_model
from ncaseg.models.medsegdiffnca import model as module
from ncaseg.models.medsegdiffnca.attended_rollout import attended_rollout
from ncaseg.models.medsegdiffnca.model import MedSegDiffNCA

COUNTS = {
    "medsegdiff-plain": 139_648,
    "medsegdiff-cbam": 206_118,
    "medsegdiff-multi": 410_880,
    "medsegdiff-multicbam": 412_236,
    "medsegdiff-authorcode": 412_236,
    "medsegdiff-ours": 412_236,
    "medsegdiff-oneshot": 412_236,
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_count_is_the_published_one(name):
    model = build_model(config.load_recipe(name).model)
    assert sum(p.numel() for p in model.parameters()) == COUNTS[name]
    assert all(level.spec.frozen_channels == 0 for level in model.levels)


def test_one_level_of_width_512():
    model = build_model(config.load_recipe("medsegdiff-plain", ["model.hidden=512"]).model)
    assert sum(p.numel() for p in model.parameters()) == 205_440
    assert doctest.testmod(module).failed == 0


def small(**more):
    options = {"channels": 16, "hidden": 24, "kernel_sizes": (3, 3), "steps": (3, 4), "scales": ((4, 4, 1),)}
    fixed = {
        "in_channels": 3,
        "ndim": 2,
        "pool": "trilinear",
        "perception": "dense",
        "num_filters": 2,
        "norm": "none",
        "pad": "none",
    }
    return MedSegDiffNCA(MedSegDiffConfig(**{**fixed, **options, **more}))


def trained(**more):
    """A model whose steps do something."""
    model = small(**more)
    for level in model.levels:
        torch.nn.init.normal_(level.out_weight, std=0.05)
    return model


def inputs(batch=2, size=(32, 24, 1), in_channels=3):
    return torch.rand(batch, in_channels, *size), torch.randn(batch, 1, *size), torch.rand(batch)


@pytest.mark.parametrize("attention", [False, True])
def test_an_untrained_model_answers_zero_and_returns_the_image_bit_for_bit(attention):
    image, noisy, time = inputs()
    answer, painted = small(attention=attention).denoise(image, noisy, time, seed=0)
    assert torch.equal(answer, torch.zeros_like(noisy)) and torch.equal(painted, image)


def states_at_the_start(model, *given):
    """The state that each level starts with."""
    found = []
    begin = model._begin

    def note(*args):
        found.append(begin(*args))
        return found[-1]

    model._begin = note
    model.denoise(*given, seed=0)
    return found


@pytest.mark.parametrize("position", [False, True])
def test_what_is_handed_from_level_to_level(position):
    model = trained(position=position)
    image, noisy, time = inputs()
    coarse, fine = states_at_the_start(model, image, noisy, time)
    assert coarse.shape == (2, 8, 6, 1, 16) and fine.shape == (2, 32, 24, 1, 16)
    both = torch.cat([image, noisy], 1)[..., 0]
    small_both = torch.nn.functional.interpolate(both, (8, 6), mode="bilinear", align_corners=False)
    torch.testing.assert_close(coarse[:, :, :, 0, 1:5].movedim(-1, 1), small_both)
    # Half-pixel centres, no smoothing: the mean of the central 2 x 2 of each 4 x 4 block.
    torch.testing.assert_close(coarse[0, 0, 0, 0, 1], image[0, 0, 1:3, 1:3, 0].mean())
    hidden = slice(5, 14 if position else 15)
    assert torch.equal(fine[..., 1:5].movedim(-1, 1), torch.cat([image, noisy], 1))
    assert not coarse[..., 0].any() and not coarse[..., hidden].any()
    with torch.no_grad():
        after = model._run(0, coarse, 0, 0, 0, 1)
    enlarged = after.repeat_interleave(4, 1).repeat_interleave(4, 2)
    assert torch.equal(fine[..., 0], enlarged[..., 0]) and fine[..., 0].any()
    assert torch.equal(fine[..., hidden], enlarged[..., hidden]) and fine[..., hidden].any()
    assert not torch.equal(enlarged[..., 1:5], fine[..., 1:5])  # nothing is frozen: level 0 has painted over it
    for state in (coarse, fine):
        assert torch.equal(state[..., -1], time.reshape(2, 1, 1, 1).expand(state.shape[:4]))
    if position:
        assert (fine[0, 0, 0, 0, -2], fine[0, -1, -1, 0, -2], fine[0, -1, 0, 0, -2]) == (0, 1, 0.5)


def rows_with_gradient(level):
    return level.out_weight.grad.abs().amax(1).nonzero().flatten().tolist()


@pytest.mark.parametrize("attention", [False, True])
def test_gradient_reaches_the_rows_it_must(attention):
    model = small(attention=attention, attention_reduction=2)  # wide enough that no ReLU is dead for all inputs
    image, noisy, time = inputs()

    def step():
        answer, painted = model.denoise(image, noisy, time, seed=0)
        (answer - 1).square().mean().add((painted - noisy).square().mean()).backward()

    step()
    assert rows_with_gradient(model.levels[1]) == [0, 1, 2, 3]
    assert rows_with_gradient(model.levels[0]) == [0]
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    model.zero_grad()
    step()
    assert rows_with_gradient(model.levels[1]) == list(range(16))
    # Image, noisy mask and time of the coarse level are written anew behind it; they act within the level.
    assert rows_with_gradient(model.levels[0]) == list(range(16))
    assert all(p.grad.any() for p in model.attention.parameters())


def test_fire_bits_differ_between_levels_and_passes():
    model = trained()
    image, noisy, time = inputs()
    one = model.denoise(image, noisy, time, seed=0)[0]
    assert torch.equal(one, model.denoise(image, noisy, time, seed=0)[0])
    assert not torch.equal(one, model.denoise(image, noisy, time, seed=0, first_step=model.num_steps)[0])
    assert not torch.equal(one, model.denoise(image, noisy, time, seed=1)[0])
    torch.manual_seed(3)
    free = model.denoise(image, noisy, time)[0]
    assert not torch.equal(free, model.denoise(image, noisy, time)[0])


@pytest.mark.parametrize("attention", [False, True])
def test_a_sample_is_the_same_alone_and_in_a_batch(attention):
    model = trained(attention=attention)
    image, noisy, time = inputs(batch=3, size=(20, 17, 1))
    with torch.no_grad():
        together = model.denoise(image, noisy, time, seed=0, first_sample=4)
        for i in range(3):
            one = slice(i, i + 1)
            alone = model.denoise(image[one], noisy[one], time[one], seed=0, first_sample=4 + i)
            assert torch.equal(alone[0], together[0][one]) and torch.equal(alone[1], together[1][one])


def test_three_levels_in_three_dimensions_and_sizes_that_do_not_divide():
    scales = ((2, 2, 1), (2, 2, 2))
    model = trained(in_channels=1, ndim=3, kernel_sizes=(3,) * 3, steps=(2,) * 3, scales=scales, attention=True)
    image, noisy, time = inputs(size=(9, 11, 5), in_channels=1)
    answer, painted = model.denoise(image, noisy, time, seed=0)
    assert answer.shape == painted.shape == noisy.shape
    answer.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_slices_are_automata_of_their_own():
    model = trained(attention=True)
    image, noisy, time = inputs(batch=1, size=(16, 16, 3))
    with torch.no_grad():
        whole, _ = model.denoise(image, noisy, time, seed=0, first_sample=2)
        for z in range(3):
            one = slice(z, z + 1)
            alone, _ = model.denoise(image[..., one], noisy[..., one], time, seed=0, first_sample=6 + z)
            assert torch.equal(alone, whole[..., one])


def test_attention_gives_the_same_bits_for_any_strides_of_the_state():
    """A slice among others and a slice alone lie in memory differently, and sums over cells must not see it."""
    model = trained(attention=True)
    nca, cbam = model.levels[0], model.attention[0]
    state = torch.randn(3, 16, 12, 16)
    spread = state.movedim(0, 2).contiguous().movedim(2, 0)
    assert spread.stride() != state.stride() and torch.equal(spread, state)
    found = [attended_rollout(each, nca, cbam, 4, seed=0) for each in (state, spread)]
    assert torch.equal(*found)


def test_the_control_is_one_pass_without_noise_and_time():
    model = trained()
    image, _, _ = inputs()
    _, painted = model.denoise(image, torch.zeros(2, 1, 32, 24, 1), torch.zeros(2), seed=3)
    assert torch.equal(model(image, seed=3), painted.mean(1, keepdim=True))
    logits, label = model.crop_forward(image, image[:, :1], seed=3)
    assert torch.equal(logits, model(image, seed=3)) and torch.equal(label, image[:, :1])


def test_keeping_fewer_states_changes_nothing():
    model = trained(attention=True)
    image, noisy, time = inputs()
    found = []
    for keep_every in (1, 2):
        model.zero_grad()
        model.denoise(image, noisy, time, seed=0, keep_every=keep_every)[0].square().sum().backward()
        found.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_wrong_input_is_named():
    model = small()
    image, noisy, time = inputs()
    with pytest.raises(ValueError, match=r"image must have shape \[B, 3, X, Y, Z\]; got \(2, 1"):
        model.denoise(noisy, noisy, time)
    with pytest.raises(ValueError, match=r"noisy must have shape \(2, 1, 32, 24, 1\); got \(2, 32"):
        model.denoise(image, noisy[:, 0], time)
    with pytest.raises(ValueError, match=r"time must have shape \(2,\); got \(\)"):
        model.denoise(image, noisy, time[0])
    with pytest.raises(ValueError, match="level 0 has 1 cells on axis X"):
        model.denoise(image[:, :, :4], noisy[:, :, :4], time)
    with pytest.raises(ValueError, match="model.channels must be at least 6 with this kind; got 5"):
        small(channels=5)
    with pytest.raises(ValueError, match="model.steps must have one entry per level"):
        small(steps=(3,))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.norm=batch", "model.norm must"),
        ("model.pad=replicate", "model.pad must"),
        ("model.channels=5", "model.channels must be at least 6"),
        ("model.patches=[[], []]", "model.patches must be left out"),
        ("model.kind=m3d", "model.attention must be left out"),
        ("model.activation=gelu", "model.activation must be one of"),
        ("model.attention_reduction=0", "model.attention_reduction must"),
        ("diffusion.timesteps=20", "diffusion.timesteps must be at least 21"),
        ("diffusion.schedule=sine", "diffusion.schedule must be one of"),
        ("diffusion.target=score", "diffusion.target must be one of"),
        ("diffusion.time=log", "diffusion.time must be one of"),
        ("diffusion.mask=soft", "diffusion.mask must be one of"),
        ("diffusion.clip=[0.0, 1.0]", "diffusion.clip must hold both"),
        ("diffusion.image_channels=4", "diffusion.image_channels must not exceed"),
        ("diffusion.image_weight=-1.0", "diffusion.image_weight must not be negative"),
        ("diffusion.sampler=euler", "diffusion.sampler must be one of"),
        ("diffusion.sample_steps=101", "diffusion.sample_steps must lie"),
    ],
)
def test_bad_settings_are_named(override, message):
    with pytest.raises(ValueError, match=message):
        config.load_recipe("medsegdiff-ours", [override])


def test_presets_are_what_they_say():
    paper = config.load_recipe("medsegdiff-multicbam")
    diffusion = paper.diffusion
    assert (diffusion.timesteps, diffusion.schedule, diffusion.target, diffusion.time) == (
        100,
        "linear",
        "eps",
        "fraction",
    )
    assert (diffusion.mask, diffusion.clip, diffusion.sampler, diffusion.sample_steps) == ("unit", (-1, 1), "ddpm", 100)
    assert (diffusion.noise_weight, diffusion.image_weight, diffusion.image_channels) == (1, 1, 0)
    assert (paper.train.optimizer, paper.train.lr, paper.train.batch_size, paper.train.weight_decay) == (
        "adamw",
        1e-4,
        8,
        0,
    )
    assert (paper.predict.samples, paper.data.size, paper.model.pool) == (10, (256, 256, 1), "trilinear")
    code = config.load_recipe("medsegdiff-authorcode")
    assert (code.model.activation, code.model.position, code.diffusion.image_channels) == ("leaky_relu", True, 1)
    assert (code.diffusion.image_weight, code.predict.samples, code.diffusion.mask) == (10, 5, "unit")
    ours = config.load_recipe("medsegdiff-ours")
    assert (ours.diffusion.mask, ours.predict.samples) == ("signed", 10)
    control = config.load_recipe("medsegdiff-oneshot")
    changes = [line for line in config.differences(ours, control) if not line.startswith("name")]
    assert changes == ["model.kind: 'medsegdiff' -> 'medsegdiff_oneshot'"]
