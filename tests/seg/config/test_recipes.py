"""The published set-ups: their parameter counts, their geometry and the settings that matter most."""

import pytest
import torch
from seg.tiny import task_of

from ncaseg import config
from ncaseg.levels import working_sizes
from ncaseg.models import build_model
from ncaseg.models.cdal.build import build_discriminator, build_generator
from ncaseg.training import loop

COUNTS = {
    "m3d-hippocampus": 8768,
    "m3d-hippocampus-2level": 12480,
    "m3d-hippocampus-fast": 3712,
    "m3d-prostate": 12480,
    "m3d-prostate-n3": 16192,
    "m3d-prostate-n4": 16416,
    "med-nca": 70016,
    "octree-prostate": 17920,
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_count_is_the_published_one(name):
    model = build_model(config.load_recipe(name).model)
    assert sum(p.numel() for p in model.parameters()) == COUNTS[name]


def test_octree_has_the_published_count_without_the_weights_of_the_image_channel():
    model = build_model(config.load_recipe("octree-prostate").model)
    dead = sum(level.out_weight[: model.in_channels].numel() for level in model.levels)
    assert COUNTS["octree-prostate"] - dead == 17600


@pytest.mark.parametrize(
    ("name", "generator", "discriminator"),
    [
        ("cdal-hippocampus", 3_682_275, 3_188_225),
        ("cdal-hippocampus-head", 2_691_971, 12_462_849),
        ("cdal-hippocampus-literal", 3_682_275, 3_188_225),
        ("cdal-hippocampus-small", 462_531, 200_321),
        ("cdal-monuseg", 41_666_753, 27_736_705),
        ("cdal-cxr", 8_843_777, 27_736_705),
        ("cdal-cxr-head", 8_843_777, 27_736_705),
        ("cdal-nca-hippocampus", 69_184, 200_321),
        ("cdal-nca-hippocampus-3d", 71_488, 570_113),
        ("cdal-nca-cxr", 69_184, 798_337),
        ("cdal-nca-monuseg", 35_648, 798_337),
    ],
)
def test_cdal_has_the_counts_that_are_stated(name, generator, discriminator):
    cfg = config.load_recipe(name, ["cdal.discriminator=small", "cdal.attention=raw"] if "nca" in name else [])
    with torch.device("meta"):
        networks = build_generator(cfg.model, cfg.cdal), build_discriminator(cfg.model, cfg.cdal)
    assert [sum(p.numel() for p in network.parameters()) for network in networks] == [generator, discriminator]


@pytest.mark.parametrize("name", [name for name in COUNTS if config.load_recipe(name).data.size])
def test_geometry_fits_in_training_and_whole(name):
    cfg = config.load_recipe(name)
    size = tuple(n if n > 0 else 1 for n in cfg.data.size)
    loop.check_sizes({"x": size}, task_of(cfg))
    short = (*size[:2], 2) if cfg.model.ndim == 3 else (4, *size[1:])
    if cfg.model.kind == "m3d" and cfg.model.kernel_sizes[0] > 3:
        with pytest.raises(ValueError, match="case x: image is too small: level 0 has 1 cells on axis Z|has 2 cells"):
            loop.check_sizes({"x": short}, task_of(cfg))


def test_prostate_set_up_is_the_published_one():
    cfg = config.load_recipe("m3d-prostate")
    assert working_sizes(cfg.data.size, cfg.model.scales) == [(80, 80, 6)] * 2
    assert (cfg.model.kernel_sizes, cfg.model.steps) == ((7, 3), (20, 40))  # coarse to fine
    assert (cfg.train.batch_size, cfg.train.duplication, cfg.train.epochs) == (4, 2, 3000)
    assert (cfg.train.lr, cfg.train.betas, cfg.train.schedule, cfg.train.lr_decay, cfg.train.lr_interval) == (
        (1.6e-3, (0.9, 0.99), "exponential", 0.9999, "step")
    )
    assert (cfg.train.loss, cfg.train.skip_empty, cfg.train.ema_decay) == ("dice_bce", True, 0.0)
    assert (cfg.model.norm, cfg.model.pool, cfg.model.fire_rate) == ("batch", "max", 0.5)
    assert not cfg.augment.is_on and cfg.predict.samples == 10
    assert (cfg.data.fit, cfg.data.modalities, cfg.data.clip_again) == ("resize", (0,), True)


def test_octree_set_up_is_the_published_one():
    cfg = config.load_recipe("octree-prostate")
    assert cfg.model.scales == ((2, 2, 1), (2, 2, 1), (2, 2, 2), (2, 2, 2))
    assert working_sizes(cfg.data.size, cfg.model.scales, cfg.model.patches) == (
        [(20, 20, 6), (40, 40, 6), (80, 80, 6), (80, 80, 6), (80, 80, 6)]
    )
    assert (cfg.model.norm, cfg.model.pool, cfg.model.steps) == ("none", "nearest", (20, 10, 10, 10, 10))
    assert (cfg.train.ema_decay, cfg.train.ema_interval, cfg.train.lr_interval) == (0.99, "epoch", "epoch")
    assert cfg.train.lr_decay == pytest.approx(0.9999**8)
    assert (cfg.train.batch_size, cfg.train.epochs, cfg.train.lr, cfg.train.skip_empty) == (3, 2000, 1.6e-3, False)
    changes = cfg.augment
    assert (changes.noise, changes.noise_std) == (0.1, (0.0, 0.1))
    assert (changes.blur, changes.blur_sigma, changes.blur_channel) == (0.2, (0.5, 1.0), 0.5)
    assert (changes.brightness, changes.contrast, changes.low_resolution) == (0.15, 0.15, 0.25)
    assert (cfg.predict.samples, cfg.predict.rule) == (10, "median")


@pytest.mark.parametrize(
    ("name", "steps", "batch", "epochs"),
    [("m3d-hippocampus", (20,), 2, 1000), ("m3d-hippocampus-2level", (10, 10), 4, 1000)],
)
def test_hippocampus_set_ups_are_the_published_ones(name, steps, batch, epochs):
    cfg = config.load_recipe(name)
    assert (cfg.model.steps, cfg.train.batch_size, cfg.train.epochs, cfg.train.duplication) == (steps, batch, epochs, 2)
    assert (cfg.data.size, cfg.data.fit, cfg.data.validation_fraction) == ((64, 64, 52), "pad", 0.3)
    assert (cfg.train.lr, cfg.train.lr_decay, cfg.train.optimizer) == (1.6e-3, 0.9999, "adam")


def test_isic_model_is_small_and_its_coarsest_level_sees_all_of_both_grids():
    cfg = config.load_recipe("isic-4level")
    assert sum(p.numel() for p in build_model(cfg.model).parameters()) == 47_808
    for size in (cfg.data.size, cfg.train.small_size):
        coarsest = working_sizes(size, cfg.model.scales, cfg.model.training_patches)[0]
        assert cfg.model.steps[0] * (cfg.model.kernel_sizes[0] // 2) >= 2 * max(coarsest)
    assert cfg.train.small_steps < cfg.train.steps


def test_med_nca_slices_pass():
    cfg = config.load_recipe("med-nca", ["model.steps=[2, 2]", "model.channels=4", "model.hidden=4"])
    image = torch.rand(2, 1, 32, 32, 1)
    logits, label = build_model(cfg.model).crop_forward(image, image, seed=0)
    assert logits.shape == label.shape == (2, 1, 8, 8, 1)
