"""Training and sampling of the denoiser: losses by hand, the traps, resume, and samples that depend on nothing else."""

import doctest
import json

import numpy as np
import pytest
import torch

from ncaseg import config
from ncaseg.checkpoint.model import load_model, load_state
from ncaseg.data.dataset import load_case
from ncaseg.data.index import find_cases
from ncaseg.data.lesions import write_lesions
from ncaseg.diffusion import losses
from ncaseg.models import build_model
from ncaseg.sampling import medsegdiff
from ncaseg.sampling.medsegdiff import clock, decode, decode_uncut, denoiser, encode, sample_masks, sample_volume
from ncaseg.training import loop
from ncaseg.training.batches import load_batch
from ncaseg.training.logs import read_rows
from ncaseg.training.tasks.medsegdiff import BIN_COLUMNS, COLUMNS, MaskDiffusion, batch_loss

TINY = [
    "model.channels=8",
    "model.hidden=12",
    "model.steps=[2, 2]",
    "model.attention=true",
    "data.size=[16, 16, 1]",
    "data.validation_fraction=0.25",
    "train.batch_size=2",
    "train.accumulate=2",
    "train.steps=6",
    "train.ema_start=2",
    "train.checkpoint_every=3",
    "train.validate_every=3",
    "diffusion.validate_steps=2",
    "diffusion.sample_steps=3",
    "diffusion.image_weight=1.0",
]


def tiny(*overrides):
    return config.load_recipe("medsegdiff-small", [*TINY, *overrides])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_lesions(tmp_path_factory.mktemp("lesions"), 8, seed=0, size=(24, 20))


def made(cfg, *, std=0.1):
    """A model whose answer depends on everything."""
    torch.manual_seed(7)
    model = build_model(cfg.model)
    for level in model.levels:
        torch.nn.init.normal_(level.out_weight, std=std)
    return model


def batch(batch_size=3, size=(16, 12, 1)):
    image = torch.rand(batch_size, 3, *size)
    return image, (torch.rand(batch_size, 1, *size) > 0.6).float()


def test_losses_by_hand():
    answer, target = torch.randn(2, 1, 3, 4, 1), torch.randn(2, 1, 3, 4, 1)
    weight = torch.tensor([0.5, 2.0], dtype=torch.float64)
    each = [(answer[i] - target[i]).square().mean() * weight[i] for i in range(2)]
    assert losses.answer_loss(answer, target, weight).item() == pytest.approx(sum(each).item() / 2)
    painted = torch.randn(2, 3, 3, 4, 1)
    expected = sum((painted[:, c : c + 1] - target).square().mean() for c in range(3))
    assert losses.painted_loss(painted, target).item() == pytest.approx(expected.item())
    assert losses.painted_loss(painted, target, 1).item() == pytest.approx(
        (painted[:, :1] - target).square().mean().item()
    )
    assert doctest.testmod(losses).failed == 0


def test_masks_are_compared_with_their_own_sample_only():
    painted, x0 = torch.randn(4, 3, 5, 6, 1), torch.randn(4, 1, 5, 6, 1)
    turned = x0[torch.tensor([1, 2, 3, 0])]
    assert losses.painted_loss(painted, x0) != losses.painted_loss(painted, turned)
    assert losses.answer_loss(x0 * 2, x0) != losses.answer_loss(x0 * 2, turned)
    for wrong in (x0[:, 0], x0.expand(4, 3, 5, 6, 1), x0[:1]):
        with pytest.raises(ValueError, match="x0 must have shape"):
            losses.painted_loss(painted, wrong)
        with pytest.raises(ValueError, match="target must have the shape of answer"):
            losses.answer_loss(x0, wrong)
    with pytest.raises(ValueError, match="channels must lie between 0 and 3"):
        losses.painted_loss(painted, x0, 4)


