"""The training loop, top to bottom in one file; what a step does is the task's, see :mod:`ncaseg.training.tasks`.

Everything random is a function of (seed, step): the order of the cases, their augmentation, the crops, the fire bits.
A run that was killed therefore continues from ``state.pt`` with the same bits as one that was not (on the CPU, same
thread count), and there is no generator to save.
"""

import functools
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ncaseg.config import Config, TrainConfig
from ncaseg.data.dataset import CaseStore, grid_sizes
from ncaseg.data.index import find_cases, find_groups
from ncaseg.data.split import Split
from ncaseg.data.survey import survey
from ncaseg.levels import Triple
from ncaseg.models import build_model
from ncaseg.models.base import Segmenter
from ncaseg.streams import WEIGHTS, stream
from ncaseg.training.batches import draw_batches, steps_per_epoch
from ncaseg.training.folder import RunFolder, State, best_weights, check_folder, claimed, find_split
from ncaseg.training.interrupts import Interrupted, Interrupts, hearing_signals
from ncaseg.training.logs import Progress, RunLog
from ncaseg.training.memory import check_memory
from ncaseg.training.tasks import make_task
from ncaseg.training.tasks.base import Outcome, Task

COLUMNS = ("step", "epoch", "loss", "lr", "grad_norm", "seconds", "val_dice")


def train(
    cfg: Config,
    data_dir: str | Path | None,
    out_dir: str | Path,
    resume: bool = True,
    *,
    images: str | Path | None = None,
    labels: str | Path | None = None,
) -> Path:
    """Train a model and return the path of its checkpoint.

    The last weights are the result, or their running mean where the recipe asks for one; validation is only watched, it
    selects nothing. The folder of the run holds ``recipe.toml``, ``split.json``, ``log.csv``, ``log.jsonl``,
    ``model.safetensors``, and ``state.pt`` with the one before it, ``state.previous.pt``.

    Args:
        cfg: the recipe.
        data_dir: dataset folder, see :func:`ncaseg.data.index.find_cases`.
        out_dir: folder of the run, created when missing.
        resume: continue the run found there; False refuses to touch one.
        images, labels: folders of volumes with equal names, instead of ``data_dir`` (None then).

    Raises:
        FileExistsError: the folder holds a run and ``resume`` is False.
        ValueError: the folder holds a run of another recipe, the data do not match the split, or a case is broken.
        RuntimeError: another process trains in the folder.
        MemoryError: a training step will not fit; nothing has been written yet.
        FloatingPointError: the loss or a gradient is not finite; the last good state has been kept.
        Interrupted: Ctrl-C, SIGTERM or SIGHUP; the state after the last whole step has been saved.
    """
    out = Path(out_dir)
    device = _device(cfg.train.device)
    cases = find_cases(data_dir, images=images, labels=labels)
    sizes = grid_sizes(cases, cfg.data)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream(cfg.train.seed, WEIGHTS))
        model = build_model(cfg.model, cfg.cdal).to(device)
        task = make_task(cfg, model)
    check_sizes(sizes, task)
    print(check_memory(task, list(sizes.values()), device), file=sys.stderr)
    check_folder(out, cfg, resume)
    split = find_split(out / "split.json", cases, cfg, find_groups(data_dir, sizes))
    volumes = CaseStore(cases, cfg.data)
    for line in survey(volumes, [*split.train, *split.validation], cfg.data):
        print(f"note: {line}", file=sys.stderr)
    with claimed(out, cfg, split, resume):  # not before the cases were read, which may ask for another recipe
        _Run(task, split, volumes, RunFolder(out, split, cases)).finish()
    return out / "model.safetensors"


