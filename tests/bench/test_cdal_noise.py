"""The spread of samples is put down to what caused it."""

import nibabel as nib
import numpy as np
import pytest
import torch

from benchmarks.segmentation.cdal_noise import spread
from benchmarks.segmentation.cdal_volume import Case, build
from ncaseg.data.dataset import Volume
from ncaseg.sampling.cdal import generator_of


@pytest.fixture(scope="module")
def volume():
    image = np.random.default_rng(0).random((1, 12, 10, 4), dtype=np.float32)
    label = np.zeros(image.shape[1:], np.int64)
    label[3:6, 3:6, 1:3] = 1
    return Volume("case", image, label, label.shape, np.eye(4), nib.Nifti1Header(), (1.0, 1.0, 1.0))


def test_automata_differ_by_all_three(volume):
    model, cfg = build(Case("automata 2D", "whole", (12, 10, 4)))
    found = {source: spread(generator_of(model), volume, cfg, {source}, 2) for source in ("noise", "latent", "fire")}
    assert all(value > 0 for pair in found.values() for value in pair)
    assert spread(generator_of(model), volume, cfg, set(), 2) == (0.0, 0.0)


def test_a_network_without_fire_bits_does_not_differ_by_them(volume):
    model, cfg = build(Case("NCSN++ small", "whole", (12, 10, 4)))
    net = generator_of(model)
    torch.nn.init.normal_(net.head[-1].weight)
    assert spread(net, volume, cfg, {"fire"}, 2) == (0.0, 0.0)
    assert min(spread(net, volume, cfg, {"latent"}, 2)) > 0
