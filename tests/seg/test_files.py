"""A file is there whole or not at all."""

import errno
import os
import subprocess
import sys

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


def test_only_files_are_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name, kind in (("pipe", "a device or a pipe"), ("folder", "a folder")):
        with pytest.raises(ValueError, match=f"{name} must be a file, or not exist yet; it is {kind}"):
            files.write_text(tmp_path / name, "x")
    with pytest.raises(ValueError, match="/dev/full must be a file"):
        files.write_text("/dev/full", "x")
    assert not os.path.isfile("/dev/full")
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(ValueError, match=r"b.txt must lie in a folder; .*a.txt is a file"):
        files.check_target(tmp_path / "a.txt" / "c" / "b.txt")
    files.check_target(tmp_path / "new" / "b.txt")
    assert not (tmp_path / "new").exists()


def test_temporary_names_are_new_each_time_and_their_links_are_not_followed(tmp_path, monkeypatch):
    monkeypatch.setattr(files.secrets, "token_hex", lambda n: "0" * 2 * n)
    (tmp_path / "precious.txt").write_text("kept")
    (tmp_path / ".tmp-0000000000000000-a.txt").symlink_to(tmp_path / "precious.txt")
    with pytest.raises(FileExistsError):
        files.write_text(tmp_path / "a.txt", "x")
    assert (tmp_path / "precious.txt").read_text() == "kept" and not (tmp_path / "a.txt").exists()


def test_names_of_255_bytes_are_written(tmp_path):
    for name in ("x" * 250 + ".json", "ä" * 125 + ".json"):
        files.write_text(tmp_path / name, "whole")
        assert (tmp_path / name).read_text() == "whole"


def test_content_is_on_the_disk_before_the_name(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(files.os, "fsync", lambda handle: calls.append(os.readlink(f"/proc/self/fd/{handle}")))
    monkeypatch.setattr(files.os, "replace", lambda *_: calls.append("renamed"))
    files.write_text(tmp_path / "a.txt", "x")
    assert calls[0].endswith("-a.txt") and calls[1:] == ["renamed", str(tmp_path)]


def test_what_killed_processes_left_is_removed_and_what_lives_is_not(tmp_path):
    code = "import os, sys; from ncaseg import files\nwith files.replacing(sys.argv[1]) as t: os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.txt")], check=False, env=with_path())
    (left,) = tmp_path.iterdir()
    files.remove_stale(tmp_path)
    assert left.exists()  # young: its owner may not hold the lock yet
    with files.replacing(tmp_path / "b.txt") as living:
        for path in (left, living):
            os.utime(path, (0, 0))
        files.remove_stale(tmp_path)
        assert living.exists() and not left.exists()
        living.write_text("")
    (tmp_path / ".tmp-notes.txt").write_text("somebody else's")
    os.utime(tmp_path / ".tmp-notes.txt", (0, 0))
    files.remove_stale(tmp_path)
    files.remove_stale(tmp_path / "none")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".tmp-notes.txt", "b.txt"]


def with_path():
    return {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}


def test_a_full_disk_names_the_file(tmp_path):
    def write():
        with files.replacing(tmp_path / "a.txt"):
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=r"No space left on device: '.*a.txt'"):
        write()


def test_texts_with_marks_and_other_encodings(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b"\xef\xbb\xbf" + '{"ä": 1}'.encode())
    assert files.read_json(path, "a test") == {"ä": 1}
    path.write_bytes('{"ä": 1}'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"a.json must be a text in UTF-8; it is not: byte 0xe4 at 2"):
        files.read_json(path, "a test")
    for text in ("", "{", "[1]", "[" * 100_000):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"a.json must be a test; it"):
            files.read_json(path, "a test")
