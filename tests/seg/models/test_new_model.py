"""A model that is new: what CONTRIBUTING names is all that it takes, from the recipe to scores and files."""

import dataclasses

import pytest
from torch import nn

from ncaseg import models
from ncaseg.checkpoint.model import load_model
from ncaseg.config import KINDS, ModelConfig, from_dict, load_recipe
from ncaseg.data.index import find_cases
from ncaseg.data.phantom import write_phantoms
from ncaseg.evaluation.cases import score_cases
from ncaseg.inference.files import predict_path
from ncaseg.models.base import Segmenter
from ncaseg.training.loop import train


@dataclasses.dataclass(frozen=True)
class OneLayerConfig(ModelConfig):
    kind: str = "one-layer"
    width: int = 3


class OneLayer(Segmenter):
    def __init__(self, cfg):
        super().__init__()
        self.conv = nn.Conv3d(cfg.in_channels, cfg.out_channels, cfg.width, padding=cfg.width // 2)

    def forward(self, image, *, seed=None, first_sample=0, keep_every=1):
        return self.conv(image)

    def crop_forward(self, image, label, *, seed=None, generator=None, keep_every=1, foreground=0.0):
        return self.forward(image), label

    def training_bytes(self, batch, size, keep_every, *, has_kernel):
        return 1000


@pytest.fixture
def recipe(monkeypatch):
    monkeypatch.setitem(KINDS, "one-layer", OneLayerConfig)
    monkeypatch.setitem(models.MODELS, OneLayerConfig, OneLayer)
    train = {"steps": 2, "validate_every": 1}
    return {"name": "new", "model": {"kind": "one-layer", "width": 5}, "data": {"labels": [1, 2]}, "train": train}


def test_it_trains_is_scored_and_predicts(recipe, tmp_path):
    data = write_phantoms(tmp_path / "data", 3, size=(12, 13, 14))
    cfg = from_dict(recipe)
    model, loaded, _ = load_model(train(cfg, data, tmp_path / "run"))
    assert loaded == cfg == load_recipe(tmp_path / "run" / "recipe.toml") and loaded.model.width == 5
    assert model.conv.weight.shape == (1, 1, 5, 5, 5)
    scores = score_cases(model, loaded, find_cases(data), name="new", samples=2)
    assert scores["parameters"] == 126 and 0 <= scores["mean"]["soft_dice"] <= 1
    assert len(predict_path((model, loaded), data / "imagesTr", tmp_path / "out", png=True)) == 3


def test_its_entries_are_checked(recipe):
    with pytest.raises(ValueError, match=r"unknown key model.widht; did you mean model.width\?"):
        from_dict({**recipe, "model": {"kind": "one-layer", "widht": 5}})
    with pytest.raises(ValueError, match="model.channels must be left out with model.kind 'one-layer'"):
        from_dict({**recipe, "model": {"kind": "one-layer", "channels": 5}})
