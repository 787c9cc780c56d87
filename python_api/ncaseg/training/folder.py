"""The folder of a run: one process at a time, one recipe, one split, and checkpoints that only ever get better."""

import dataclasses
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.optim.swa_utils import AveragedModel

from ncaseg import config, files
from ncaseg.checkpoint.model import load_state, save_model, save_state
from ncaseg.checkpoint.reader import read_weights
from ncaseg.config import Config
from ncaseg.data.index import Case
from ncaseg.data.split import Split, load_split, make_split, save_split
from ncaseg.models.base import Segmenter
from ncaseg.training.tasks.base import Task

try:
    import fcntl
except ImportError:  # not on Windows, where two processes on a folder go unnoticed
    fcntl = None  # type: ignore[assignment]


@dataclasses.dataclass
class State:
    """How far a run is: steps done, updates of the weights, and how many of these the running mean had last seen."""

    step: int = 0
    updates: int = 0
    averaged: int = 0


class RunFolder:
    """The checkpoints in a folder.

    ``state.pt`` is written before ``model.safetensors``, which follows from it: a run that was killed between the two
    writes it again. A state counts as good once the step after it was finite; until then the one before it is kept.
    """

    def __init__(self, path: Path, split: Split, cases: Sequence[Case]) -> None:
        self.path, self._split = path, split
        self._bytes = {case.id: sum(file.stat().st_size for file in case.files) for case in cases}
        self.state_path, self.model_path = path / "state.pt", path / "model.safetensors"
        self._previous = path / "state.previous.pt"
        self._saved: int | None = None  # the step of the state on disk

    def save(self, task: Task, average: AveragedModel | None, state: State) -> None:
        """Write both files, unless they are of this very step.

        Raises:
            FloatingPointError: a weight is not finite; nothing has been written.
        """
        if self._saved == state.step:
            return
        best = best_weights(task.model, average)
        if not all(torch.isfinite(tensor).all() for tensor in best.state_dict().values()):
            raise FloatingPointError(f"weights are not finite after step {state.step}; {self._last_good()}")
        if self.state_path.exists():
            with files.replacing(self._previous) as temporary:
                shutil.copyfile(self.state_path, temporary)
        content = dataclasses.asdict(state) | {"split_sha256": self._split.sha256, "bytes": self._bytes} | task.state()
        save_state(self.state_path, content | ({} if average is None else {"average": average.state_dict()}))
        self._saved = state.step
        self._save_model(task, average, state)

    def restore(self, task: Task, average: AveragedModel | None) -> State:
        """Take over the saved state, if there is one; the start of the run, if not.

        Raises:
            ValueError: the state belongs to another split, or the folder holds a result without its state.
        """
        if not self.state_path.exists():
            if self.model_path.exists():
                raise ValueError(
                    f"{self.model_path} has no {self.state_path.name} beside it: training would start over and replace "
                    "it. Choose another folder, or move the model away"
                )
            return State()
        saved = load_state(self.state_path)
        if saved["split_sha256"] != self._split.sha256:
            raise ValueError(f"{self.state_path} belongs to another split than the one in {self.path / 'split.json'}")
        self._compare_files(saved.get("bytes", {}))
        task.restore(saved)
        if average is not None:
            average.load_state_dict(saved["average"])
        # States of older versions do not say; theirs is right where the last update has been averaged.
        state = State(saved["step"], saved["updates"], saved.get("averaged", saved["updates"]))
        self._saved = state.step
        if self._model_step() != str(state.step):
            self._save_model(task, average, state)
        return state

    def _model_step(self) -> str | None:
        """The step of the model on disk; None where there is none that can be read."""
        try:
            return read_weights(self.model_path).metadata.get("step") if self.model_path.exists() else None
        except ValueError as error:
            print(f"note: {error}; it is written again, from {self.state_path.name}", file=sys.stderr)
            return None

    def roll_back(self, step: int) -> str:
        """Drop the state of ``step``, from which nothing finite followed; say where the last good one is."""
        if self._saved == step:
            self.model_path.unlink(missing_ok=True)  # made again from the state when the run is resumed
            if self._previous.exists():
                os.replace(self._previous, self.state_path)
            else:
                self.state_path.unlink()
        return self._last_good()

    def _compare_files(self, before: Mapping[str, int]) -> None:
        """Say so where a run goes on with other files than those that it began with."""
        others = [name for name, size in before.items() if self._bytes.get(name, size) != size]
        if others:
            print(
                f"note: {len(others)} of {len(before)} images are not the files that this run began with, e.g. "
                f"{others[0]}; for other data choose another folder",
                file=sys.stderr,
            )

    def _last_good(self) -> str:
        if not self.state_path.exists():
            return "no good state was saved before"
        return f"the last good state, of step {load_state(self.state_path)['step']}, is in {self.state_path}"

    def _save_model(self, task: Task, average: AveragedModel | None, state: State) -> None:
        best = best_weights(task.model, average)
        metadata = {
            "step": str(state.step),
            "split_sha256": self._split.sha256,
            "weights": "last" if best is task.model else "average",
        }
        save_model(self.model_path, best, task.cfg, metadata)


