"""cDAL at work: coding, training with and without a discriminator, resume, sampling, prediction, scores."""

import doctest
import json
import math

import numpy as np
import pytest
import torch
from seg.tiny import task_of

from ncaseg import config
from ncaseg.checkpoint.model import load_model, load_state
from ncaseg.data.dataset import CaseStore, load_case
from ncaseg.data.index import find_cases
from ncaseg.data.lesions import write_lesions
from ncaseg.data.phantom import write_phantoms
from ncaseg.evaluation.cases import find_labelled_cases, score_cases
from ncaseg.evaluation.text import format_table
from ncaseg.inference.case import answer
from ncaseg.inference.files import predict_path
from ncaseg.models import build_model
from ncaseg.sampling import cdal
from ncaseg.sampling.cdal import (
    decode,
    encode,
    from_samples,
    generator_of,
    sample_labels,
    sample_members,
    sample_volume,
    to_samples,
)
from ncaseg.streams import stream
from ncaseg.training import loop
from ncaseg.training.batches import draw_batches
from ncaseg.training.logs import read_rows
from ncaseg.training.tasks import make_task
from ncaseg.training.tasks.cdal import Adversarial, label_loss

TINY = {
    "model": {"kind": "cdal", "ndim": 2, "norm": "none", "in_channels": 3},
    "data": {
        "modalities": [0, 1, 2],
        "intensity": "stored",
        "size": [16, 16, 1],
        "fit": "resize",
        "validation_fraction": 0.25,
    },
    "train": {"steps": 4, "batch_size": 2, "accumulate": 2, "lr": 1e-3, "betas": [0.5, 0.9], "checkpoint_every": 2},
    "cdal": {
        "latent": 4,
        "latent_width": 8,
        "latent_layers": 2,
        "width": 8,
        "multipliers": [1, 2],
        "blocks": 1,
        "encoder_blocks": 1,
        "d_width": 4,
        "d_time_width": 8,
        "attention_index": 2,
        "r1_every": 2,
    },
}
CLASSES = {
    "model": {"in_channels": 1, "out_channels": 2},
    "data": {"modalities": [0], "labels": [1, 2], "size": [12, 12, 0], "intensity": "percentiles"},
    "train": {"batch_size": 1, "slices": 2},
}


def tiny(*changes, **more):
    """The recipe; a change is {section: {key: value}}, keywords go to the section cdal."""
    tree = {"name": "tiny", **{section: dict(values) for section, values in TINY.items()}}
    for change in (*changes, {"cdal": more}):
        for section, values in change.items():
            tree.setdefault(section, {}).update(values)
    return config.from_dict(tree)


NCA = {
    "model": {"channels": 8, "hidden": 8, "kernel_sizes": [3, 3], "steps": [2, 2], "scales": [[2, 2, 1]]},
    "cdal": {"generator": "nca"},
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_lesions(tmp_path_factory.mktemp("lesions"), 8, seed=0, size=(16, 16))


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    return write_phantoms(tmp_path_factory.mktemp("phantoms"), 4, seed=0, size=(12, 12, 12))


def rows(run):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read_rows(run / "log.jsonl")]


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return (len(a) == len(b) and all(map(same, a, b))) if isinstance(a, (list, tuple)) else a == b


def awake(cfg):
    """A model whose answer depends on all that goes in."""
    model = build_model(cfg.model, cfg.cdal)
    for p in model.parameters():
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=p[0].numel() ** -0.5)
    return model


def one_step(cfg, folder, step=0):
    """The task after one optimiser step, and its outcome."""
    cases = find_cases(folder)
    store = CaseStore(cases, cfg.data)
    task = make_task(cfg, build_model(cfg.model, cfg.cdal))
    ids = [case.id for case in cases][:4]
    return task, task.step(store, [tuple(ids[:2]), tuple(ids[2:])], step, lambda settings: settings.lr)


def test_examples_in_docstrings_run():
    assert doctest.testmod(cdal).attempted > 0 and doctest.testmod(cdal).failed == 0


