"""cDAL's automata: the start, the wiring of levels, noise on coarse grids, modulation against float64, memory."""

import dataclasses
import doctest

import pytest
import torch
from helpers import assert_matches

from ncaseg.config import CdalConfig, CdalModelConfig
from ncaseg.models.cdal import nca
from ncaseg.models.cdal.layers import LatentMap
from ncaseg.models.cdal.modulation import Modulation
from ncaseg.models.cdal.nca import NCAGenerator, sample_cells

SMALL = {
    "timesteps": 4,
    "latent": 5,
    "latent_width": 7,
    "channels": 10,
    "hidden": 24,
    "kernel_sizes": (3,),
    "steps": (3,),
}
TWO = {"kernel_sizes": (3, 3), "steps": (3, 4), "scales": ((4, 4, 1),)}
SOLID = {"ndim": 3, "kernel_sizes": (5, 3), "steps": (2, 3), "scales": ((2, 2, 2),)}


def small(**more):
    """Entries of ``cdal`` go there, all others to ``model``."""
    entries = {"ndim": 2, "norm": "none", "num_filters": 2, "pool": "average", **SMALL, **more}
    names = {field.name for field in dataclasses.fields(CdalConfig)}
    own = {name: entries.pop(name) for name in list(entries) if name in names}
    return NCAGenerator(CdalModelConfig(**entries), CdalConfig(**{"latent_layers": 1, **own}))


def trained(**more):
    """A generator whose steps do something, and whose modulation is far from 1 and 0."""
    model = small(**more)
    for level in model.levels:
        torch.nn.init.normal_(level.out_weight, std=0.1)
    for modulation in model.modulations:
        torch.nn.init.normal_(modulation.time.weight, std=0.5)
        if modulation.latent is not None:
            torch.nn.init.normal_(modulation.latent.weight, std=0.5)
    return model


def inputs(model, batch=2, size=(17, 12)):
    x = torch.randn(batch, model.label_channels, *size)
    tau = torch.arange(batch) % model.timesteps
    z = torch.randn(batch, model.latent) if model.latent else None
    return x, tau, torch.randn(batch, model.image_channels, *size), z


def one(given, i):
    return [None if tensor is None else tensor[i : i + 1] for tensor in given]


@pytest.mark.parametrize(("more", "size"), [({}, (17, 12)), (TWO, (17, 12)), (SOLID, (7, 9, 6))], ids=str)
def test_an_untrained_generator_answers_zero_so_that_its_loss_is_one(more, size):
    model = small(out_channels=2, **more)
    given = inputs(model, size=size)
    answer = model(*given, seed=0)
    assert torch.equal(answer, torch.zeros_like(given[0]))
    labels = torch.where(torch.rand(answer.shape) > 0.5, 1.0, -1.0)
    assert (labels - answer).square().mean().item() == 1.0
    assert doctest.testmod(nca).failed == 0


def test_answers_lie_within_one_and_frozen_rows_do_not_matter():
    model = trained()
    given = inputs(model)
    answer = model(*given, seed=0)
    assert answer.shape == given[0].shape and 0 < answer.abs().max() < 1
    with torch.no_grad():
        model.levels[0].out_weight[: model.given] = 7.0
    assert torch.equal(model(*given, seed=0), answer)


@pytest.mark.parametrize("place", range(4))
def test_label_time_image_and_latent_all_matter(place):
    model = trained()
    given = list(inputs(model))
    before = model(*given, seed=0)
    given[place] = (given[place] + 1) % model.timesteps if place == 1 else given[place] + 1
    assert not torch.allclose(model(*given, seed=0), before, atol=1e-3)


def test_the_latent_counts_by_its_direction_only():
    features = LatentMap(5, 7, 2)
    z = torch.randn(3, 5)
    torch.testing.assert_close(features(100 * z), features(z))
    assert not torch.allclose(features(-z), features(z))
    scale, shift = Modulation(8, 2, 7)(torch.tensor([0, 1, 1]), features(z))
    assert scale.shape == shift.shape == (3, 8) and (scale - 1).abs().max() < 0.3 and shift.abs().max() < 0.3
    with pytest.raises(ValueError, match="latent_layers must be at least 1; got 0"):
        LatentMap(5, 7, 0)


