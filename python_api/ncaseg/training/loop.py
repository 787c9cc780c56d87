"""The training loop, top to bottom in one file; what a step does is the task's, see :mod:`ncaseg.training.tasks`.

Everything random is a function of (seed, step): the order of the cases, their augmentation, the crops, the fire bits.
A run that was killed therefore continues from ``state.pt`` with the same bits as one that was not (on the CPU, same
thread count), and there is no generator to save.
"""

import functools
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ncaseg import config, files
from ncaseg.checkpoint.model import load_state, save_model, save_state
from ncaseg.config import Config, TrainConfig
from ncaseg.data.dataset import CaseStore, grid_sizes
from ncaseg.data.index import Case, find_cases, find_groups
from ncaseg.data.split import Split, load_split, make_split, save_split
from ncaseg.data.survey import survey
from ncaseg.levels import Triple, check_reflection, or_native, pad_size, smaller, working_sizes
from ncaseg.models import build_model
from ncaseg.models.base import Segmenter
from ncaseg.streams import WEIGHTS, stream
from ncaseg.training.batches import draw_batches, steps_per_epoch
from ncaseg.training.logs import Progress, RunLog
from ncaseg.training.memory import check_memory
from ncaseg.training.tasks import make_task
from ncaseg.training.tasks.base import Task

COLUMNS = ("step", "epoch", "loss", "lr", "grad_norm", "seconds", "val_dice")


