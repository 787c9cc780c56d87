"""The split: complete, disjoint, reproducible, and a changed file is noticed."""

import json

import pytest

from ncaseg.data.split import load_split, make_split, save_split

IDS = [f"case_{i:03d}" for i in range(200)]


def test_split_is_complete_disjoint_and_has_the_fraction():
    split = make_split(IDS, 0.15, seed=0)
    assert len(split.validation) == 30
    assert not set(split.train) & set(split.validation)
    assert sorted([*split.train, *split.validation]) == IDS


def test_split_depends_on_ids_and_seed_not_on_their_order():
    assert make_split(reversed(IDS), 0.15, seed=3) == make_split(IDS, 0.15, seed=3)
    assert make_split(IDS, 0.15, seed=3).validation != make_split(IDS, 0.15, seed=4).validation


def test_split_is_shuffled():
    assert make_split(IDS, 0.15, seed=0).validation != tuple(IDS[:30])


def test_small_fraction_keeps_one_and_zero_keeps_none():
    assert len(make_split(IDS[:4], 0.05, seed=0).validation) == 1
    assert make_split(IDS[:4], 0.0, seed=0).validation == ()


def test_split_survives_its_file(tmp_path):
    split = make_split(IDS, 0.15, seed=0)
    save_split(tmp_path / "split.json", split)
    assert load_split(tmp_path / "split.json") == split


def test_edited_file_is_refused(tmp_path):
    path = tmp_path / "split.json"
    save_split(path, make_split(IDS, 0.15, seed=0))
    content = json.loads(path.read_text())
    content["train"].append(content["validation"].pop())
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="does not match its sha256"):
        load_split(path)
    path.write_text("{}")
    with pytest.raises(ValueError, match="no entry 'train'"):
        load_split(path)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="ids must be unique"):
        make_split(["a", "a"], 0.5, seed=0)
    with pytest.raises(ValueError, match="at least one training case"):
        make_split(["a"], 0.5, seed=0)
    with pytest.raises(ValueError, match="fraction must lie"):
        make_split(IDS, 1.0, seed=0)