class _Run:
    """A training between its first step and its last."""

    def __init__(self, task: Task, split: Split, volumes: CaseStore, folder: RunFolder) -> None:
        self.task, self.split, self.volumes, self.folder = task, split, volumes, folder
        self.cfg = task.cfg.train
        self.columns = (*COLUMNS, *task.columns)
        self.average = make_average(task.model, self.cfg)
        self.per_epoch = steps_per_epoch(len(split.train), self.cfg)
        self.total = self.cfg.steps if self.cfg.steps > 0 else self.cfg.epochs * self.per_epoch
        self.now = folder.restore(task, self.average)

    def finish(self) -> None:
        """Take every step that is left; save now and then, at the end, and where a signal ends it."""
        with (
            hearing_signals() as interrupts,
            RunLog(self.folder.path, self.columns, keep_through=self.now.step) as log,
            Progress(self.total, start=self.now.step) as progress,
        ):
            try:
                while self.now.step < self.total:
                    row = self.step(interrupts, log)
                    shown = "" if row["val_dice"] is None else f"  val dice {row['val_dice']:.3f}"
                    progress.update(self.now.step, f"loss {row['loss']:.4f}  lr {row['lr']:.2e}{shown}")
                    if _is_due(self.now.step, self.total, self.cfg.checkpoint_every):
                        self.save()
            except Interrupted as stop:
                self.save()
                stop.saved = f"the state after step {self.now.step} of {self.total} is in {self.folder.state_path}"
                raise

    def step(self, interrupts: Interrupts, log: RunLog) -> dict[str, Any]:
        """Take one step and return its row of the log, which has been written."""
        began, now = time.monotonic(), self.now
        row: dict[str, Any] = {"step": now.step + 1, "epoch": now.step // self.per_epoch}
        outcome = self._update(row)
        row |= {"loss": outcome.loss, "grad_norm": outcome.grad_norm, "val_dice": None}
        row |= {name: _mean(outcome.parts.get(name, [])) for name in self.task.columns}
        try:
            interrupts.step_is_done()
            if self.cfg.validate_every > 0 and _is_due(now.step, self.total, self.cfg.validate_every):
                best = best_weights(self.task.model, self.average)
                row["val_dice"] = self.task.validation_dice(best, self.volumes, self.split.validation)
        finally:  # the step has been taken, whatever becomes of its validation
            row["seconds"] = round(time.monotonic() - began, 4)
            log.write({name: row[name] for name in self.columns})
        return row

    def save(self) -> None:
        self.folder.save(self.task, self.average, self.now)

    def _update(self, row: dict[str, Any]) -> Outcome:
        """Move the weights, their mean and the position; note the rate in the row."""
        now, per_epoch = self.now, self.per_epoch
        epoch = now.step // per_epoch
        rate = functools.partial(learning_rate, updates=now.updates, total=self.total, epoch=epoch, per_epoch=per_epoch)
        outcome = self.task.step(self.volumes, draw_batches(self.split.train, self.cfg, now.step), now.step, rate)
        row["lr"] = rate(self.cfg)
        if not outcome.is_finite:
            raise FloatingPointError(
                f"training stopped at step {now.step}: loss {outcome.loss}, gradient norm {outcome.grad_norm}, lr "
                f"{row['lr']:.3g}; {self.folder.roll_back(now.step)}. Lower train.lr or set train.grad_clip=1.0 in a "
                "new run"
            )
        now.updates += outcome.learned
        now.step += 1
        if self.average is not None and is_averaged(self.cfg, now, per_epoch):
            self.average.update_parameters(self.task.model)
            now.averaged = now.updates
        return outcome


def check_sizes(sizes: Mapping[str, Triple], task: Task) -> None:
    """Make sure that every volume fits every level, in training and whole, before hours of training have passed.

    Raises:
        ValueError: one does not; the message names the case, the level and the axis.
    """
    for case, size in sizes.items():
        try:
            task.check_size(size)
        except ValueError as error:
            raise ValueError(f"case {case}: {error}") from error


def learning_rate(cfg: TrainConfig, updates: int, total: int, epoch: int = 0, per_epoch: int = 1) -> float:
    """The rate of the next optimiser step after ``updates`` of ``total``, in epoch ``epoch`` of ``per_epoch`` each."""
    if cfg.lr_interval == "epoch":
        updates, total = epoch, math.ceil(total / per_epoch)
    if cfg.schedule == "exponential":
        return cfg.lr * cfg.lr_decay**updates
    if cfg.schedule == "cosine":
        return cfg.lr * (cfg.lr_final + (1 - cfg.lr_final) * 0.5 * (1 + math.cos(math.pi * updates / total)))
    return cfg.lr


def make_average(model: Segmenter, cfg: TrainConfig) -> AveragedModel | None:
    """The running mean of the weights, still without content; None where the recipe has none."""
    if cfg.ema_decay == 0.0:
        return None
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(cfg.ema_decay))


def is_averaged(cfg: TrainConfig, state: State, per_epoch: int) -> bool:
    """Whether the weights that a run has come to enter the running mean, which takes none twice."""
    is_now = cfg.ema_interval == "step" or state.step % per_epoch == 0
    return is_now and state.updates > max(cfg.ema_start, state.averaged)


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _is_due(step: int, total: int, every: int) -> bool:
    """Whether something that happens every so many steps, and at the end, happens now; 0 means only at the end."""
    return step == total or (every > 0 and step % every == 0)


def _device(name: str) -> torch.device:
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"train.device is {name!r}, but torch {torch.__version__} sees no CUDA device; use 'cpu'")
    return device