@dataclass
class State:
    """How far a run is: steps done, updates of the weights, and how many of these the running mean had last seen."""

    step: int = 0
    updates: int = 0
    averaged: int = 0


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
    selects nothing. The folder of the run holds
    ``recipe.toml``, ``split.json``, ``log.csv``, ``log.jsonl``, ``state.pt`` and ``model.safetensors``.

    Args:
        cfg: the recipe.
        data_dir: dataset folder, see :func:`ncaseg.data.index.find_cases`.
        out_dir: folder of the run, created when missing.
        resume: continue the run found there; False refuses to touch one.
        images, labels: folders of volumes with equal names, instead of ``data_dir`` (None then).

    Raises:
        FileExistsError: the folder holds a run and ``resume`` is False.
        ValueError: the folder holds a run of another recipe, the data do not match the split, or a case is broken.
        MemoryError: a training step will not fit; nothing has been written yet.
        FloatingPointError: the loss or a gradient is not finite; the last good state has been saved.
    """
    out = Path(out_dir)
    device = _device(cfg.train.device)
    cases = find_cases(data_dir, images=images, labels=labels)
    sizes = grid_sizes(cases, cfg.data)
    check_sizes(sizes, cfg)
    print(check_memory(cfg, list(sizes.values()), device), file=sys.stderr)
    _check_folder(out, cfg, resume)
    split = _find_split(out / "split.json", cases, cfg, find_groups(data_dir, sizes))
    volumes = CaseStore(cases, cfg.data)
    for line in survey(volumes, [*split.train, *split.validation], cfg.data):
        print(f"note: {line}", file=sys.stderr)
    _claim_folder(out, cfg, split)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream(cfg.train.seed, WEIGHTS))
        model = build_model(cfg.model, cfg.cdal).to(device)
        task = make_task(cfg, model)
    average = make_average(model, cfg.train)
    per_epoch = steps_per_epoch(len(split.train), cfg.train)
    total = cfg.train.steps if cfg.train.steps > 0 else cfg.train.epochs * per_epoch
    state = State()
    if (out / "state.pt").exists():
        state = _restore(out / "state.pt", task, average, split)

    columns = (*COLUMNS, *task.columns)
    with RunLog(out, columns, keep_through=state.step) as log, Progress(total, start=state.step) as progress:
        while state.step < total:
            began, epoch = time.monotonic(), state.step // per_epoch
            rate = functools.partial(
                learning_rate, updates=state.updates, total=total, epoch=epoch, per_epoch=per_epoch
            )
            outcome = task.step(volumes, draw_batches(split.train, cfg.train, state.step), state.step, rate)
            lr = rate(cfg.train)
            if not outcome.is_finite:
                _save(out, task, average, split, state)
                raise FloatingPointError(
                    f"training stopped at step {state.step}: loss {outcome.loss}, gradient norm {outcome.grad_norm}, "
                    f"lr {lr:.3g}; the last good state is in {out / 'state.pt'}. Lower train.lr or set "
                    "train.grad_clip=1.0 in a new run"
                )
            state.updates += outcome.learned
            state.step += 1
            if average is not None and is_averaged(cfg.train, state, per_epoch):
                average.update_parameters(model)
                state.averaged = state.updates

            val_dice = None
            if cfg.train.validate_every > 0 and _is_due(state.step, total, cfg.train.validate_every):
                val_dice = task.validation_dice(best_weights(model, average), volumes, split.validation)
            row: dict[str, float | None] = {
                "step": state.step,
                "epoch": epoch,
                "loss": outcome.loss,
                "lr": lr,
                "grad_norm": outcome.grad_norm,
            }
            row |= {"seconds": round(time.monotonic() - began, 4), "val_dice": val_dice}
            log.write(row | {name: _mean(outcome.parts.get(name, [])) for name in task.columns})
            shown = "" if val_dice is None else f"  val dice {val_dice:.3f}"
            progress.update(state.step, f"loss {outcome.loss:.4f}  lr {lr:.2e}{shown}")
            if _is_due(state.step, total, cfg.train.checkpoint_every):
                _save(out, task, average, split, state)
    return out / "model.safetensors"


def check_sizes(sizes: dict[str, Triple], cfg: Config) -> None:
    """Make sure that every volume fits every level, in training and whole, before hours of training have passed.

    Raises:
        ValueError: one does not; the message names the case, the level and the axis.
    """
    model = cfg.model
    has_automata = model.kind != "unet" and (model.kind != "cdal" or cfg.cdal.generator == "nca")
    if not has_automata or model.padding != "reflect":
        return
    for case, size in sizes.items():
        for levels in _level_sizes(size, cfg):
            try:
                check_reflection(levels, model.kernel_sizes, model.ndim)
            except ValueError as error:
                raise ValueError(f"case {case}: {error}") from error


def _level_sizes(size: Triple, cfg: Config) -> list[list[Triple]]:
    """What the levels work on for a volume of this grid: in training, where a box may be cut, and in prediction."""
    model, whole = cfg.model, [()] * len(cfg.model.steps)
    box = or_native(cfg.data.crop, size)
    if model.kind == "cdal":
        window = smaller(or_native(cfg.cdal.window, size), size)
        return [working_sizes(cells, model.scales, whole) for cells in (box, window)]
    box, size = (pad_size(cells, model.scales, model.pad) for cells in (box, size))
    trained = working_sizes(box, model.scales, model.training_patches)
    return [trained, working_sizes(size, model.scales, whole)]


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


def best_weights(model: Segmenter, average: AveragedModel | None) -> Segmenter:
    """The model to judge and to keep: the running mean once it has content, else the weights as they are."""
    if average is None or average.n_averaged == 0:
        return model
    assert isinstance(average.module, Segmenter)
    return average.module


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


def _check_folder(out: Path, cfg: Config, resume: bool) -> None:
    """In a used folder, insist on the same recipe."""
    recipe = out / "recipe.toml"
    if recipe.exists() or (out / "state.pt").exists():
        if not resume:
            raise FileExistsError(f"{out} holds a run; resume it, or choose another folder")
        changes = config.differences(config.load_recipe(recipe), cfg)
        if changes:
            listed = "; ".join(changes)
            raise ValueError(f"{out} holds a run of another recipe; choose another folder. Differences: {listed}")


def _claim_folder(out: Path, cfg: Config, split: Split) -> None:
    """Write recipe and split into a new folder; not before the cases were read, which may ask for another recipe."""
    if not (out / "recipe.toml").exists():
        files.write_text(out / "recipe.toml", config.to_toml(cfg))
    if not (out / "split.json").exists():
        save_split(out / "split.json", split)


def _find_split(path: Path, cases: list[Case], cfg: Config, groups: dict[str, str]) -> Split:
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


def _save(out: Path, task: Task, average: AveragedModel | None, split: Split, state: State) -> None:
    best = best_weights(task.model, average)
    weights = "last" if best is task.model else "average"
    metadata = {"step": str(state.step), "split_sha256": split.sha256, "weights": weights}
    save_model(out / "model.safetensors", best, task.cfg, metadata)
    counts = {"step": state.step, "updates": state.updates, "split_sha256": split.sha256}
    mean = {} if average is None else {"average": average.state_dict(), "averaged": state.averaged}
    save_state(out / "state.pt", counts | task.state() | mean)


def _restore(path: Path, task: Task, average: AveragedModel | None, split: Split) -> State:
    saved = load_state(path)
    if saved["split_sha256"] != split.sha256:
        raise ValueError(f"{path} belongs to another split than the one in {path.parent / 'split.json'}")
    task.restore(saved)
    if average is not None:
        average.load_state_dict(saved["average"])
    # States of older versions do not say; theirs is right where the last update has been averaged.
    return State(saved["step"], saved["updates"], saved.get("averaged", saved["updates"]))
