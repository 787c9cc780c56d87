"""Artefacts against identities of the Fourier transform worked out by hand, and against TorchIO if installed."""

import numpy as np
import pytest

from ncaseg.quality import artifacts

SIZE = (7, 8, 12)


@pytest.fixture
def image():
    return np.random.default_rng(0).random((1, *SIZE)).astype(np.float32)


def test_noise_has_the_stated_deviation():
    noisy = artifacts.corrupt(np.full((1, 40, 40, 40), 0.5, np.float32), "noise", seed=0)
    assert noisy.mean() == pytest.approx(0.5, abs=0.01)
    assert noisy.std() == pytest.approx(0.5, abs=0.01)
    assert noisy.min() < 0 and noisy.max() > 1  # not brought back to [0, 1]


def test_spike_is_half_a_plane_wave(image):
    """One entry of k-space adds a cos(2 pi f x): the largest magnitude is frequency 0, the mean times the cells."""
    position, frequency = (3 + 2, 4 - 1, 6 + 3), (2, -1, 3)  # centres 3, 4, 6
    cells = np.meshgrid(*(np.arange(n) for n in SIZE), indexing="ij")
    phase = sum(f * x / n for f, x, n in zip(frequency, cells, SIZE, strict=True))
    expected = image[0] + 1.7 * image.mean() * np.cos(2 * np.pi * phase)
    np.testing.assert_allclose(artifacts.add_spike(image, position, 1.7)[0], expected, atol=1e-6)


def test_spike_at_frequency_0_is_a_constant(image):
    spiked = artifacts.add_spike(image, tuple(n // 2 for n in SIZE), -5.0)
    np.testing.assert_allclose(spiked, image - 5 * image.mean(), atol=1e-6)


def test_ghosts_are_shifted_copies():
    """12 planes from -6 on, every 6th: -6 and 0; 0 is kept. Frequency -6 is the alternating part of the image."""
    image = np.random.default_rng(1).random((1, 2, 2, 12))
    alternating = (-1.0) ** np.arange(12)
    part = (image * alternating).mean(-1, keepdims=True) * alternating
    ghosted = artifacts.add_ghosting(image, 2, 6, 2.5)
    np.testing.assert_allclose(ghosted, image - 2.5 * part, atol=1e-9)


def test_all_planes_but_the_centre_are_scaled():
    """With one ghost every plane is hit but the central one, which holds the mean along the axis."""
    image = np.random.default_rng(2).random((1, 5, 4, 3))
    for axis in range(3):
        mean = image.mean(axis + 1, keepdims=True)
        np.testing.assert_allclose(artifacts.add_ghosting(image, axis, 1, 2.5), mean - 1.5 * (image - mean), atol=1e-9)


def test_no_intensity_changes_nothing(image):
    np.testing.assert_allclose(artifacts.add_spike(image, (1, 2, 3), 0.0), image, atol=1e-6)
    np.testing.assert_allclose(artifacts.add_ghosting(image, 0, 6, 0.0), image, atol=1e-6)


def test_spectrum_of_a_random_artefact_differs_where_it_should(image):
    def changed(kind):
        before, after = (np.fft.fftshift(np.fft.fftn(x[0])) for x in (image, artifacts.corrupt(image, kind, seed=3)))
        return np.abs(after - before) > 1e-3 * np.abs(before).max()

    assert 1 <= changed("spike").sum() <= 2  # the real part spreads it over the position and its mirror image
    ghosted = np.nonzero(changed("ghosting"))
    assert any(set(np.unique(index)) < {0, 1, 2, 5, 6, 7, 10, 11} for index in ghosted)


def test_draws_depend_on_seed_case_and_kind(image):
    for kind in artifacts.KINDS:
        first, again = (artifacts.corrupt(image, kind, seed=0, case="a") for _ in range(2))
        assert np.array_equal(first, again) and first.dtype == np.float32
        for other in (
            artifacts.corrupt(image, kind, seed=1, case="a"),
            artifacts.corrupt(image, kind, seed=0, case="b"),
        ):
            assert kind == "ghosting" or not np.allclose(first, other)


def test_ghosts_come_along_every_axis(image):
    results = {artifacts.corrupt(image, "ghosting", seed=seed).tobytes() for seed in range(20)}
    assert len(results) == 3


def test_spikes_have_either_sign():
    image = np.full((1, 3, 3, 3), 0.5, np.float32)
    shifts = [artifacts.corrupt(image, "spike", seed=seed).max() - 0.5 for seed in range(30)]
    assert max(shifts) <= 2.5 + 1e-6  # 5 times the mean
    assert max(shifts) > 1.5


def test_channels_share_place_and_strength(image):
    both = np.concatenate([image, image])
    for kind in ("spike", "ghosting"):
        first, second = artifacts.corrupt(both, kind, seed=0)
        assert np.array_equal(first, second)
    first, second = artifacts.corrupt(both, "noise", seed=0)
    assert not np.allclose(first, second)


def test_renormalised_image_fills_the_unit_range(image):
    for kind in artifacts.KINDS:
        result = artifacts.corrupt(image, kind, seed=0, renormalise=True)
        assert (result.min(), result.max()) == pytest.approx((0, 1))


def test_clean_is_the_image_itself(image):
    assert artifacts.corrupt(image, "clean", seed=0) is image


def test_unknown_kind_is_refused(image):
    with pytest.raises(ValueError, match="kind must be one of clean, noise, spike, ghosting; got 'blur'"):
        artifacts.corrupt(image, "blur", seed=0)


@pytest.fixture
def torchio():
    return pytest.importorskip("torchio", reason="TorchIO is not installed")


def test_spike_equals_that_of_torchio(torchio, image):
    position = (5, 3, 9)
    # TorchIO takes the position as a fraction of the size and rounds down.
    fractions = np.array([[(p + 0.5) / n for p, n in zip(position, SIZE, strict=True)]])
    theirs = torchio.transforms.Spike(fractions, -3.2)(torchio.ScalarImage(tensor=image)).data.numpy()
    np.testing.assert_allclose(artifacts.add_spike(image, position, -3.2), theirs, atol=1e-5)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_ghosting_equals_that_of_torchio(torchio, image, axis):
    theirs = torchio.transforms.Ghosting(6, axis, 2.5, None)(torchio.ScalarImage(tensor=image)).data.numpy()
    np.testing.assert_allclose(artifacts.add_ghosting(image, axis, 6, 2.5), theirs, atol=1e-5)
