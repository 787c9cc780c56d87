"""cDAL's networks: published parameter counts, resampling, what modulates what, first losses, second derivatives."""

import math

import pytest
import torch
import torch.nn.functional as F

from ncaseg.models.cdal.attention import attention_map
from ncaseg.models.cdal.discriminator import Discriminator, append_deviation
from ncaseg.models.cdal.layers import AdaptiveNorm, LatentMap, embed_time, smooth, smooth_down, smooth_up
from ncaseg.models.cdal.library import LibraryGenerator
from ncaseg.models.cdal.ncsnpp import NCSNpp, ResBlock, SelfAttention
from ncaseg.training.tasks.cdal import squared_gradient

PICTURES = {"latent": 100, "latent_width": 256}
MONUSEG = {"width": 64, "multipliers": (1, 1, 1, 2, 2, 4, 4), "attention_levels": (4, 5), **PICTURES}
CXR = {"width": 32, "multipliers": (1, 1, 2, 2, 4, 4), "blocks": 1, "attention_levels": (4,), **PICTURES}
# settings, label and image channels, encoder blocks; then all, z mapping, norms, how many, time, encoder
GENERATORS = {
    "monuseg": (MONUSEG, (1, 3), 5, (41_666_753, 223_232, 8_487_168, 98, 82_432, 372_352), (49, 7)),
    "cxr": (CXR, (1, 1), 6, (8_843_777, 223_232, 2_812_608, 60, 20_736, 112_064), (30, 3)),
    "hippocampus": ({}, (3, 1), 6, (3_682_275, 56_064, 990_720, 56, 20_736, 112_064), (28, 4)),
    "hippocampus-head": ({"blocks": 1}, (3, 1), 6, (2_691_971, 56_064, 701_760, 40, 20_736, 112_064), (20, 3)),
}
TINY = {"width": 8, "multipliers": (1, 2), "blocks": 1, "latent": 6, "latent_width": 8, "latent_layers": 2}


def count(module):
    return sum(p.numel() for p in module.parameters())


def of_kind(module, kind):
    return [child for child in module.modules() if isinstance(child, kind)]


def on_meta(kind, **options):
    with torch.device("meta"):
        return kind(**options)


def make_tiny(ndim=2, **more):
    options = {"ndim": ndim, "label_channels": 2, "image_channels": 1, "encoder_blocks": 1} | TINY | more
    return NCSNpp(**options)


def inputs(ndim=2, batch=4, size=8, latent=6):
    shape = (size,) * ndim
    tau = torch.arange(batch) % 2
    return torch.randn(batch, 2, *shape), tau, torch.randn(batch, 1, *shape), torch.randn(batch, latent)


def awake(module):
    """The module with weights of an ordinary size instead of those that begin near zero."""
    for p in module.parameters():
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=p[0].numel() ** -0.5)
    return module


@pytest.mark.parametrize("name", GENERATORS)
def test_generator_has_the_published_parts(name):
    settings, (label, image), encoder, counts, blocks = GENERATORS[name]
    net = on_meta(NCSNpp, ndim=2, label_channels=label, image_channels=image, encoder_blocks=encoder, **settings)
    norms = of_kind(net, AdaptiveNorm)
    got = (count(net), count(net.latent_map), sum(count(n) for n in norms), len(norms), count(net.time))
    assert (*got, count(net.encoder)) == counts
    assert (len(of_kind(net, ResBlock)), len(of_kind(net, SelfAttention))) == blocks


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"label_channels": 1, "layout": "large", "width": 64, "time_width": 256}, 27_736_705),
        ({"label_channels": 3, "layout": "small", "width": 32}, 3_188_225),
        ({"label_channels": 3, "layout": "small", "width": 64}, 12_462_849),
    ],
)
def test_discriminator_has_the_published_count(options, expected):
    assert count(on_meta(Discriminator, ndim=2, **options)) == expected


