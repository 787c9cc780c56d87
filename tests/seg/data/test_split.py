"""The split: complete, disjoint, reproducible, and a changed file is noticed."""

import json

import pytest

from ncaseg.data.index import find_groups
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


def test_a_file_may_name_the_split_that_it_shares(tmp_path):
    shared, run = tmp_path / "shared.json", tmp_path / "run" / "split.json"
    save_split(shared, split := make_split(IDS, 0.15, seed=0))
    run.parent.mkdir()
    run.write_text(json.dumps({"same_as": "../shared.json", "sha256": split.sha256}))
    assert load_split(run) == split
    save_split(shared, make_split(IDS, 0.15, seed=1))
    with pytest.raises(ValueError, match="run/split.json was changed"):
        load_split(run)
    shared.unlink()
    with pytest.raises(FileNotFoundError, match="shared.json"):
        load_split(run)
    shared.write_text(json.dumps({"same_as": "run/split.json", "sha256": split.sha256}))
    with pytest.raises(ValueError, match="no entry 'train'"):
        load_split(run)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="ids must be unique"):
        make_split(["a", "a"], 0.5, seed=0)
    with pytest.raises(ValueError, match="at least one training case"):
        make_split(["a"], 0.5, seed=0)
    with pytest.raises(ValueError, match="fraction must lie"):
        make_split(IDS, 1.0, seed=0)


def test_cases_of_a_group_stay_together():
    ids = [f"c{i}" for i in range(20)]
    groups = {f"c{i}": f"lesion {i // 3}" for i in range(15)}
    for seed in range(5):
        split = make_split(ids, 0.3, seed, groups)
        assert 6 <= len(split.validation) <= 8 and {*split.train, *split.validation} == set(ids)
        sides = {groups[i] for i in split.train if i in groups}, {groups[i] for i in split.validation if i in groups}
        assert not sides[0] & sides[1]
    assert make_split(ids, 0.3, 1, {i: i for i in ids}) == make_split(ids, 0.3, 1)
    with pytest.raises(ValueError, match="groups must leave at least one training case; got 1 groups of 20"):
        make_split(ids, 0.3, 0, dict.fromkeys(ids, "one"))


def test_groups_are_read_from_the_folder(tmp_path):
    assert find_groups(None) == find_groups(tmp_path) == {}
    (tmp_path / "groups.csv").write_text("id,group,more\na,1,x\nb,1,y\n")
    assert find_groups(tmp_path) == {"a": "1", "b": "1"}
    (tmp_path / "groups.csv").write_text("image,lesion\na,1\n")
    with pytest.raises(ValueError, match="groups.csv must have the columns id and group"):
        find_groups(tmp_path)
