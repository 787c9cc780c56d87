"""MRI artefacts with the parameters of M3D-NCA's quality control: noise, spike and ghosting, for images in [0, 1].

Drawing is apart from acting: ``corrupt`` draws what the paper left to TorchIO's random transforms; ``add_noise``,
``add_spike`` and ``add_ghosting`` do what they are told and equal TorchIO's ``Noise``, ``Spike`` and ``Ghosting``. They
are our own few lines because TorchIO weighs 411 MB; a test compares the two where it is
installed. k-space is the centred discrete Fourier transform over the spatial axes; all of it is float64.
"""

from __future__ import annotations

import zlib

import numpy as np

from ncaseg.streams import numbers

# What one number means to the random transforms of TorchIO 0.18.82, which the published code pins: noise and ghosting
# take exactly that number, a spike is uniform in +- that number. (TorchIO 1.2.1 draws the former from 0 on.)
NOISE_STD = 0.5
SPIKE_INTENSITY = 5.0
NUM_GHOSTS, GHOST_INTENSITY = 6, 2.5
KINDS = ("noise", "spike", "ghosting")
CLEAN = "clean"


def corrupt(image: np.ndarray, kind: str, *, seed: int, case: str = "", renormalise: bool = False) -> np.ndarray:
    """An image with one artefact of random place and, for the spike, random strength.

    Noise has the deviation 0.5; a spike of an intensity uniform in [-5, 5] hits one position of k-space; 6 ghosts of
    intensity 2.5 lie along one of the axes. Image channels share position, intensity and axis.

    Args:
        image: ``[C_in, *S]``, normalised to [0, 1] as the network sees it.
        kind: "clean" (returned as it is), or one of ``KINDS``.
        seed, case: name the random stream together with the kind: no two kinds or cases share bits.
        renormalise: map the result back to [0, 1], channel by channel. By default it is not, and leaves [0, 1].

    Returns:
        ``[C_in, *S]`` float32.

    Raises:
        ValueError: the kind is unknown.

    Reference:
        Kalkhof and Mukhopadhyay, M3D-NCA, MICCAI 2023, section on quality control; Pérez-García et al., TorchIO, 2021.
    """
    if kind == CLEAN:
        return image
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join((CLEAN, *KINDS))}; got {kind!r}")
    rng = numbers(seed, KINDS.index(kind), zlib.crc32(case.encode()))
    if kind == "noise":
        result = add_noise(image, NOISE_STD, rng)
    elif kind == "spike":
        position = tuple(int(rng.integers(n)) for n in image.shape[1:])
        result = add_spike(image, position, rng.uniform(-SPIKE_INTENSITY, SPIKE_INTENSITY))
    else:
        result = add_ghosting(image, int(rng.integers(image.ndim - 1)), NUM_GHOSTS, GHOST_INTENSITY)
    return (_to_unit_range(result) if renormalise else result).astype(np.float32)


def add_noise(image: np.ndarray, std: float, rng: np.random.Generator) -> np.ndarray:
    """Add independent normal noise of mean 0 to every cell of ``[C_in, *S]``."""
    return image + rng.normal(0.0, std, image.shape)


def add_spike(image: np.ndarray, position: tuple[int, ...], intensity: float) -> np.ndarray:
    """Add ``intensity`` times the largest magnitude of k-space at one position, and take the real part.

    Only one side of k-space is hit, as in scans; the result is the image plus half the amplitude of a plane wave.

    Args:
        image: ``[C_in, *S]``; each channel has a k-space of its own.
        position: index into centred k-space, one per axis: ``n // 2`` is frequency 0.
        intensity: of either sign.
    """
    spectrum = _to_k_space(image)
    for channel in spectrum:  # a view
        channel[position] += intensity * np.abs(channel).max()
    return _to_image(spectrum)


def add_ghosting(image: np.ndarray, axis: int, num_ghosts: int, intensity: float) -> np.ndarray:
    """Multiply every ``num_ghosts``-th plane of k-space by ``1 - intensity``, but the central one.

    Args:
        image: ``[C_in, *S]``.
        axis: spatial axis along which the ghosts lie, from 0; the planes are counted from the first of centred k-space.
        num_ghosts: distance of the planes that are changed, in cells of k-space.
        intensity: 0 changes nothing, 1 removes the planes.
    """
    spectrum = _to_k_space(image)
    planes = np.moveaxis(spectrum, axis + 1, 0)  # a view
    centre = len(planes) // 2
    kept = planes[centre].copy()
    planes[::num_ghosts] *= 1 - intensity
    planes[centre] = kept
    return _to_image(spectrum)


def _to_k_space(image: np.ndarray) -> np.ndarray:
    axes = tuple(range(1, image.ndim))
    return np.fft.fftshift(np.fft.fftn(image, axes=axes), axes=axes)


def _to_image(spectrum: np.ndarray) -> np.ndarray:
    axes = tuple(range(1, spectrum.ndim))
    return np.fft.ifftn(np.fft.ifftshift(spectrum, axes=axes), axes=axes).real


def _to_unit_range(image: np.ndarray) -> np.ndarray:
    axes = tuple(range(1, image.ndim))
    low, high = image.min(axis=axes, keepdims=True), image.max(axis=axes, keepdims=True)
    return (image - low) / np.maximum(high - low, np.finfo(np.float64).tiny)