@pytest.mark.parametrize(
    ("options", "size", "expected"),
    [
        (
            {"label_channels": 1, "layout": "large", "width": 64, "time_width": 256},
            256,
            [(128, 256), (256, 128), (512, 64), (512, 32), (512, 16), (512, 8), (512, 4)],
        ),
        (
            {"label_channels": 3, "layout": "small", "width": 64},
            32,
            [(128, 32), (128, 32), (256, 16), (512, 8), (512, 4)],
        ),
    ],
    ids=["large", "small"],
)
def test_feature_shapes_are_the_published_ones(options, size, expected):
    net = on_meta(Discriminator, ndim=2, **options)
    x = torch.empty(2, options["label_channels"], size, size, device="meta")
    features = net.features(x, torch.zeros(2, device="meta"), x)
    assert [tuple(f.shape[1:]) for f in features] == [(c, n, n) for c, n in expected]
    assert len(net.features(x, torch.zeros(2, device="meta"), x, upto=2)) == 3


@pytest.mark.parametrize("ndim", [2, 3])
def test_resampling_is_the_filter_1_3_3_1(ndim):
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    kernel = taps
    for _ in range(ndim - 1):
        kernel = kernel[..., None] * taps
    x = torch.zeros(1, 1, *[8] * ndim)
    x[(0, 0, *[4] * ndim)] = 1.0
    low = smooth_down(x)[0, 0]  # cell i sees 2 i - 1 ... 2 i + 2
    assert torch.allclose(low[(slice(1, 3),) * ndim], kernel[(slice(1, 4, 2),) * ndim].flip([*range(ndim)]) / 8**ndim)
    high = smooth_up(x)[0, 0]
    assert high.shape == (16,) * ndim
    assert torch.allclose(high[(slice(7, 11),) * ndim], kernel / 4**ndim) and high.sum().item() == pytest.approx(
        2**ndim
    )
    wide = smooth(x)[0, 0]
    assert wide.shape == (9,) * ndim and torch.allclose(wide[(slice(3, 7),) * ndim], kernel / 8**ndim)
    flat = torch.ones(2, 3, *[8] * ndim)
    inner = (slice(None), slice(None), *[slice(1, -1)] * ndim)
    for resampled in (smooth_down(flat), smooth_up(flat)):
        assert torch.allclose(resampled[inner], torch.ones(()))


def test_time_embedding_by_hand():
    got = embed_time(torch.tensor([0, 3]), 6)
    angles = [3 * 10_000 ** (-i / 2) for i in range(3)]
    assert got[0].tolist() == [0, 0, 0, 1, 1, 1]
    assert got[1].tolist() == pytest.approx([*map(math.sin, angles), *map(math.cos, angles)], abs=1e-6)


def test_latent_is_normalised_before_it_is_mapped():
    net, z = LatentMap(6, 8, 2), torch.randn(3, 6)
    torch.testing.assert_close(net(z), net(7 * z))
    assert net(torch.zeros(1, 6)).isfinite().all()


def test_modulated_norm_begins_near_a_plain_one():
    norm, h = AdaptiveNorm(8, 4), torch.randn(2, 8, 5, 5)
    plain = F.group_norm(h, 2, eps=1e-6)
    torch.testing.assert_close(norm(h, torch.zeros(2, 4)), plain)
    with torch.no_grad():
        norm.style.weight.zero_()
        norm.style.bias.copy_(torch.arange(16.0))
    want = plain * torch.arange(8.0)[:, None, None] + torch.arange(8.0, 16.0)[:, None, None]
    torch.testing.assert_close(norm(h, torch.zeros(2, 4)), want)


@pytest.mark.parametrize("ndim", [2, 3])
def test_first_estimate_is_zero_and_so_the_first_loss_one(ndim):
    net = make_tiny(ndim)
    x, tau, image, z = inputs(ndim)
    estimate = net(x, tau, image, z)
    assert estimate.shape == x.shape and estimate.abs().max() < 1e-4
    assert F.mse_loss(estimate, torch.where(x > 0, 1.0, -1.0)).item() == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("ndim", [2, 3])
def test_everything_that_goes_in_matters(ndim):
    net = awake(make_tiny(ndim))
    given = inputs(ndim)
    out = net(*given)
    assert out.abs().max() <= 1
    for changed in ((-given[0], *given[1:]), (given[0], 1 - given[1], *given[2:]), (*given[:3], given[3].flip(0))):
        assert not torch.allclose(net(*changed), out, atol=1e-3)
    assert not torch.allclose(net(given[0], given[1], -given[2], given[3]), out, atol=1e-3)


