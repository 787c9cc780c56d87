"""Checkpoints: the model comes back with its recipe, and every file that does not fit is explained."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import ncakern
from ncaseg import config, zoo
from ncaseg.checkpoint.model import add_metadata, load_model, load_state, save_model, save_state
from ncaseg.models import build_model
from ncaseg.papers.runs import significant_differences

CFG = config.load_recipe("demo", ["model.hidden=8", "model.channels=4", "model.steps=[2]"])


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = build_model(CFG.model)
    torch.nn.init.normal_(model.levels[0].out_weight)
    return model


@pytest.fixture
def path(tmp_path, model):
    save_model(tmp_path / "m.safetensors", model, CFG, {"step": "7"})
    return tmp_path / "m.safetensors"


def test_model_recipe_and_metadata_come_back(path, model):
    loaded, cfg, metadata = load_model(path)
    assert cfg == CFG
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    image = torch.rand(1, 1, 6, 6, 6)
    assert torch.equal(loaded(image, seed=0), model(image, seed=0))
    assert metadata["step"] == "7" and metadata["format_version"] == "1"
    assert metadata["ncakern_version"] == ncakern.__version__
    assert json.loads(metadata["labels"]) == [[1, 2]]  # one channel: the merged foreground


def test_labels_of_separate_channels_are_listed(tmp_path):
    cfg = config.load_recipe("demo", ["model.out_channels=2"])
    save_model(tmp_path / "m", build_model(cfg.model), cfg)
    assert json.loads(load_model(tmp_path / "m")[2]["labels"]) == [[1], [2]]


def test_no_temporary_file_stays(path):
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def rewrite(path, tensors, **metadata):
    save_file(tensors, path, metadata=load_model(path)[2] | metadata)


def test_missing_and_surplus_tensors_are_named(path):
    tensors = load_file(path)
    tensors["levels.0.other"] = tensors.pop("levels.0.out_weight")
    rewrite(path, tensors)
    words = r"missing tensors \['levels.0.out_weight'\], surplus tensors \['levels.0.other'\]"
    with pytest.raises(ValueError, match=words):
        load_model(path)


def test_wrong_shape_is_named(path):
    tensors = load_file(path)
    tensors["levels.0.out_weight"] = torch.zeros(4, 9)
    rewrite(path, tensors)
    with pytest.raises(ValueError, match=r"levels.0.out_weight is \[4, 9\], expected \[4, 8\]"):
        load_model(path)


def test_other_format_version_is_named(path):
    rewrite(path, load_file(path), format_version="2", ncakern_version="9.9")
    with pytest.raises(ValueError, match="format_version 2.*reads 1.*written by ncakern 9.9"):
        load_model(path)


def test_foreign_files_are_named(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(ValueError, match="must be a checkpoint of ncaseg"):
        load_model(tmp_path / "foreign.safetensors")
    (tmp_path / "text").write_text("hello, this is not a model")
    with pytest.raises(ValueError, match="must be a safetensors file"):
        load_model(tmp_path / "text")
    with pytest.raises(ValueError, match="must be the state of a run; it is not a file"):
        load_state(tmp_path / "text")


def test_state_that_would_run_code_is_refused(tmp_path):
    torch.save({"step": tmp_path}, tmp_path / "s.pt")  # a path is an object, which unpickling would have to build
    with pytest.raises(ValueError, match="must be the state of a run; it cannot be read"):
        load_state(tmp_path / "s.pt")


def test_unknown_name_lists_the_zoo(tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, "names", lambda: ["first", "second"])
    with pytest.raises(ValueError, match="first, second.*got 'thrid'"):
        load_model("thrid")
    with pytest.raises(ValueError, match="known: first, second"):
        zoo.path("third")


def test_zoo_entries_load_and_hold_the_recipe_of_their_name():
    for name in zoo.names():
        recipe = load_model(name)[1]
        assert recipe.name == name
        assert not significant_differences(recipe, config.load_recipe(recipe.name))


def test_state_comes_back(tmp_path):
    state = {"step": 3, "model": {"w": torch.arange(3.0)}, "optimizer": {"param_groups": [{"lr": 0.1}]}}
    save_state(tmp_path / "s.pt", state)
    loaded = load_state(tmp_path / "s.pt")
    assert loaded["step"] == 3 and torch.equal(loaded["model"]["w"], torch.arange(3.0))
    assert loaded["optimizer"] == state["optimizer"]


def test_added_metadata_leave_the_rest_alone(path, model):
    before = load_model(path)[2]
    add_metadata(path, {"quality": "0.2", "step": "8"})
    loaded, cfg, after = load_model(path)
    assert after == before | {"quality": "0.2", "step": "8"}
    assert cfg == CFG
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
