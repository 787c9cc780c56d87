"""A tree without git names its sources so that a clone finds the commit."""

import shutil

import pytest

from benchmarks.harness import source


@pytest.fixture
def clone(tmp_path):
    """A repository of two commits that differ in the code, and a third that adds a record."""
    root = tmp_path / "clone"
    (root / "ncakern").mkdir(parents=True)
    (root / "benchmarks" / "results").mkdir(parents=True)
    if source.git("init", root=root) is None:
        pytest.skip("needs git")
    for path, text in (("ncakern/a.py", "1\n"), ("ncakern/a.py", "2\n"), ("benchmarks/results/x.toml", "")):
        (root / path).write_text(text)
        source.git("add", ".", root=root)
        name = ("-c", "user.name=x", "-c", "user.email=x")
        assert source.git(*name, "commit", "-m", path, root=root) is not None
    return root


def test_a_copy_without_git_is_found_in_the_clone(clone, tmp_path):
    commits = source.git("log", "--format=%h", "--abbrev=10", root=clone).split()
    assert source.commit_here(clone) == (commits[0], False)
    copy = shutil.copytree(clone, tmp_path / "copy", ignore=shutil.ignore_patterns(".git"))
    (copy / "ncakern" / "built.so").write_bytes(b"")
    name, is_dirty = source.commit_here(copy)
    assert name.startswith("tree-") and not is_dirty
    assert source.find(name, clone) == commits[:2]  # a record is no code
    (copy / "ncakern" / "a.py").write_text("3\n")
    assert source.find(source.commit_here(copy)[0], clone) == []


def test_changes_are_told_unless_they_are_records(clone):
    (clone / "benchmarks" / "results" / "y.jsonl").write_text("")
    assert not source.commit_here(clone)[1]
    (clone / "ncakern" / "b.py").write_text("")
    assert source.commit_here(clone)[1]