def test_samples_do_not_mix():
    net = awake(make_tiny())
    given = inputs()
    together = net(*given)
    for i in range(4):
        torch.testing.assert_close(net(*(t[i : i + 1] for t in given)), together[i : i + 1], atol=1e-5, rtol=1e-4)


def test_latent_can_be_removed():
    net = awake(make_tiny(latent=0))
    x, tau, image, _ = inputs()
    assert net.latent == 0 and net(x, tau, image, None).shape == x.shape
    assert all(norm.style is None and norm.norm.affine for norm in of_kind(net, AdaptiveNorm))


def test_other_sizes_are_mirrored_and_cut():
    net = awake(make_tiny())
    x, tau, image, z = inputs(size=7)
    mirrored = [F.pad(t, (0, 1, 0, 1), mode="reflect") for t in (x, image)]
    torch.testing.assert_close(net(x, tau, image, z), net(mirrored[0], tau, mirrored[1], z)[..., :7, :7])
    with pytest.raises(
        ValueError, match="image is too small: its \\(1, 7\\) cells must be mirrored up to multiples of 2"
    ):
        net(x[:, :, :1], tau, image[:, :, :1], z)


@pytest.mark.parametrize("ndim", [2, 3])
def test_untrained_small_discriminator_cannot_tell(ndim):
    net = Discriminator(ndim=ndim, label_channels=3, width=4, time_width=8)
    x = torch.randn(2, 4, 3, *[8] * ndim)
    logits = net(x[0], torch.tensor([0, 1, 1, 0]), x[1])
    assert logits.shape == (4,)
    losses = F.softplus(-logits).mean() + F.softplus(logits).mean()
    assert losses.item() == pytest.approx(2 * math.log(2), abs=1e-3)


def test_normal_init_is_that_of_the_convolutions_alone():
    options = {"ndim": 2, "label_channels": 1, "layout": "large", "width": 8, "time_width": 16}
    net = Discriminator(**options, init="normal")
    for block in net.blocks:
        assert block.conv2.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert Discriminator(**options).blocks[3].conv2.weight.abs().max() < 1e-5
    bound = math.sqrt(3 / 16)
    assert bound * 0.8 < net.time[0].weight.abs().max() <= bound


@pytest.mark.parametrize("ndim", [2, 3])
def test_gradient_penalty_can_be_differentiated(ndim):
    net = awake(Discriminator(ndim=ndim, label_channels=1, width=2, time_width=4)).double()
    x = torch.randn(2, 4, 1, *[8] * ndim, dtype=torch.float64)
    tau, probe = torch.tensor([0, 1, 0, 1]), net.blocks[1].conv1.weight

    def penalty():
        x_tau = x[0].clone().requires_grad_()
        return squared_gradient(net(x_tau, tau, x[1]), x_tau)

    (second,) = torch.autograd.grad(penalty(), probe)
    direction, size = torch.randn_like(probe), 1e-6
    probe.data += size * direction
    high = penalty().item()
    probe.data -= 2 * size * direction
    assert (high - penalty().item()) / (2 * size) == pytest.approx((second * direction).sum().item(), rel=1e-5)


def test_spread_over_a_group_by_hand():
    h = torch.tensor([1.0, 2.0, 3.0, 6.0]).reshape(4, 1, 1, 1).expand(4, 2, 3, 3)
    got = append_deviation(h)
    assert got.shape == (4, 3, 3, 3) and torch.equal(got[:, :2], h)
    assert torch.allclose(got[:, 2], torch.tensor([1.0, 2.0, 3.0, 6.0]).std(correction=0))
    eight = append_deviation(torch.arange(8.0).reshape(8, 1, 1, 1))[:, 1, 0, 0]  # samples 0, 2, 4, 6 and 1, 3, 5, 7
    assert torch.allclose(eight, torch.tensor([0.0, 2.0, 4.0, 6.0]).std(correction=0))
    assert append_deviation(torch.randn(5, 1, 2, 2))[:, 1].max() < 1e-3  # five samples: groups of one


