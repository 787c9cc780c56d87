"""Signals end a training at once, save what has been done, and never cut an update of the weights in two."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from ncaseg import config
from ncaseg.checkpoint.model import load_state
from ncaseg.checkpoint.reader import read_weights
from ncaseg.data.phantom import write_phantoms
from ncaseg.training import loop
from ncaseg.training.interrupts import Interrupted, hearing_signals
from ncaseg.training.logs import read_rows
from ncaseg.training.tasks.segmentation import Segmentation

TINY = [
    *("model.channels=4", "model.hidden=8", "model.steps=[4]", "train.steps=10", "train.checkpoint_every=0"),
    *("train.validate_every=2", "train.accumulate=1", "data.validation_fraction=0.25"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_phantoms(tmp_path_factory.mktemp("phantoms"), 4, seed=0, size=(12, 12, 12))


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """A run that nothing disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    loop.train(config.load_recipe("demo", TINY), data, folder)
    return folder


def same_weights(*folders):
    a, b = (read_weights(folder / "model.safetensors").arrays for folder in folders)
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def send_at(number, method, call, monkeypatch):
    """Send a signal to this process at the given call of a method of the task, before the method runs."""
    real, calls = getattr(Segmentation, method), []

    def sending(self, *args, **options):
        calls.append(args)
        if len(calls) == call:
            os.kill(os.getpid(), number)
        return real(self, *args, **options)

    monkeypatch.setattr(Segmentation, method, sending)


@pytest.mark.parametrize(
    ("number", "method", "call", "done"),
    [
        (signal.SIGINT, "batch_loss", 4, 3),
        (signal.SIGTERM, "batch_loss", 1, 0),
        (signal.SIGTERM, "validation_dice", 2, 4),
        (signal.SIGHUP, "accumulate", 6, 5),
    ],
)
def test_the_last_whole_step_is_saved_and_the_run_goes_on_from_it(
    data, whole, tmp_path, monkeypatch, number, method, call, done
):
    cfg, before = config.load_recipe("demo", TINY), signal.getsignal(number)
    with monkeypatch.context() as patch:
        send_at(number, method, call, patch)
        with pytest.raises(Interrupted, match=signal.Signals(number).name) as stop:
            loop.train(cfg, data, tmp_path)
    assert signal.getsignal(number) is before
    assert stop.value.number == number and f"after step {done} of 10" in stop.value.saved
    assert load_state(tmp_path / "state.pt")["step"] == done
    assert [row["step"] for row in read_rows(tmp_path / "log.jsonl")] == list(range(1, done + 1))
    loop.train(cfg, data, tmp_path)
    assert same_weights(tmp_path, whole)


def test_an_update_that_has_begun_is_finished_first(data, whole, tmp_path, monkeypatch):
    real = torch.optim.Adam.step

    def half(self, *args, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        return real(self, *args, **options)

    cfg = config.load_recipe("demo", TINY)
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", torch.optim.Optimizer.profile_hook_step(half))
        with pytest.raises(Interrupted):
            loop.train(cfg, data, tmp_path)
    assert load_state(tmp_path / "state.pt")["step"] == 1
    loop.train(cfg, data, tmp_path)
    assert same_weights(tmp_path, whole)


def test_what_the_caller_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
    try:
        with hearing_signals():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def command(data, out):
    more = ["train.steps=100000", *TINY[:3], "train.checkpoint_every=0", "data.validation_fraction=0.25"]
    return [sys.executable, "-m", "ncaseg", "train", "demo", "--data", str(data), "--out", str(out), *more]


def wait_for(what, process, seconds=120):
    end = time.monotonic() + seconds
    while not what():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.05)


def test_the_command_says_what_was_saved_and_a_second_one_keeps_its_hands_off(data, tmp_path):
    log = tmp_path / "log.csv"
    first = subprocess.Popen(command(data, tmp_path), stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: log.exists() and len(log.read_text().splitlines()) > 3, first)
        second = subprocess.run(command(data, tmp_path), capture_output=True, text=True, check=False)
        assert second.returncode == 4
        assert f"{tmp_path} is in use: process {first.pid} on" in second.stderr
        first.send_signal(signal.SIGTERM)
        _, error = first.communicate(timeout=60)
    finally:
        first.kill()
    assert first.returncode == 128 + signal.SIGTERM
    done = load_state(tmp_path / "state.pt")["step"]
    assert done >= 3 and len(log.read_text().splitlines()) == 1 + done
    assert f"after step {done} of 100000 is in" in error and "rerun the same command to resume" in error