def best_weights(model: Segmenter, average: AveragedModel | None) -> Segmenter:
    """The model to judge and to keep: the running mean once it has content, else the weights as they are."""
    if average is None or average.n_averaged == 0:
        return model
    assert isinstance(average.module, Segmenter)
    return average.module


def check_folder(path: Path, cfg: Config, resume: bool) -> None:
    """In a used folder, insist on the same recipe; nothing is written.

    Raises:
        FileExistsError: the folder holds a run and ``resume`` is False.
        ValueError: it holds a run of another recipe, or is no folder.
    """
    there = next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())
    if not there.is_dir():
        raise ValueError(f"{path} must be a folder, or not exist yet; {there} is a file")
    recipe = path / "recipe.toml"
    if not recipe.exists() and not (path / "state.pt").exists():
        return
    if not resume:
        raise FileExistsError(f"{path} holds a run; resume it, or choose another folder")
    if changes := config.differences(config.load_recipe(recipe), cfg):
        listed = "; ".join(changes)
        raise ValueError(f"{path} holds a run of another recipe; choose another folder. Differences: {listed}")


@contextmanager
def claimed(path: Path, cfg: Config, split: Split, resume: bool) -> Iterator[None]:
    """Hold a folder for this process, with recipe and split in it.

    Raises:
        RuntimeError: another process trains in it.
        FileExistsError, ValueError: as :func:`check_folder`.
    """
    path.mkdir(parents=True, exist_ok=True)
    with (path / ".lock").open("a+b", buffering=0) as lock:
        _lock(lock, path)
        files.remove_stale(path, young_s=0.0)  # whoever wrote here held the lock
        check_folder(path, cfg, resume)  # a process that has ended since may have filled it
        if not (path / "recipe.toml").exists():
            files.write_text(path / "recipe.toml", config.to_toml(cfg))
        if not (path / "split.json").exists():
            save_split(path / "split.json", split)
        yield


def _lock(lock, path: Path) -> None:
    """Lock an open file until it is closed, which the end of a process does too, however it ends."""
    if fcntl is None:
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        holder = lock.read().decode().strip() or "a process that does not say its name"
        raise RuntimeError(
            f"{path} is in use: {holder} trains in it. Wait until it ends, or choose another folder"
        ) from None
    lock.truncate(0)
    with files.naming(path):
        lock.write(f"process {os.getpid()} on {platform.node()}\n".encode())


def find_split(path: Path, cases: list[Case], cfg: Config, groups: Mapping[str, str]) -> Split:
    """The split of the run: read if it is there, else made of all cases. What it names needs a label."""
    ids = [case.id for case in cases]
    data = cfg.data
    split = load_split(path) if path.exists() else make_split(ids, data.validation_fraction, data.split_seed, groups)
    named = {*split.train, *split.validation}
    unlabelled = sorted(case.id for case in cases if case.label is None and case.id in named)
    if unlabelled:
        raise ValueError(
            f"{len(unlabelled)} images have no label, e.g. {unlabelled[0]}; training needs one for each, or a "
            f"{path.name} in the folder of the run that leaves them out"
        )
    missing = sorted(named - set(ids))
    if missing:
        raise ValueError(f"{path} names {len(missing)} cases that the data do not hold, e.g. {missing[0]}")
    left_out = sorted(case.id for case in cases if case.label is not None and case.id not in named)
    if left_out and not data.allow_left_out:
        raise ValueError(
            f"{path} leaves out {len(left_out)} labelled cases of the data, e.g. {left_out[0]}. Start a new run, or "
            "set data.allow_left_out=true"
        )
    return split
