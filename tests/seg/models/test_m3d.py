"""M3D: published parameter counts, the hand-over between levels cell by cell, and the nesting of the patches."""

import itertools

import pytest
import torch

from ncakern import NCA
from ncaseg.config import M3DConfig
from ncaseg.levels import working_sizes
from ncaseg.models import build_model
from ncaseg.models.crops import crop, draw_offsets
from ncaseg.models.m3d import M3D
from ncaseg.models.multilevel import enlarge_state, pad_to_multiple, pool_image

TWO = ((2, 2, 2),)


def make(kind=M3D, **options):
    return kind(M3DConfig(**options))


def randomised(model, seed=0):
    """An untrained automaton does nothing; give its last layer weights."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for level in model.levels:
            level.out_weight.copy_(0.2 * torch.randn(level.out_weight.shape, generator=generator))
    return model


def volume(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("kernels", "count"),
    [((3,), 3712), ((5,), 5280), ((7,), 8768), ((7, 3), 12480), ((7, 3, 3), 16192), ((5, 3, 3, 3), 16416)],
)
def test_parameter_count_is_the_published_one(kernels, count):
    levels = len(kernels)
    model = build_model(M3DConfig(kernel_sizes=kernels, steps=(1,) * levels, scales=TWO * (levels - 1)))
    assert sum(p.numel() for p in model.parameters()) == count


def test_untrained_model_gives_zero_logits():
    logits = make(kernel_sizes=(3, 3), steps=(2, 2), scales=TWO)(volume(2, 1, 8, 8, 8), seed=0)
    assert logits.shape == (2, 1, 8, 8, 8) and torch.count_nonzero(logits) == 0


def test_one_level_is_one_rollout():
    model = randomised(make(kernel_sizes=(3,), steps=(4,), channels=6, hidden=8, out_channels=2))
    image = volume(2, 1, 5, 6, 7)
    state = torch.cat([image.movedim(1, -1), torch.zeros(2, 5, 6, 7, 5)], dim=-1)
    expected = model.levels[0](state, 4, seed=9)[..., 1:3].movedim(-1, 1)
    assert torch.equal(model(image, seed=9), expected)
    logits, label = model.crop_forward(image, torch.ones(2, 2, 5, 6, 7), seed=9)
    assert torch.equal(logits, expected) and label.shape == expected.shape


def test_two_levels_are_two_rollouts_and_a_hand_over():
    model = randomised(
        make(kernel_sizes=(5, 3), steps=(3, 2), scales=((2, 2, 3),), channels=6, hidden=8, in_channels=2)
    )
    image = volume(1, 2, 8, 6, 9)
    coarse = torch.nn.functional.max_pool3d(image, (2, 2, 3)).movedim(1, -1)
    state = model.levels[0](torch.cat([coarse, torch.zeros(1, 4, 3, 3, 4)], dim=-1), 3, seed=4)
    fine = torch.empty(1, 8, 6, 9, 6)
    fine[..., :2] = image.movedim(1, -1)
    for x, y, z in itertools.product(range(8), range(6), range(9)):
        fine[:, x, y, z, 2:] = state[:, x // 2, y // 2, z // 3, 2:]
    expected = model.levels[1](fine, 2, seed=4, first_step=3)[..., 2:3].movedim(-1, 1)
    torch.testing.assert_close(model(image, seed=4), expected, rtol=0, atol=0)


def test_levels_never_share_fire_bits():
    # With factor 1 and equal weights the levels are one automaton whose steps are counted through.
    two = randomised(make(kernel_sizes=(3, 3), steps=(2, 3), scales=((1, 1, 1),), channels=6, hidden=8))
    two.levels[1].load_state_dict(two.levels[0].state_dict())
    one = make(kernel_sizes=(3,), steps=(5,), channels=6, hidden=8)
    one.levels[0].load_state_dict(two.levels[0].state_dict())
    image = volume(1, 1, 5, 4, 6)
    assert torch.equal(two(image, seed=3), one(image, seed=3))
    assert not torch.equal(two(image, seed=3), one(image, seed=4))


NATIVE = (7, 11, 5)  # no factor divides it


@pytest.mark.parametrize(
    "scales", [((2, 2, 2),), ((2, 3, 1), (2, 2, 2)), ((2, 2, 1),) * 3], ids=["n2", "n3-mixed", "n4"]
)
@pytest.mark.parametrize("pool", ["max", "average", "nearest", "trilinear"])
def test_any_size_works_at_every_level_without_padding(scales, pool):
    levels = len(scales) + 1
    keywords = {"kernel_sizes": (3,) * levels, "steps": (2,) * levels, "scales": scales, "padding": "replicate"}
    model = randomised(make(channels=6, hidden=8, pad="none", pool=pool, **keywords))
    image = volume(2, 1, *NATIVE)
    assert model(image, seed=0).shape == image.shape
    logits, label = model.crop_forward(image, image, seed=0, generator=torch.Generator().manual_seed(0))
    assert logits.shape == label.shape == (2, 1, *working_sizes(NATIVE, scales)[-1])


def test_last_cell_of_a_level_spans_what_is_left():
    # 7 cells by twos: the coarse cells are 0-1, 2-3, 4-5 and 6 alone.
    model = make(kernel_sizes=(3, 3), steps=(2, 1), scales=((2, 1, 1),), channels=4, hidden=8, pad="none")
    randomised(model)
    image = volume(1, 1, 7, 4, 3)
    coarse = torch.nn.functional.max_pool3d(image, (2, 1, 1), ceil_mode=True).movedim(1, -1)
    assert coarse.shape[1:4] == (4, 4, 3) and torch.equal(coarse[:, 3, ..., 0], image[:, 0, 6])
    state = model.levels[0](torch.cat([coarse, torch.zeros(1, 4, 4, 3, 3)], dim=-1), 2, seed=4)
    fine = torch.cat([image.movedim(1, -1), state[:, [0, 0, 1, 1, 2, 2, 3], ..., 1:]], dim=-1)
    expected = model.levels[1](fine, 1, seed=4, first_step=2)[..., 1:2].movedim(-1, 1)
    assert torch.equal(model(image, seed=4), expected)


def test_whole_levels_in_training_are_the_forward_pass():
    keywords = {"kernel_sizes": (3, 3), "steps": (2, 2), "scales": TWO, "channels": 6, "hidden": 8}
    model = randomised(make(pad="none", patches=((), ()), **keywords))
    image = volume(2, 1, 7, 9, 6)
    logits, label = model.crop_forward(image, image, seed=5)
    assert torch.equal(logits, model(image, seed=5)) and torch.equal(label, image)


def test_patches_of_a_given_size_hold_whole_cells():
    model = make(
        kernel_sizes=(3, 3, 3), steps=(1, 1, 1), scales=TWO * 2, channels=4, hidden=4, pad="none", pool="nearest",
        patches=((), (3, 20, 3), (5, 4, 20)),
    )  # fmt: skip
    coordinates = torch.stack(torch.meshgrid(*(torch.arange(float(n)) for n in (13, 11, 14)), indexing="ij"))
    image = coordinates[:1].expand(300, 1, -1, -1, -1)
    _, label = model.crop_forward(image, image, seed=0, generator=torch.Generator().manual_seed(0))
    # Level 1 takes 3 of its 6 whole cells (of 7) on X; level 2 takes 5 of the 6 fine ones below.
    assert label.shape == (300, 1, 5, 4, 6)
    assert set(label[:, 0, 0, 0, 0].tolist()) == set(range(8))  # 2 * {0, 1, 2, 3} + {0, 1}


def test_patches_may_be_drawn_around_the_foreground():
    model = M3D(
        M3DConfig(
            kernel_sizes=(3,) * 3, steps=(1,) * 3, scales=((2, 2, 1), (2, 2, 2)), channels=4, hidden=4, pad="none"
        )
    )
    image = volume(40, 1, 21, 16, 12)
    label = torch.zeros_like(image)
    places = torch.randint(0, 12, (40, 3), generator=torch.Generator().manual_seed(3)).tolist()
    for sample, (x, y, z) in enumerate(places):
        label[sample, 0, x, y, z] = 1.0
    label[0, 0, 19, 15, 11] = 1.0  # at the edge: behind it lies half a cell, which no patch holds
    label[1] = 0.0  # nothing to aim at

    def found(chance):
        generator = torch.Generator().manual_seed(0)
        _, target = model.crop_forward(image, label, seed=0, generator=generator, foreground=chance)
        return target.flatten(1).any(dim=1)

    assert found(1.0).sum() == 39 and not found(1.0)[1]
    assert found(0.0).sum() < 15
    _, a = model.crop_forward(image, label, seed=0, generator=torch.Generator().manual_seed(0), foreground=1.0)
    assert len({tuple(sample.nonzero()[0].tolist()) for sample in a if sample.any()}) > 10  # not always the centre


def test_two_dimensions_treat_every_slice_alone():
    keywords = {"kernel_sizes": (3, 3), "steps": (2, 2), "scales": ((2, 2, 1),), "channels": 6, "hidden": 8}
    model = randomised(make(ndim=2, perception="dense", num_filters=2, norm="none", **keywords))
    image = volume(2, 1, 8, 6, 3)
    out = model(image, seed=1)
    assert out.shape == image.shape and model.levels[0].perceive_weight.shape == (2, 6, 6, 3, 3)
    for sample, z in itertools.product(range(2), range(3)):
        alone = model(image[sample : sample + 1, ..., z : z + 1], seed=1, first_sample=3 * sample + z)
        torch.testing.assert_close(alone[0, ..., 0], out[sample, ..., z], rtol=1e-5, atol=1e-6)
    member = model(image[1:], seed=1, first_sample=1)
    torch.testing.assert_close(member[0], out[1], rtol=1e-5, atol=1e-6)
    assert model(volume(1, 1, 8, 6, 1), seed=0).shape == (1, 1, 8, 6, 1)  # one slice is enough


def test_members_of_an_ensemble_are_named_by_first_sample():
    model = randomised(make(kernel_sizes=(3, 3), steps=(2, 2), scales=TWO, channels=6, hidden=8, norm="instance"))
    image = volume(1, 1, 6, 6, 6)
    together = model(image.expand(3, -1, -1, -1, -1), seed=1)
    alone = torch.cat([model(image, seed=1, first_sample=i) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)
    assert not torch.equal(alone[0], alone[1])


@pytest.mark.parametrize("mode", ["replicate", "zeros"])
def test_sizes_that_do_not_divide_are_padded_and_cut_back(mode):
    model = randomised(make(kernel_sizes=(3, 3), steps=(2, 2), scales=((2, 3, 1),), channels=6, hidden=8, pad=mode))
    image = volume(1, 1, 7, 7, 5)
    filled = torch.zeros(1, 1, 8, 9, 5)
    filled[:, :, :7, :7] = image
    if mode == "replicate":
        filled[:, :, 7:] = filled[:, :, 6:7]
        filled[:, :, :, 7:] = filled[:, :, :, 6:7]
    assert torch.equal(model(image, seed=2), model(filled, seed=2)[:, :, :7, :7])


class Traced(M3D):
    """Starts with the coarse coordinates in channels 3 to 5 of the state, and records what every level gets."""

    def _seed_state(self, image):
        state = super()._seed_state(image)
        grid = torch.meshgrid(*(torch.arange(float(n)) for n in state.shape[1:4]), indexing="ij")
        state[..., 4:7] = torch.stack(grid, dim=-1)
        self.seen = []
        return state

    def _run(self, level, state, **keywords):
        self.seen.append(state)
        return super()._run(level, state, **keywords)


@pytest.mark.parametrize(
    ("scales", "patch"),
    [
        (((2, 2, 2),), (3, 4, 5)),
        (((4, 4, 4),), (3, 2, 3)),
        (((2, 2, 1), (3, 2, 2)), (3, 4, 2)),
        (((2, 2, 2), (2, 2, 2), (2, 2, 2)), (3, 3, 2)),
    ],
    ids=["n2-d2", "n2-d4", "n3-mixed", "n4-d2"],
)
def test_patches_are_nested_crops_of_image_state_and_label(scales, patch):
    levels = len(scales) + 1
    # Image: the full-resolution coordinates and noise. Untrained levels change nothing, whatever their steps.
    model = make(
        Traced,
        in_channels=4,
        out_channels=3,
        channels=8,
        hidden=4,
        kernel_sizes=(3,) * levels,
        steps=(1,) * levels,
        scales=scales,
    )
    size = tuple(p * f for p, f in zip(patch, model.factors(0), strict=True))
    coordinates = torch.stack(torch.meshgrid(*(torch.arange(float(n)) for n in size), indexing="ij"))
    image = torch.cat([coordinates.expand(2, -1, -1, -1, -1), volume(2, 1, *size)], dim=1)
    label = image[:, :3].clone()
    logits, target = model.crop_forward(image, label, seed=0, generator=torch.Generator().manual_seed(1))

    corners = []
    for level, state in enumerate(model.seen):
        assert state.shape[1:4] == patch
        factors = torch.tensor(model.factors(level), dtype=torch.float32)
        coarse = torch.tensor(model.factors(0)) // torch.tensor(model.factors(level))
        pooled = pool_image(image, model.factors(level)).movedim(1, -1)
        cells = (state[..., :3] + 1) / factors - 1  # max pooling keeps the last coordinate of a block
        corners.append(cells[:, 0, 0, 0].long())
        for sample, corner in enumerate(corners[-1].tolist()):
            box = tuple(slice(c, c + p) for c, p in zip(corner, patch, strict=True))
            assert torch.equal(state[sample, ..., :4], pooled[sample][box])
            assert torch.equal(state[sample, ..., 4:7].long(), cells[sample].long() // coarse)
    for sample, corner in enumerate(corners[-1].tolist()):
        box = (sample, slice(None), *(slice(c, c + p) for c, p in zip(corner, patch, strict=True)))
        assert torch.equal(target[sample], label[box])
        assert torch.equal(logits[sample].long(), label[box].long() // torch.tensor(model.factors(0)).view(3, 1, 1, 1))
    for outer, inner, scale in zip(corners, corners[1:], scales, strict=False):
        offset = inner - outer * torch.tensor(scale)
        assert (offset >= 0).all() and (offset <= torch.tensor(patch) * (torch.tensor(scale) - 1)).all()
    assert not torch.equal(corners[-1][0], corners[-1][1])  # two samples, two crops


def test_crops_are_reproducible_by_generator():
    model = randomised(make(kernel_sizes=(3, 3), steps=(1, 1), scales=TWO, channels=6, hidden=4))
    image = volume(2, 1, 8, 8, 8)

    def run(seed):
        return model.crop_forward(image, image, seed=0, generator=torch.Generator().manual_seed(seed))

    assert all(torch.equal(a, b) for a, b in zip(run(5), run(5), strict=True))
    assert not torch.equal(run(5)[1], run(6)[1])


def test_gradients_reach_every_level():
    model = randomised(make(kernel_sizes=(3, 3), steps=(2, 2), scales=TWO, channels=6, hidden=8))
    image = volume(2, 1, 8, 8, 8)
    logits, target = model.crop_forward(image, image, seed=0, generator=torch.Generator().manual_seed(0))
    (logits - target).square().mean().backward()
    for level in model.levels:
        for parameter in (level.perceive_weight, level.hidden_weight, level.out_weight):
            assert torch.count_nonzero(parameter.grad) > 0


def test_offsets_reach_both_ends_and_stay_inside():
    draws = draw_offsets(4000, (5, 3, 4), (3, 3, 1), torch.Generator().manual_seed(0))
    columns = list(zip(*draws, strict=True))
    assert [sorted(set(column)) for column in columns] == [[0, 1, 2], [0], [0, 1, 2, 3]]
    assert all(abs(columns[0].count(value) / 4000 - 1 / 3) < 0.05 for value in range(3))


def test_helpers_by_hand():
    x = torch.arange(24.0).reshape(1, 1, 2, 3, 4)
    assert pool_image(x, (2, 3, 2)).flatten().tolist() == [21.0, 23.0]
    noise = volume(1, 1, 8, 8, 8)
    assert torch.equal(pool_image(pool_image(noise, (2, 2, 2)), (2, 2, 2)), pool_image(noise, (4, 4, 4)))
    assert pool_image(x, (2, 3, 3)).flatten().tolist() == [22.0, 23.0]
    assert pool_image(x, (2, 3, 3), "average").flatten().tolist() == [11.0, 13.0]
    assert pool_image(x, (2, 3, 3), "nearest").flatten().tolist() == [0.0, 3.0]
    assert pool_image(x, (2, 3, 2), "trilinear").flatten().tolist() == [10.5, 12.5]
    state = torch.arange(2.0).reshape(1, 1, 1, 2, 1)
    assert enlarge_state(state, (1, 2, 3), (1, 2, 6))[0, 0, :, :, 0].tolist() == [[0, 0, 0, 1, 1, 1]] * 2
    assert pad_to_multiple(x, (1, 3, 2), "zeros") is x
    assert pad_to_multiple(x, (1, 2, 1), "zeros").shape == (1, 1, 2, 4, 4)
    assert pad_to_multiple(x, (1, 2, 1), "none") is x
    assert enlarge_state(state, (1, 2, 3), (1, 1, 5))[0, 0, :, :, 0].tolist() == [[0, 0, 0, 1, 1]]
    patches = enlarge_state(torch.cat([state, state]), (1, 2, 3), (1, 1, 3), [(0, 0, 1), (0, 1, 3)])
    assert patches[:, 0, 0, :, 0].tolist() == [[0, 0, 1], [1, 1, 1]]
    cut = crop(torch.cat([x, x]), [(0, 0, 0), (1, 1, 2)], (1, 2, 2))
    assert cut.flatten().tolist() == [0, 1, 4, 5, 18, 19, 22, 23]


def test_model_is_made_of_public_automata():
    assert all(isinstance(level, NCA) for level in make(kernel_sizes=(3,), steps=(1,)).levels)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((1, 9, 9, 9), r"image must have shape \[B, 1, X, Y, Z\]; got \(1, 9, 9, 9\)"),
        ((1, 2, 9, 9, 9), r"image must have shape \[B, 1, X, Y, Z\]"),
        ((1, 1, 9, 9, 6), "level 0 has 3 cells on axis Z, and kernel 7 .* at least 4"),
    ],
)
def test_image_that_does_not_fit_is_named(shape, words):
    model = make(kernel_sizes=(7, 3), steps=(1, 1), scales=TWO)
    with pytest.raises(ValueError, match=words):
        model(torch.zeros(shape), seed=0)
    with pytest.raises(ValueError, match=words):
        model.crop_forward(torch.zeros(shape), torch.zeros(shape), seed=0)


def test_patch_that_does_not_fit_names_axis_and_level():
    model = make(kernel_sizes=(3, 5), steps=(1, 1), scales=TWO, patches=((), (8, 2, 8)))
    with pytest.raises(ValueError, match="level 1 has 2 cells on axis Y, and kernel 5 .* at least 3"):
        model.crop_forward(torch.zeros(1, 1, 16, 16, 16), torch.zeros(1, 1, 16, 16, 16), seed=0)
    assert model(torch.zeros(1, 1, 16, 16, 16), seed=0).shape == (1, 1, 16, 16, 16)
    with pytest.raises(ValueError, match="model.patches must have one entry per level"):
        make(kernel_sizes=(3,), steps=(1,), patches=((), ()))


def test_label_and_arguments_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"label must have shape \(1, 1, 8, 8, 8\)"):
        make(kernel_sizes=(3,), steps=(1,)).crop_forward(torch.zeros(1, 1, 8, 8, 8), torch.zeros(1, 1, 8, 8, 9), seed=0)
    with pytest.raises(ValueError, match="model.scales must have one entry less than levels"):
        make(kernel_sizes=(3, 3), steps=(1, 1))
    with pytest.raises(ValueError, match="channels must be at least"):
        make(kernel_sizes=(3,), steps=(1,), channels=1)
