"""Folds: complete, disjoint, by stride, by runs within a class and by origin; and their files."""

import doctest
from pathlib import Path

import pytest

from ncaseg.cli.main import main
from ncaseg.data import folds
from ncaseg.data.folds import find_folds, origin_folds, run_folds, save_folds, strided_folds
from ncaseg.data.index import Case
from ncaseg.data.phantom import write_phantoms
from ncaseg.data.split import load_split


def check_cover(found, ids):
    for fold in found:
        assert not set(fold.train) & set(fold.validation) and {*fold.train, *fold.validation} == set(ids)
    assert sorted(i for fold in found for i in fold.validation) == sorted(ids)


def test_strided_folds_take_every_fourth_id():
    ids = [f"hippocampus_{i:03d}" for i in range(260)]
    found = strided_folds(reversed(ids), 4)
    check_cover(found, ids)
    assert [len(fold.validation) for fold in found] == [65] * 4 and found[2].validation[:2] == (ids[2], ids[6])
    assert found[0].fraction == 0.25


def test_groups_stay_together():
    groups = {"a": "one", "d": "one", "b": "two"}
    found = strided_folds("abcde", 2, groups)
    check_cover(found, "abcde")
    assert found[0].validation == ("a", "c", "d") and found[1].validation == ("b", "e")
    with pytest.raises(ValueError, match=r"count must not exceed the number of groups \(2\); got 3"):
        strided_folds("abc", 3, {"a": "one", "c": "one"})


def test_runs_of_every_class_are_held_back():
    ids = [f"{960000 + i}_{name}" for name, n in (("viral", 7), ("normal", 9), ("bacterial", 5)) for i in range(n)]
    found = run_folds(ids, 3)
    check_cover(found, ids)
    for fold in found:
        for name in ("viral", "normal", "bacterial"):
            numbers = [int(i.split("_")[0]) for i in fold.validation if i.endswith(name)]
            assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    with pytest.raises(ValueError, match=r"count must not exceed the ids of class 'bacterial' \(5\); got 6"):
        run_folds(ids, 6)


def chest_xrays(shenzhen=5, montgomery=2):
    names = [(f"CHNCXR_{i:04d}_0", "_mask") for i in range(shenzhen)] + [
        (f"MCUCXR_{i:04d}_0", "") for i in range(montgomery)
    ]
    cases = [Case(name, Path(f"CXR_png/{name}.png"), Path(f"masks/{name}{end}.png")) for name, end in names]
    return [*cases, Case("CHNCXR_0900_1", Path("CXR_png/CHNCXR_0900_1.png"), None)]


def test_folds_by_origin():
    found = origin_folds(chest_xrays())
    assert found[0].validation == ("MCUCXR_0000_0", "MCUCXR_0001_0") and len(found[0].train) == 5
    assert found[1].validation == ("CHNCXR_0000_0", "CHNCXR_0001_0")
    assert found[2].validation == ("CHNCXR_0003_0", "CHNCXR_0004_0")
    for fold in found:
        assert len(fold.train) + len(fold.validation) == 7 and not set(fold.train) & set(fold.validation)
    with pytest.raises(ValueError, match="got 3 and 2"):
        origin_folds(chest_xrays(3))
    with pytest.raises(ValueError, match="got 5 and 0"):
        origin_folds(chest_xrays(5, 0))


def test_folds_are_written_as_splits(tmp_path):
    found = strided_folds("abcdef", 3)
    paths = save_folds(tmp_path / "folds", found)
    assert [path.name for path in paths] == ["fold_0.json", "fold_1.json", "fold_2.json"]
    assert [load_split(path) for path in paths] == found
    assert doctest.testmod(folds).failed == 0


def test_folds_from_the_command_line(tmp_path, capsys):
    data = write_phantoms(tmp_path / "data", 5, size=(12, 12, 12))
    (data / "groups.csv").write_text(
        "id,group\nphantom_000,x\nphantom_001,x\nphantom_002,2\nphantom_003,3\nphantom_004,4\n"
    )
    assert main(["folds", "strided", "--data", str(data), "-o", str(tmp_path / "folds"), "--count", "2"]) == 0
    out = capsys.readouterr().out
    assert "fold_1.json" in out and "RUN/split.json" in out
    fold = load_split(tmp_path / "folds" / "fold_0.json")
    assert fold.validation == ("phantom_000", "phantom_001", "phantom_003")
    assert find_folds(data, "runs", 2)[0].validation == ("phantom_000", "phantom_001")
    assert main(["folds", "origin", "--data", str(data), "-o", str(tmp_path)]) == 3
    assert "cases must be those of Shenzhen" in capsys.readouterr().err
    with pytest.raises(ValueError, match="rule must be one of strided, runs, origin; got 'random'"):
        find_folds(data, "random", 4)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"count must lie between 2 and the number of ids \(2\); got 3"):
        strided_folds("ab", 3)
    with pytest.raises(ValueError, match="count must lie between 2"):
        run_folds("ab", 1)
    with pytest.raises(ValueError, match="ids must be unique"):
        strided_folds("aab", 2)