def test_noise_keeps_its_deviation_on_a_coarse_grid():
    noise = torch.randn(4, 2, 64, 96, 1)
    coarse = sample_cells(noise, (4, 4, 1))
    assert coarse.shape == (4, 2, 16, 24, 1)
    assert coarse.std().item() == pytest.approx(1.0, abs=0.03)  # 3 sd: 3072 numbers
    assert torch.nn.functional.avg_pool2d(noise[..., 0], 4).std().item() == pytest.approx(0.25, abs=0.01)
    neighbours = (coarse[:, :, 1:] * coarse[:, :, :-1]).mean().item()
    assert abs(neighbours) < 0.06


def test_cells_are_the_middles_of_their_blocks():
    line = torch.arange(11.0).view(1, 1, 11, 1, 1)
    assert sample_cells(line, (4, 1, 1)).flatten().tolist() == [2, 6, 10]
    assert sample_cells(line[:, :, :9], (4, 1, 1)).flatten().tolist() == [2, 6, 8]  # the last block is one cell
    assert sample_cells(line, (3, 2, 2)).flatten().tolist() == [1, 4, 7, 10]
    assert sample_cells(line, (1, 1, 1)) is line
    assert sample_cells(line, (20, 1, 1)).flatten().tolist() == [10]


def test_what_is_handed_from_level_to_level():
    model = trained(**TWO, in_channels=2)
    states, begin = [], model._begin

    def note(*args):
        states.append(begin(*args))
        return states[-1]

    model._begin = note
    x, tau, image, z = inputs(model, size=(16, 8))
    model(x, tau, image, z, seed=0)
    coarse, fine = (state.squeeze(3).movedim(-1, 1) for state in states)
    assert torch.equal(coarse[:, :1], x[:, :, 2::4, 2::4]) and torch.equal(fine[:, :1], x)
    torch.testing.assert_close(coarse[:, 1:3], torch.nn.functional.avg_pool2d(image, 4))
    assert torch.equal(fine[:, 1:3], image) and not coarse[:, 3:].any()
    blocks = fine[:, 3:].unfold(2, 4, 4).unfold(3, 4, 4)
    assert torch.equal(blocks, blocks[..., :1, :1].expand_as(blocks)) and blocks.any()


@pytest.mark.parametrize(("more", "size"), [(TWO, (17, 12)), ({**SOLID, "latent": 0}, (7, 9, 6))], ids=["2D", "3D"])
def test_kernel_equals_the_reference_in_float64(monkeypatch, more, size):
    model = trained(**more)
    given = inputs(model, batch=3, size=size)

    def run(dtype, model):
        model.zero_grad()
        cast = [t if t is None or not t.is_floating_point() else t.detach().to(dtype) for t in given]
        cast[0].requires_grad_()
        answer = model(*cast, seed=5)
        (answer * torch.linspace(-1, 1, answer.numel(), dtype=dtype).view_as(answer)).sum().backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
        return {"answer": answer, "x": cast[0].grad, **gradients}

    fast = run(torch.float32, model)
    with monkeypatch.context() as patch:
        patch.setenv("NCAKERN_BACKEND", "reference")
        plain = run(torch.float32, model)
    exact = run(torch.float64, model.double())
    for name in exact:
        assert_matches(fast[name], plain[name], exact[name], name=name)
    assert all(fast[f"modulations.{level}.time.weight"].any() for level in range(len(model.levels)))


@pytest.mark.parametrize(("more", "size"), [(TWO, (17, 12)), (SOLID, (7, 9, 6))], ids=["2D", "3D"])
def test_a_sample_is_the_same_alone_and_in_a_batch(more, size):
    without, with_latent = trained(**more, latent=0), trained(**more)
    for model in (without, with_latent):
        given = inputs(model, batch=3, size=size)
        with torch.no_grad():
            together = model(*given, seed=0, first_sample=4)
            alone = torch.cat([model(*one(given, i), seed=0, first_sample=4 + i) for i in range(3)])
        # The dense layers of the latent are one product for the batch, whose rounding depends on its size.
        torch.testing.assert_close(alone, together, rtol=1e-5 if model.latent else 0, atol=1e-6 if model.latent else 0)