@pytest.mark.parametrize("ndim", [2, 3])
def test_attention_is_the_mean_of_the_raw_features(ndim):
    net = awake(Discriminator(ndim=ndim, label_channels=1, width=4, time_width=8))
    x = torch.randn(2, 4, 1, *[8] * ndim)
    tau = torch.tensor([0, 1, 1, 0])

    def attend(kind, index=2):
        return attention_map(net, x[0], tau, x[1], index=index, kind=kind, seed=3)

    raw = attend("raw")
    features = net.features(x[0], tau, x[1])[2]
    assert raw.shape == (4, 1, *[8] * ndim) and not raw.requires_grad and raw.min() < 0
    mode = "bilinear" if ndim == 2 else "trilinear"
    torch.testing.assert_close(raw, F.interpolate(features, scale_factor=2, mode=mode).mean(1, keepdim=True).detach())
    assert torch.equal(attend("sigmoid"), raw.sigmoid())
    normalized = attend("normalized")
    assert normalized.min() >= 0 and torch.equal(normalized.flatten(1).amax(1), torch.ones(4))
    shuffled = attend("shuffled")
    assert sorted(shuffled.flatten(1).sum(1).tolist()) == sorted(raw.flatten(1).sum(1).tolist())
    assert torch.equal(shuffled, attend("shuffled"))


def test_labels_too_small_for_the_discriminator_are_named():
    net = Discriminator(ndim=2, label_channels=1, layout="large", width=2, time_width=4)
    x, tau = torch.zeros(1, 1, 64, 63), torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"labels must have at least 64 cells .* large discriminator; got \(64, 63\)"):
        net(x, tau, x)


def test_unknown_layouts_are_named():
    for name in ("layout", "init"):
        with pytest.raises(ValueError, match=f"{name} must be one of .*; got 'nope'"):
            Discriminator(ndim=2, label_channels=1, **{name: "nope"})


LIBRARY = {"monuseg": (41_080_769,), "cxr": (8_590_113, 18_158_049), "hippocampus": (3_525_859, 7_658_659)}


@pytest.mark.parametrize("name", LIBRARY)
def test_library_generator_has_nearly_the_published_count(name):
    pytest.importorskip("monai.networks.nets.diffusion_model_unet")
    pytest.importorskip("einops")
    settings, (label, image), _, counts, _ = GENERATORS[name]
    for ndim, expected in zip((2, 3), LIBRARY[name], strict=False):
        net = on_meta(LibraryGenerator, ndim=ndim, label_channels=label, image_channels=image, **settings)
        assert count(net) == expected and len(of_kind(net, AdaptiveNorm)) == counts[3]


@pytest.mark.parametrize("ndim", [2, 3])
def test_library_generator_behaves_like_the_other(ndim):
    pytest.importorskip("monai.networks.nets.diffusion_model_unet")
    pytest.importorskip("einops")
    net = LibraryGenerator(ndim=ndim, label_channels=2, image_channels=1, **TINY)
    given = inputs(ndim)
    assert net(*given).abs().max() < 1e-6
    out = awake(net)(*given)
    for changed in ((-given[0], *given[1:]), (given[0], 1 - given[1], *given[2:]), (*given[:3], given[3].flip(0))):
        assert not torch.allclose(net(*changed), out, atol=1e-3)
    torch.testing.assert_close(net(*(t[:1] for t in given)), out[:1], atol=1e-5, rtol=1e-4)
    assert net(*inputs(ndim, size=7)).shape[2:] == (7,) * ndim


@pytest.mark.parametrize("kind", [NCSNpp, LibraryGenerator])
def test_wrong_inputs_are_named(kind):
    if kind is LibraryGenerator:
        pytest.importorskip("monai.networks.nets.diffusion_model_unet")
        pytest.importorskip("einops")
    net = on_meta(kind, ndim=2, label_channels=2, image_channels=1, **TINY)
    x, tau, image, z = inputs()
    with pytest.raises(ValueError, match=r"x must have shape \[B, 2, X, Y\]; got \(4, 1, 8, 8\)"):
        net(x[:, :1], tau, image, z)
    with pytest.raises(ValueError, match=r"image must have shape \(4, 1, 8, 8\); got \(4, 1, 8, 7\)"):
        net(x, tau, image[..., 1:], z)
    with pytest.raises(ValueError, match=r"z must have shape \(4, 6\); got None"):
        net(x, tau, image, None)
