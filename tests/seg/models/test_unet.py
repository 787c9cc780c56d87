"""The baseline: it trains through the same loop, and without MONAI its error names the extra."""

import importlib.util
import sys

import pytest
import torch

from ncaseg import config
from ncaseg.checkpoint.model import load_model
from ncaseg.data.index import find_cases
from ncaseg.data.phantom import write_phantoms
from ncaseg.evaluation.cases import score_cases
from ncaseg.models import build_model
from ncaseg.training import loop
from ncaseg.training.logs import read_rows

HAS_MONAI = importlib.util.find_spec("monai") is not None
needs_monai = pytest.mark.skipif(not HAS_MONAI, reason="needs MONAI, which the extra train installs")
# MONAI and what it imports warn about themselves.
pytestmark = pytest.mark.filterwarnings("ignore")


def test_without_monai_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "monai", None)
    monkeypatch.setitem(sys.modules, "monai.networks.nets", None)
    with pytest.raises(ImportError, match=r"model.kind 'unet' needs MONAI.*pip install 'ncakern\[train\]'"):
        build_model(config.load_recipe("unet-hippocampus").model)


@needs_monai
def test_recipe_has_the_widths_it_names():
    model = build_model(config.load_recipe("unet-hippocampus").model)
    assert sum(p.numel() for p in model.parameters()) == 3235105
    assert model(torch.rand(1, 1, 32, 35, 33)).shape == (1, 1, 32, 35, 33)
    with pytest.raises(ValueError, match="31 cells on axis Y"):
        model(torch.rand(1, 1, 32, 31, 32))
    with pytest.raises(ValueError, match=r"\[B, 1, X, Y, Z\]"):
        model(torch.rand(1, 2, 32, 32, 32))


@needs_monai
def test_baseline_trains_in_mixed_precision(tmp_path):
    data = write_phantoms(tmp_path / "data", 2, seed=0, size=(12, 12, 12))
    small = ["model.features=[4, 4, 8, 8, 8, 4]", "data.size=[32, 32, 32]", "train.steps=2", "train.validate_every=0"]
    losses = {}
    for precision in ("float32", "bfloat16"):
        cfg = config.load_recipe("unet-hippocampus", [*small, f"train.precision={precision}"])
        loop.train(cfg, data, tmp_path / precision)
        losses[precision] = read_rows(tmp_path / precision / "log.jsonl")[0]["loss"]
    assert losses["float32"] != losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.02)


@needs_monai
def test_baseline_trains_and_is_scored(tmp_path):
    data = write_phantoms(tmp_path / "data", 4, seed=0, size=(12, 12, 12))
    small = ["model.features=[4, 4, 8, 8, 8, 4]", "data.size=[32, 32, 32]", "train.steps=12", "train.lr=1e-2"]
    cfg = config.load_recipe("unet-hippocampus", [*small, "data.validation_fraction=0.25", "train.ema_decay=0.5"])
    path = loop.train(cfg, data, tmp_path / "run")
    rows = read_rows(tmp_path / "run" / "log.jsonl")
    assert rows[-1]["loss"] < 0.97 * rows[0]["loss"] and rows[-1]["val_dice"] is not None
    model, loaded, _ = load_model(path)
    scores = score_cases(model, loaded, find_cases(data), name="x", samples=1)
    assert 0.0 <= scores["mean"]["hard_dice"] <= 1.0