@pytest.mark.parametrize(("more", "size"), [({}, (33, 20)), ({"ndim": 3}, (9, 11, 10))], ids=["2D", "3D"])
def test_only_states_are_kept(more, size):
    model = trained(**more, channels=16, steps=(24,))
    given, kept = inputs(model, size=size), {}

    def note(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    def measure(keep_every):
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            answer = model(*given, seed=0, keep_every=keep_every)
        parameters = sum(p.numel() * 4 for p in model.parameters())
        cell_steps = 24 * 2 * torch.Size(size).numel()
        return answer, (sum(kept.values()) - parameters) / (4 * 16 * cell_steps)

    answer, share = measure(1)
    assert 0.5 < share <= 1.1
    again, less = measure(6)
    assert torch.equal(again, answer) and less < 0.35


def test_fire_bits_are_named_by_seed_and_drawn_without_one():
    model = trained(**TWO)
    given = inputs(model)
    assert torch.equal(model(*given, seed=3), model(*given, seed=3))
    assert not torch.equal(model(*given, seed=3), model(*given, seed=4))
    torch.manual_seed(1)
    first = model(*given)
    assert not torch.equal(first, model(*given))
    torch.manual_seed(1)
    assert torch.equal(first, model(*given))


def test_it_learns_a_label_that_the_image_shows():
    torch.manual_seed(0)
    model = small(steps=(6,), fire_rate=1.0)
    optimizer = torch.optim.Adam(model.parameters(), 2e-2)
    image = torch.randn(4, 1, 12, 12)
    label = image.sign()
    losses = []
    for step in range(60):
        x, tau, z = torch.randn(4, 1, 12, 12), torch.full((4,), step % 4), torch.randn(4, 5)
        loss = (label - model(x, tau, image, z, seed=step)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == 1.0 and losses[-1] < 0.3


def test_mixed_precision_reaches_the_dense_layers_only():
    model = trained()
    given = inputs(model)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        answer = model(*given, seed=0)
    assert answer.dtype == torch.float32
    torch.testing.assert_close(answer, model(*given, seed=0), rtol=0, atol=0.05)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({0: torch.zeros(2, 2, 8, 8)}, r"x must have shape \[B, 1, X, Y\]; got \(2, 2, 8, 8\)"),
        ({1: torch.zeros(3, dtype=torch.int64)}, r"tau must have shape \(2,\); got \(3,\)"),
        ({2: torch.zeros(2, 1, 8, 9)}, r"image must have shape \(2, 1, 8, 8\); got \(2, 1, 8, 9\)"),
        ({3: None}, r"z must have shape \(2, 5\); got None"),
        ({3: torch.zeros(2, 4)}, r"z must have shape \(2, 5\); got \(2, 4\)"),
    ],
)
def test_wrong_inputs_are_named(change, words):
    model = trained()
    given = list(inputs(model, size=(8, 8)))
    for place, tensor in change.items():
        given[place] = tensor
    with pytest.raises(ValueError, match=words):
        model(*given)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="channels must hold noisy label, image, logits: at least 7; got 6"):
        trained(out_channels=2, channels=6)
    with pytest.raises(ValueError, match="model.steps must have one entry per level"):
        trained(steps=(2, 3))
    with pytest.raises(ValueError, match="model.scales must keep the third axis"):
        trained(kernel_sizes=(3, 3), steps=(2, 3), scales=((2, 2, 2),))
    with pytest.raises(ValueError, match="level 0 has 1 cells on axis X"):
        model = trained(**TWO)
        model(*inputs(model, size=(4, 12)))
    with pytest.raises(ValueError, match=r"z must be None for a generator without a latent; got shape \(2, 5\)"):
        model = trained(latent=0)
        model(*inputs(model)[:3], torch.zeros(2, 5))