@pytest.mark.parametrize("mask", ["signed", "unit"])
def test_loss_before_the_first_step(mask):
    cfg = tiny('diffusion.target="eps"', f"diffusion.mask={mask}")
    model = build_model(cfg.model)
    image, target = batch(8, (32, 32, 1))
    loss, parts = batch_loss(model, image, target, cfg, 0, 0)
    x0 = target * 2 - 1 if mask == "signed" else target
    assert parts["answer_loss"][0] == pytest.approx(1.0, abs=0.05)  # the answer is 0, the noise has variance 1
    expected = sum((image[:, c] - x0[:, 0]).square().mean().item() for c in range(3))
    assert parts["painted_loss"][0] == pytest.approx(expected, rel=1e-5)
    assert loss.item() == pytest.approx(parts["answer_loss"][0] + parts["painted_loss"][0], rel=1e-6)
    loss.backward()
    assert model.levels[1].out_weight.grad.abs().amax(1).nonzero().flatten().tolist() == [0, 1, 2, 3]
    assert model.levels[0].out_weight.grad.abs().amax(1).nonzero().flatten().tolist() == [0]


def test_weights_of_the_loss():
    image, target = batch()
    base = tiny()
    model = made(base)
    _, parts = batch_loss(model, image, target, base, 1, 0)
    for override, noise, painted in (
        ("diffusion.image_weight=0.0", 1.0, 0.0),
        ("diffusion.noise_weight=0.5", 0.5, 1.0),
    ):
        loss, _ = batch_loss(model, image, target, tiny(override), 1, 0)
        expected = noise * parts["answer_loss"][0] + painted * parts["painted_loss"][0]
        assert loss.item() == pytest.approx(expected, rel=1e-6)
    _, weighted = batch_loss(model, image, target, tiny("diffusion.snr_gamma=5.0"), 1, 0)
    assert weighted["answer_loss"] != parts["answer_loss"] and weighted["painted_loss"] == parts["painted_loss"]


def test_errors_of_the_implied_mask_are_sorted_by_time(monkeypatch):
    cfg = tiny()
    image, target = batch(5)
    monkeypatch.setattr(torch, "randint", lambda *args, **more: torch.tensor([0, 19, 20, 99, 80]))
    _, parts = batch_loss(build_model(cfg.model), image, target, cfg, 0, 0)
    assert [len(parts[name]) for name in BIN_COLUMNS] == [2, 1, 0, 0, 2]
    assert parts["x0_error_0"] == [1.0, 1.0]  # x_0 of -1 and +1, and the untrained answer is 0


def test_every_sample_has_its_time_and_noise_and_they_are_reproducible():
    cfg = tiny()
    model, (image, target) = made(cfg), batch()
    one = batch_loss(model, image, target, cfg, 3, 1)[0]
    assert torch.equal(one, batch_loss(model, image, target, cfg, 3, 1)[0])
    assert not torch.equal(one, batch_loss(model, image, target, cfg, 3, 0)[0])
    assert not torch.equal(one, batch_loss(model, image, target, cfg, 4, 1)[0])


@pytest.mark.parametrize(
    "overrides", [[], ['diffusion.target="eps"', "diffusion.sampler=ddpm"], ["diffusion.time=index"]]
)
def test_a_sample_is_the_same_alone_and_in_a_batch(overrides):
    cfg = tiny(*overrides)
    model, (image, _) = made(cfg), batch()
    together = sample_masks(model, image, cfg.diffusion, seed=5, first_sample=2)
    for i in range(3):
        alone = sample_masks(model, image[i : i + 1], cfg.diffusion, seed=5, first_sample=2 + i)
        assert torch.equal(alone, together[i : i + 1])
    other = sample_masks(model, image, cfg.diffusion, seed=6, first_sample=2)
    assert not torch.equal(other, together)
    assert together.min() >= -1 and together.max() <= 1


def test_an_ensemble_is_its_members(data, monkeypatch):
    cfg = tiny()
    model = made(cfg)
    volume = load_case(find_cases(data)[0], cfg.data)
    together = sample_volume(model, volume, cfg, 3, seed=1)
    assert together.shape == (3, 1, 16, 16, 1) and not torch.equal(together[0], together[1])
    monkeypatch.setattr(medsegdiff, "MEMBER_BUDGET_BYTES", 1)
    assert torch.equal(sample_volume(model, volume, cfg, 3, seed=1), together)
    with pytest.raises(ValueError, match="samples must be at least 1"):
        sample_volume(model, volume, cfg, 0, seed=1)


