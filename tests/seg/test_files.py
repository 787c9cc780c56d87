"""A file is there whole or not at all."""

import pytest

from ncaseg import files


def test_failed_write_leaves_the_old_file(tmp_path):
    target = tmp_path / "new" / "a.nii.gz"
    files.write_text(target, "old")
    with pytest.raises(RuntimeError, match="half way"), files.replacing(target) as temporary:
        assert temporary.name.endswith(".nii.gz") and temporary.parent == target.parent
        temporary.write_text("half")
        raise RuntimeError("half way")
    assert target.read_text() == "old"
    assert [p.name for p in target.parent.iterdir()] == ["a.nii.gz"]
