"""States in files: their space is there before they are used."""

import errno
import os

import numpy as np
import pytest

from ncaseg.lean import disk
from ncaseg.lean.disk import DiskState


def test_space_is_taken_at_once(tmp_path):
    free = os.statvfs(tmp_path).f_bfree
    with DiskState(tmp_path, (64, 64, 64), 8) as state:
        taken = (free - os.statvfs(tmp_path).f_bfree) * os.statvfs(tmp_path).f_frsize
        assert taken > 0.9 * 4 * 8 * 64**3
        box = (slice(3, 9), slice(0, 64), slice(5, 7))
        cells = np.random.default_rng(0).normal(size=(6, 64, 2, 8)).astype(np.float32)
        state.write(box, cells)
        np.testing.assert_array_equal(state.read(box)[0], cells)


def test_a_full_scratch_disk_is_an_error_and_no_signal(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(disk.os, "posix_fallocate", full)
    with pytest.raises(OSError, match=rf"No space left on device: 4096 bytes for a state: '{tmp_path}'"):
        DiskState(tmp_path, (4, 8, 4), 8)
    assert list(tmp_path.iterdir()) == []


def test_systems_that_cannot_take_space_do_without(tmp_path, monkeypatch):
    monkeypatch.delattr(disk.os, "posix_fallocate")
    with DiskState(tmp_path, (4, 8, 4), 8) as state:
        assert state.read((slice(0, 4), slice(0, 8), slice(0, 4))).sum() == 0