def test_codings():
    mask = torch.tensor([0.0, 1.0])
    signed, unit = tiny().diffusion, tiny("diffusion.mask=unit").diffusion
    assert encode(mask, signed).tolist() == [-1, 1] and encode(mask, unit).tolist() == [0, 1]
    for how in (signed, unit):
        assert torch.equal(decode(encode(mask, how), how), mask)
    below = torch.tensor([-0.5])
    assert decode(below, unit).item() == 0 and decode_uncut(below, unit).item() == -0.5
    assert clock(torch.tensor([0, 99]), signed).tolist() == [0, pytest.approx(0.99)]
    assert clock(torch.tensor([99]), tiny("diffusion.time=index").diffusion).tolist() == [99]
    with pytest.raises(TypeError, match="model must be a MedSegDiffNCA"):
        denoiser(build_model(config.load_recipe("demo").model))


def rows(run):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read_rows(run / "log.jsonl")]


def test_training_logs_and_continues_bit_for_bit(data, tmp_path, monkeypatch):
    cfg = tiny()
    whole = loop.train(cfg, data, tmp_path / "whole")
    log = rows(tmp_path / "whole")
    assert tuple(read_rows(tmp_path / "whole" / "log.jsonl")[0]) == (*loop.COLUMNS, *COLUMNS)
    assert [row["val_dice"] is None for row in log] == [True, True, False, True, True, False]
    assert (tmp_path / "whole" / "log.csv").read_text().startswith("step,epoch,loss,lr,grad_norm,seconds,val_dice,ans")

    draw = loop.draw_batches

    def stop(ids, cfg, step):
        if step == 4:
            raise KeyboardInterrupt
        return draw(ids, cfg, step)

    monkeypatch.setattr(loop, "draw_batches", stop)
    with pytest.raises(KeyboardInterrupt):
        loop.train(cfg, data, tmp_path / "cut")
    monkeypatch.setattr(loop, "draw_batches", draw)
    again = loop.train(cfg, data, tmp_path / "cut")
    assert rows(tmp_path / "cut") == log
    first, second = (load_state(path.parent / "state.pt") for path in (whole, again))
    assert all(torch.equal(first["model"][k], second["model"][k]) for k in first["model"])
    assert all(torch.equal(first["average"][k], second["average"][k]) for k in first["average"])
    model, loaded, metadata = load_model(again)
    assert loaded == cfg and metadata["weights"] == "average"
    assert not torch.equal(model.levels[0].out_weight, first["model"]["levels.0.out_weight"])


def test_attention_computes_in_float32_whatever_the_precision(data, tmp_path):
    for precision in ("float32", "bfloat16"):
        cfg = tiny("model.attention=true", "train.steps=2", f"train.precision={precision}")
        loop.train(cfg, data, tmp_path / precision)
    assert rows(tmp_path / "float32") == rows(tmp_path / "bfloat16")


def test_microbatches_add_up(data):
    cfg = tiny()
    model, store = made(cfg), loop.CaseStore(find_cases(data), cfg.data)
    ids = list(store._cases)
    loss, learned, parts = MaskDiffusion(cfg, model).accumulate(store, [(ids[0],), (ids[1],)], 0)
    got = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    each = []
    for number in range(2):
        image, target = load_batch(store, (ids[number],), cfg, 0, number)
        each.append(batch_loss(model, image, target, cfg, 0, number)[0])
    (sum(each) / 2).backward()
    assert learned and loss == pytest.approx(sum(x.item() for x in each) / 2) and len(parts["answer_loss"]) == 2
    for a, p in zip(got, model.parameters(), strict=True):
        torch.testing.assert_close(a, p.grad, rtol=1e-4, atol=1e-6)


def test_the_loss_falls_on_synthetic_lesions(tmp_path):
    folder = write_lesions(tmp_path / "data", 8, seed=3, size=(16, 16))
    cfg = tiny("model.hidden=32", "train.steps=40", "train.lr=3e-3", "train.accumulate=1", "train.batch_size=4")
    loop.train(cfg, folder, tmp_path / "run")
    loss = np.array([row["loss"] for row in read_rows(tmp_path / "run" / "log.jsonl")])
    assert loss[-8:].mean() < 0.6 * loss[:4].mean()


def test_the_control_trains_as_other_segmenters_do(data, tmp_path):
    cfg = tiny("model.kind=medsegdiff_oneshot", "train.steps=2")
    loop.train(cfg, data, tmp_path)
    log = read_rows(tmp_path / "log.jsonl")
    assert tuple(log[0]) == loop.COLUMNS and 0.5 < log[0]["loss"] < 2.5
    assert json.loads((tmp_path / "split.json").read_text())["train"]