def test_coding_of_one_label_and_its_inverse():
    mask = torch.tensor([0.0, 1.0]).reshape(1, 1, 2)
    for inverted, want in ((False, [-1, 1]), (True, [1, -1])):
        cfg = tiny(inverted=inverted)
        coded = encode(mask, cfg)
        assert coded.flatten().tolist() == want and torch.equal(decode(coded, cfg.cdal), mask)


def test_coding_of_classes_has_the_background_first():
    masks = torch.tensor([[1.0, 0, 0], [0, 1, 0]])[None]
    cfg = tiny(CLASSES)
    coded = encode(masks, cfg)
    assert coded[0].tolist() == [[-1, -1, 1], [1, -1, -1], [-1, 1, -1]]
    assert torch.equal(decode(coded, cfg.cdal)[:, 1:], masks)


def test_volumes_become_slices_and_back():
    x = torch.arange(2 * 3 * 4 * 5 * 6).reshape(2, 3, 4, 5, 6)
    flat = to_samples(x, 2)
    assert flat.shape == (12, 3, 4, 5) and torch.equal(flat[7], x[1, ..., 1])
    assert torch.equal(from_samples(flat, 6, 2), x) and to_samples(x, 3) is x


@pytest.mark.parametrize("change", [{}, CLASSES, NCA], ids=["pictures", "classes", "nca"])
def test_first_losses_are_those_of_not_knowing(pictures, scans, change):
    cfg = tiny(change, r1_gamma=0.0)
    task, outcome = one_step(cfg, scans if change is CLASSES else pictures)
    assert outcome.loss == pytest.approx(1.0, abs=1e-4) and outcome.parts["mse"] == pytest.approx([1, 1], abs=1e-4)
    for name in ("d_real", "d_fake"):
        assert outcome.parts[name] == pytest.approx([math.log(2)] * 2, abs=1e-3)
    assert outcome.parts["d_lr"] == [1.25e-4] and set(outcome.parts) <= set(task.columns)


def test_log_has_the_parts_of_the_losses(pictures, tmp_path):
    loop.train(tiny(), pictures, tmp_path)
    log = rows(tmp_path)
    assert [row["r1"] is None for row in log] == [False, True, False, True]
    assert all(row["attention_min"] <= row["attention_mean"] <= row["attention_max"] for row in log)
    assert log[0]["adversarial"] is None and log[0]["attention_std"] > 0


@pytest.mark.parametrize(
    "more",
    [
        {"d_updates": "apart", "pair": "shared_noise", "fake": "forward", "posterior_noise": False, "offset": 0.0},
        {"attention": "normalized"},
        {"attention": "sigmoid", "loss": "bce"},
        {"attention": "shuffled", "loss": "mse_dice"},
        {"attention": "zero", "discriminator": "none", "latent": 0},
        {"attention": "constant", "attention_value": 0.02, "discriminator": "none", "latent_on": False},
        {"adversarial_weight": 0.5, "inverted": True},
    ],
    ids=lambda more: "-".join(map(str, more.values())),
)
def test_every_switch_trains(pictures, more):
    task, outcome = one_step(tiny(**more), pictures)
    assert outcome.is_finite and outcome.learned
    assert ("adversarial" in outcome.parts) == (more.get("adversarial_weight", 0) > 0)
    assert (task.discriminator is None) == (more.get("discriminator") == "none")
    if task.discriminator is not None:
        assert all(p.requires_grad for p in task.discriminator.parameters())


def test_automata_need_room_and_a_norm_of_each_sample(pictures):
    with pytest.raises(ValueError, match="model.channels must be at least 5: image, noisy label and logits; got 4"):
        tiny(NCA, {"model": {"channels": 4}})
    with pytest.raises(ValueError, match='model.norm must be "none" or "instance" with cdal.generator "nca"'):
        tiny(NCA, {"model": {"norm": "batch", "ndim": 3, "scales": [[2, 2, 2]]}})
    _, outcome = one_step(tiny(NCA, {"model": {"norm": "instance"}}), pictures)
    assert outcome.is_finite and outcome.learned


def test_cross_entropy_keeps_its_gradient_where_the_estimate_has_saturated():
    logits = torch.tensor([[[-40.0]]], requires_grad=True)
    label_loss(logits, torch.ones(1, 1, 1), tiny(loss="bce").cdal).backward()
    assert torch.tanh(logits).item() == -1.0 and logits.grad.item() == pytest.approx(-2.0)


def test_dice_is_that_of_all_samples_together():
    """One sample without the structure changes it as little as one more cell would."""
    how = tiny(loss="mse_dice").cdal
    x0 = torch.tensor([[[1.0, -1.0]], [[-1.0, -1.0]]])
    logits = torch.tensor([[[40.0, -40.0]], [[0.0, -40.0]]])  # of 1, -1; 0, -1
    assert label_loss(logits, x0, how).item() == pytest.approx(1 / 4 + 1 - (2 * 1 + 1) / (1 + 1.5 + 1))


def test_what_the_generator_sees_follows_the_attention(pictures, monkeypatch):
    seen = {}
    for kind, value in (("off", 1.0), ("zero", 0.0), ("constant", 0.25)):
        cfg = tiny(discriminator="none", attention=kind, attention_value=value)
        calls = []
        real = Adversarial._logits
        monkeypatch.setattr(
            Adversarial, "_logits", lambda self, x, *a, real=real, calls=calls: calls.append(x) or real(self, x, *a)
        )
        task, _ = one_step(cfg, pictures)
        monkeypatch.setattr(Adversarial, "_logits", real)
        seen[kind] = calls[0], task
    # The noise is the same whatever is shown, so that inputs differ by the label alone.
    task = seen["off"][1]
    store = CaseStore(find_cases(pictures), task.cfg.data)
    batch = task._load(store, tuple(case.id for case in find_cases(pictures)[:2]), 0, 0)
    tau = task._draw(batch, 0, 1).tau
    signal = task.schedule.signal[tau + 1].float().reshape(-1, 1, 1, 1) * batch.x0
    torch.testing.assert_close(seen["off"][0] - seen["zero"][0], signal, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(seen["constant"][0] - seen["zero"][0], 0.25 * signal, atol=1e-5, rtol=1e-4)


def test_generator_learns_nothing_from_the_discriminator_unless_asked(pictures):
    """With the attention off, the same generator comes out with and without a discriminator."""
    torch.manual_seed(0)
    alone, _ = one_step(tiny(discriminator="none", attention="off"), pictures)
    torch.manual_seed(0)
    beside, _ = one_step(tiny(attention="off"), pictures)
    torch.manual_seed(0)
    against, _ = one_step(tiny(attention="off", adversarial_weight=1.0), pictures)
    weights = [dict(task.model.state_dict()) for task in (alone, beside, against)]
    assert same(weights[0], weights[1]) and not same(weights[1], weights[2])


def test_the_discriminator_learns(pictures):
    """At level 0 labels are clean, and an untrained generator answers zero: that is easily told apart."""
    cfg = tiny({"train": {"lr": 1e-9}}, attention="off", r1_gamma=0.0, d_lr=3e-3, timesteps=1)
    task, first = one_step(cfg, pictures)
    store, ids = CaseStore(find_cases(pictures), cfg.data), [case.id for case in find_cases(pictures)]
    for step in range(1, 10):
        last = task.step(store, [tuple(ids[:2]), tuple(ids[2:4])], step, lambda settings: settings.lr)
    first, last = (sum(o.parts["d_real"] + o.parts["d_fake"]) for o in (first, last))
    assert last < 0.5 * first


def test_losses_by_hand():
    how = tiny().cdal
    x0 = torch.tensor([[[1.0, -1.0, 1.0, -1.0]]])
    logits = torch.tensor([[[math.atanh(0.5), -40.0, 40.0, 0.0]]])  # of 0.5, -1, 1, 0
    squared = (0.25 + 0 + 0 + 1) / 4
    assert label_loss(logits, x0, how).item() == pytest.approx(squared)
    dice = (2 * (0.75 + 1) + 1) / (2 + 0.75 + 1 + 0.5 + 1)
    assert label_loss(logits, x0, tiny(loss="mse_dice").cdal).item() == pytest.approx(squared + 1 - dice)
    entropy = label_loss(logits, x0, tiny(loss="bce").cdal).item()
    assert label_loss(logits, x0, tiny(loss="bce_dice").cdal).item() == pytest.approx(entropy + 1 - dice)
    entropy = -(math.log(0.75) + math.log(0.5)) / 4
    assert label_loss(logits, x0, tiny(loss="bce").cdal).item() == pytest.approx(entropy)


RICH = {
    "train": {
        "ema_decay": 0.9,
        "validate_every": 2,
        "schedule": "cosine",
        "lr_interval": "epoch",
        "lr_final": 0.05,
        "grad_clip": 1.0,
    },
    "augment": {"flip": [0.5, 0.5, 0.0]},
}


@pytest.mark.parametrize(
    "change", [{"cdal": {"adversarial_weight": 0.1}}, RICH, NCA], ids=["adversarial", "average-and-validation", "nca"]
)
def test_cut_run_continues_bit_for_bit(pictures, tmp_path, monkeypatch, change):
    cfg = tiny(change)
    loop.train(cfg, pictures, tmp_path / "whole")

    def stop(ids, cfg, step):
        if step == 3:
            raise KeyboardInterrupt
        return draw_batches(ids, cfg, step)

    monkeypatch.setattr(loop, "draw_batches", stop)
    with pytest.raises(KeyboardInterrupt):
        loop.train(cfg, pictures, tmp_path / "cut")
    monkeypatch.undo()
    loop.train(cfg, pictures, tmp_path / "cut")
    states = [load_state(tmp_path / name / "state.pt") for name in ("whole", "cut")]
    assert {"discriminator", "discriminator_optimizer"} <= states[0].keys()
    assert same(*states) and rows(tmp_path / "whole") == rows(tmp_path / "cut")


def test_seeds_differ_and_validation_moves_nothing(pictures, tmp_path):
    """Two seeds differ; the same seed gives the same bits whether or not masks are sampled in between."""
    change = {"train": {"validate_every": 1}}
    for name, cfg in (("a", tiny()), ("b", tiny(change)), ("c", tiny({"train": {"seed": 1}}))):
        loop.train(cfg, pictures, tmp_path / name)
    a, b, c = (load_state(tmp_path / name / "state.pt") for name in "abc")
    assert same(a, b | {}) and not same(a["model"], c["model"])
    assert all(row["val_dice"] is not None for row in rows(tmp_path / "b"))


def test_both_rates_follow_epochs_to_their_floors(pictures, tmp_path):
    change = {"train": {"schedule": "cosine", "lr_interval": "epoch", "steps": 6, "lr_final": 0.5}}
    loop.train(tiny(change, d_lr=1e-2, d_lr_final=0.1), pictures, tmp_path)  # six training cases: two steps per epoch
    log = rows(tmp_path)
    assert [row["epoch"] for row in log] == [0, 0, 1, 1, 2, 2]
    share = [1, 1, 0.75, 0.75, 0.25, 0.25]
    assert [row["lr"] for row in log] == pytest.approx([1e-3 * (0.5 + 0.5 * s) for s in share])
    assert [row["d_lr"] for row in log] == pytest.approx([1e-2 * (0.1 + 0.9 * s) for s in share])


def test_not_finite_loss_stops_the_run_and_saves_nothing(pictures, tmp_path):
    with pytest.raises(FloatingPointError, match="training stopped at step .* no good state was saved"):
        loop.train(tiny({"train": {"lr": 1e30, "checkpoint_every": 0}}, latent=0), pictures, tmp_path)
    assert not (tmp_path / "state.pt").exists() and not (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize("change", [{}, CLASSES, NCA], ids=["picture", "slices", "nca"])
def test_a_sample_does_not_depend_on_its_batch(change):
    cfg = tiny(change)
    model = awake(cfg)
    depth = 3 if change is CLASSES else 1
    image = torch.rand(1, cfg.model.in_channels, 8, 8, depth).expand(3, -1, -1, -1, -1)
    together = sample_labels(model, image, cfg, seed=5, first_sample=2)
    assert together.shape == (3, 3 if change is CLASSES else 1, 8, 8, depth)
    for i in range(3):
        alone = sample_labels(model, image[:1], cfg, seed=5, first_sample=2 + i)
        torch.testing.assert_close(alone, together[i : i + 1], atol=1e-4, rtol=1e-3)
    assert not torch.allclose(together[0], together[1], atol=1e-2)
    assert not torch.allclose(sample_labels(model, image, cfg, seed=6, first_sample=2), together, atol=1e-2)


def test_three_axes_and_turns_of_members(monkeypatch):
    change = {"model": {"ndim": 3, "in_channels": 1}, "data": {"modalities": [0], "size": []}}
    cfg = tiny(change)
    model, image = awake(cfg), torch.rand(1, 1, 6, 7, 5)
    whole = sample_labels(model, image.expand(3, -1, -1, -1, -1), cfg, seed=0)
    monkeypatch.setattr(cdal, "CELLS_AT_ONCE", 1)
    in_turns = sample_labels(model, image.expand(3, -1, -1, -1, -1), cfg, seed=0)
    assert whole.shape == (3, 1, 6, 7, 5)
    torch.testing.assert_close(whole, in_turns, atol=1e-4, rtol=1e-3)


def test_latent_may_be_switched_off_in_sampling():
    cfg = tiny(posterior_noise=False)
    model, image = awake(cfg), torch.rand(2, 3, 8, 8, 1)
    on = sample_labels(model, image, cfg, seed=0)
    off = sample_labels(model, image, tiny(posterior_noise=False, latent_on=False), seed=0)
    assert not torch.allclose(on, off, atol=1e-3)


def test_prediction_is_the_mean_of_soft_samples(pictures):
    cfg = tiny()
    model, volume = awake(cfg), load_case(find_cases(pictures)[0], cfg.data)
    members = sample_volume(model, volume, cfg, 3, 1).numpy()
    found = answer(model, volume, cfg, 3, 1, with_spread=True)
    probabilities, labels, variance = found.probabilities, found.labels, found.variance
    np.testing.assert_allclose(probabilities, members.mean(0), atol=1e-6)
    np.testing.assert_allclose(variance, members.var(0)[0], atol=1e-6)
    assert np.array_equal(labels, probabilities[0] > 0.5) and 0 < probabilities.min() < probabilities.max() < 1
    with pytest.raises(ValueError, match="samples must be at least 1; got 0"):
        sample_volume(model, volume, cfg, 0, 1)
    with pytest.raises(ValueError, match="rule must be"):
        answer(model, volume, cfg, 2, 1, rule="median")


def test_windows_are_sampled_apart_and_averaged(pictures):
    cfg = tiny(window=[8, 16, 0], overlap=0.5)
    model, volume = awake(cfg), load_case(find_cases(pictures)[0], cfg.data)
    found = sample_volume(model, volume, cfg, 2, 0)
    assert found.shape == (2, 1, 16, 16, 1)
    image = torch.from_numpy(volume.image)
    first, second = (
        sample_members(model, image[:, start : start + 8], cfg, 2, stream(0, number))
        for number, start in enumerate((0, 4))
    )
    torch.testing.assert_close(found[:, :, :4], first[:, :, :4])
    torch.testing.assert_close(found[:, :, 4:8], (first[:, :, 4:] + second[:, :, :4]) / 2)


def test_classes_are_the_channel_of_the_highest_mean(scans):
    cfg = tiny(CLASSES)
    model, volume = awake(cfg), load_case(find_cases(scans)[0], cfg.data)
    mean = sample_volume(model, volume, cfg, 2, 0).numpy().mean(0)
    found = answer(model, volume, cfg, 2, 0)
    probabilities, labels = found.probabilities, found.labels
    np.testing.assert_allclose(probabilities, mean[1:], atol=1e-6)
    assert np.array_equal(labels, mean.argmax(0)) and set(np.unique(labels)) == {0, 1, 2}
    scores = score_cases(model, cfg, find_cases(scans)[:1], name="x", samples=2)
    truth = np.asarray(volume.label)
    for value in (1, 2):
        overlap = 2 * np.sum((labels == value) & (truth == value)) / (np.sum(labels == value) + np.sum(truth == value))
        assert scores["classes"][str(value)]["hard_dice"] == pytest.approx(overlap)
    assert "highest mean" in scores["conditions"]["threshold"]


def test_deviations_of_classes_are_those_of_a_sample(scans):
    cfg = tiny(CLASSES)
    scores = score_cases(awake(cfg), cfg, find_cases(scans)[:3], name="x", samples=1)
    for value, entry in scores["classes_std"].items():
        for name in ("hard_dice", "precision", "sensitivity"):
            cases = [row["classes"][value][name] for row in scores["cases"]]
            assert entry[name] == pytest.approx(np.std(cases, ddof=1)) and entry[name] > 0
    sd = f"(sd {scores['classes_std']['2']['precision']:.4f})"
    assert sd in format_table(scores) and "protocols" not in scores
    assert scores["seconds_per_case"] == pytest.approx(np.mean([row["seconds"] for row in scores["cases"]]))
    one = score_cases(awake(cfg), cfg, find_cases(scans)[:1], name="x", samples=1)
    assert set(one["classes_std"]["1"].values()) == {None}


@pytest.mark.parametrize("window", [[], [8, 8, 0]], ids=["whole", "tiles"])
def test_pictures_are_scored_on_the_grid_of_the_network_as_well(tmp_path, window):
    """E-CDAL is no score of the native grid: 40x40 cells are scored as 16x16."""
    folder = write_lesions(tmp_path, 3, seed=0, size=(40, 40))
    cfg = tiny(window=window)
    model, cases = awake(cfg), find_cases(folder)
    scores = score_cases(model, cfg, cases, name="x", samples=2, seed=3)
    for case, row in zip(cases, scores["cases"], strict=True):
        volume = load_case(case, cfg.data)
        found = sample_volume(model, volume, cfg, 2, 3).numpy().mean(0)[0] > 0.5
        rows = np.floor(np.arange(16) * 40 / 16).astype(int)
        truth = np.asarray(volume.label)[np.ix_(rows, rows)] > 0
        assert found.shape == truth.shape == (16, 16, 1)
        both, either = np.sum(found & truth), np.sum(found | truth)
        expected = {"dice": 2 * both / (found.sum() + truth.sum()), "iou": both / either}
        assert row["protocols"]["E-CDAL"] == pytest.approx(expected) and both > 0
        assert row["hard_dice"] != pytest.approx(expected["dice"], abs=1e-6)
    for key in ("dice", "iou"):
        values = [row["protocols"]["E-CDAL"][key] for row in scores["cases"]]
        assert scores["protocols"]["E-CDAL"][key] == pytest.approx(np.mean(values))
        assert scores["protocols_std"]["E-CDAL"][key] == pytest.approx(np.std(values, ddof=1))
    assert "network's grid" in scores["conditions"]["E-CDAL"] and "E-CDAL  dice" in format_table(scores)
    with pytest.raises(ValueError, match="median"):
        score_cases(model, cfg, cases[:1], name="x", samples=2, rule="median")


def test_all_lung_scores_in_the_inverted_coding(pictures):
    """Lungs are -1 there: an answer of -1 everywhere is all foreground, and its Dice is above zero."""
    cfg = tiny(inverted=True)
    model = build_model(cfg.model, cfg.cdal)
    torch.nn.init.constant_(model.generator.head[-1].bias, -20.0)
    volume = load_case(find_cases(pictures)[0], cfg.data)
    labels = answer(model, volume, cfg, 2, 0).labels
    scores = score_cases(model, cfg, find_cases(pictures)[:1], name="x", samples=2)
    share = np.asarray(volume.label > 0).mean()
    assert labels.all() and scores["mean"]["hard_dice"] == pytest.approx(2 * share / (1 + share)) and share > 0


def test_trained_model_predicts_files(pictures, tmp_path):
    model = loop.train(tiny({"train": {"steps": 2}}), pictures, tmp_path / "run")
    loaded, cfg, _ = load_model(model)
    assert isinstance(loaded.generator, type(build_model(cfg.model, cfg.cdal).generator))
    written = predict_path(model, pictures / "imagesTr", tmp_path / "out", samples=2, png=True)
    assert len(written) == 8 and len(list((tmp_path / "out").glob("*_variance.png"))) == 8
    scores = score_cases(loaded, cfg, find_labelled_cases(data=pictures), name="x", samples=2)
    assert (
        json.dumps(scores) and scores["num_cases"] == 8 and "mean of the samples" in scores["conditions"]["threshold"]
    )


def test_another_model_is_refused():
    with pytest.raises(TypeError, match="model must be a CDAL; got M3D"):
        generator_of(build_model(config.load_recipe("demo").model))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"discriminator": "none"}, "cdal.attention must be off, constant or zero with discriminator"),
        ({"discriminator": "none", "attention": "off", "adversarial_weight": 1.0}, "cdal.adversarial_weight must be 0"),
        ({"attention_index": 5}, r"cdal.attention_index must be one of 0\.\.4; got 5"),
        ({"attention_levels": [2]}, "cdal.attention_levels must be levels"),
        ({"generator": "nope"}, "cdal.generator must be one of"),
        ({"width": 6}, "cdal.width and cdal.d_time_width must be multiples"),
        ({"generator": "library", "latent": 0}, "cdal.latent must be positive"),
        ({"window": [8]}, "cdal.window must be empty"),
        ({"overlap": 1.0}, "cdal.overlap must lie"),
        ({"timesteps": 0}, "cdal.timesteps must be at least 1"),
    ],
)
def test_wrong_settings_are_named(more, message):
    with pytest.raises(ValueError, match=message):
        tiny(**more)


@pytest.mark.parametrize(
    ("crop", "window", "message"),
    [
        ([], [], None),
        ([8, 8, 1], [8, 8, 0], None),
        ([0, 2, 1], [], "case small: image is too small: level 0 has 1 cells on axis Y"),
        ([8, 8, 1], [2, 0, 0], "case small: image is too small: level 0 has 1 cells on axis X"),
    ],
)
def test_boxes_and_windows_too_small_for_automata_are_named_before_training(crop, window, message):
    cfg = tiny(NCA, {"data": {"crop": crop}}, window=window)
    if message is None:
        loop.check_sizes({"small": (16, 16, 1)}, task_of(cfg))
    else:
        with pytest.raises(ValueError, match=message):
            loop.check_sizes({"small": (16, 16, 1)}, task_of(cfg))
    loop.check_sizes({"small": (16, 16, 1)}, task_of(tiny({"data": {"crop": crop}}, window=window)))  # no automata


def test_volume_too_small_for_automata_starts_no_run(scans, tmp_path):
    large = {"model": {"kernel_sizes": [7, 3], "scales": [[8, 8, 1]]}, "data": {"size": []}}
    with pytest.raises(ValueError, match="case phantom_000: image is too small: level 0 has 2 cells on axis X"):
        loop.train(tiny(CLASSES, NCA, large), scans, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("more", [{"attention": "off", "discriminator": "none"}, {}], ids=["off", "on"])
def test_four_pictures_are_learned_by_heart(tmp_path, more):
    folder = write_lesions(tmp_path / "data", 4, seed=2, size=(32, 32))
    training = {"steps": 100, "batch_size": 4, "accumulate": 1, "lr": 6e-3, "checkpoint_every": 0, "schedule": "cosine"}
    change = {"data": {"size": [32, 32, 1], "validation_fraction": 0.0}, "train": training}
    model, cfg, _ = load_model(loop.train(tiny(change, width=16, **more), folder, tmp_path / "run"))
    scores = score_cases(model, cfg, find_labelled_cases(data=folder), name="x", samples=3)
    assert min(row["hard_dice"] for row in scores["cases"]) > 0.98
