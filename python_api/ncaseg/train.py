"""The training loop, top to bottom in one file.

Everything random is a function of (seed, step): the order of the cases, the crops and the fire bits. A run that was
killed therefore continues from ``state.pt`` with the same bits as one that was not (on the CPU, same thread count),
and there is no generator to save.
"""

import math
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ncaseg import config, files
from ncaseg.checkpoint import load_state, save_model, save_state
from ncaseg.config import Config, TrainConfig
from ncaseg.data.dataset import CaseStore, encode_label, pad_end
from ncaseg.data.index import Case, find_cases
from ncaseg.data.split import Split, load_split, make_split, save_split
from ncaseg.logs import Progress, RunLog
from ncaseg.losses import dice_bce
from ncaseg.metrics import hard_dice
from ncaseg.models import build_model
from ncaseg.models.segmenter import M3D

COLUMNS = ("step", "epoch", "loss", "lr", "grad_norm", "seconds", "val_dice")
WEIGHTS, ORDER, CROP, FIRE, VALIDATE = range(5)  # purposes of the random streams


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

    The last weights are the result; validation is only watched, it selects nothing. The folder of the run holds
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
        FloatingPointError: the loss or a gradient is not finite; the last good state has been saved.
    """
    out = Path(out_dir)
    device = _device(cfg.train.device)
    cases = find_cases(data_dir, images=images, labels=labels)
    _claim_folder(out, cfg, resume)
    split = _fix_split(out / "split.json", cases, cfg)
    volumes = CaseStore(cases, cfg.data)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_stream(cfg.train, WEIGHTS))
        model = build_model(cfg.model).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=cfg.train.lr, betas=cfg.train.betas)
    per_epoch = math.ceil(len(split.train) / (cfg.train.batch_size * cfg.train.accumulate))
    total = cfg.train.steps if cfg.train.steps > 0 else cfg.train.epochs * per_epoch
    step = updates = 0
    if (out / "state.pt").exists():
        step, updates = _restore(out / "state.pt", model, optimizer, split)

    with RunLog(out, COLUMNS, keep_through=step) as log, Progress(total, start=step) as progress:
        while step < total:
            began = time.monotonic()
            lr = learning_rate(cfg.train, updates, total)
            for group in optimizer.param_groups:
                group["lr"] = lr
            batches = draw_batches(split.train, cfg.train, step)
            loss, learned = _accumulate(model, optimizer, volumes, batches, cfg, step)
            limit = cfg.train.grad_clip if cfg.train.grad_clip > 0 else math.inf
            grad_norm = float(nn.utils.clip_grad_norm_(model.parameters(), limit))
            if not math.isfinite(loss + grad_norm):
                _save(out, model, optimizer, cfg, split, step, updates)
                raise FloatingPointError(
                    f"training stopped at step {step}: loss {loss}, gradient norm {grad_norm}, lr {lr:.3g}; the state "
                    f"before this step is in {out / 'state.pt'}. Lower train.lr or set train.grad_clip=1.0 in a new run"
                )
            if learned:
                optimizer.step()
                updates += 1
            step += 1

            val_dice = None
            if cfg.train.validate_every > 0 and _is_due(step, total, cfg.train.validate_every):
                val_dice = validation_dice(model, volumes, split.validation, cfg)
            row = {"step": step, "epoch": (step - 1) // per_epoch, "loss": loss, "lr": lr, "grad_norm": grad_norm}
            log.write(row | {"seconds": round(time.monotonic() - began, 4), "val_dice": val_dice})
            shown = "" if val_dice is None else f"  val dice {val_dice:.3f}"
            progress.update(step, f"loss {loss:.4f}  lr {lr:.2e}{shown}")
            if _is_due(step, total, cfg.train.checkpoint_every):
                _save(out, model, optimizer, cfg, split, step, updates)
    return out / "model.safetensors"


def learning_rate(cfg: TrainConfig, updates: int, total: int) -> float:
    """The rate of the next optimiser step after ``updates`` of them, of ``total``."""
    if cfg.schedule == "exponential":
        return cfg.lr * cfg.lr_decay**updates
    if cfg.schedule == "cosine":
        return cfg.lr * (cfg.lr_final + (1 - cfg.lr_final) * 0.5 * (1 + math.cos(math.pi * updates / total)))
    return cfg.lr


def draw_batches(ids: Sequence[str], cfg: TrainConfig, step: int) -> list[tuple[str, ...]]:
    """The batches of optimiser step ``step``: a new permutation each epoch, the last, smaller group is kept."""
    group = cfg.batch_size * cfg.accumulate
    epoch, place = divmod(step, math.ceil(len(ids) / group))
    order = np.random.default_rng(_stream(cfg, ORDER, epoch)).permutation(len(ids))
    chosen = [ids[i] for i in order[place * group : (place + 1) * group]]
    return [tuple(chosen[i : i + cfg.batch_size]) for i in range(0, len(chosen), cfg.batch_size)]


@torch.no_grad()
def validation_dice(model: M3D, volumes: CaseStore, ids: Sequence[str], cfg: Config) -> float | None:
    """Mean hard Dice of the merged foreground at native geometry, one run per case; None without cases."""
    device = next(model.parameters()).device
    scores = []
    for number, case in enumerate(ids):
        volume = volumes[case]
        image = torch.from_numpy(volume.image)[None].to(device)
        logits = model(image, seed=_stream(cfg.train, VALIDATE), first_sample=number)  # [1, C_out, *S]
        found = (logits[0] > 0).any(dim=0).cpu().numpy()
        native = found[tuple(slice(0, n) for n in volume.native_size)]
        scores.append(hard_dice(native, np.asarray(volume.require_label() > 0)))
    return sum(scores) / len(scores) if scores else None


def _accumulate(
    model: M3D,
    optimizer: torch.optim.Optimizer,
    volumes: CaseStore,
    batches: list[tuple[str, ...]],
    cfg: Config,
    step: int,
) -> tuple[float, bool]:
    """Leave the mean gradient over the batches in the parameters; return the mean loss, and whether there is one."""
    optimizer.zero_grad(set_to_none=True)
    device = next(model.parameters()).device
    mean_loss, learned = 0.0, False
    for number, ids in enumerate(batches):
        image, target = (tensor.to(device) for tensor in _load_batch(volumes, ids, cfg))
        logits, target = model.crop_forward(
            image,
            target,
            seed=_stream(cfg.train, FIRE, step, number),
            generator=torch.Generator().manual_seed(_stream(cfg.train, CROP, step, number)),
            keep_every=cfg.train.keep_every,
        )
        loss = dice_bce(logits, target, skip_empty=cfg.train.skip_empty) / len(batches)
        mean_loss += loss.item()
        if loss.requires_grad:
            loss.backward()
            learned = True
    return mean_loss, learned


def _load_batch(volumes: CaseStore, ids: tuple[str, ...], cfg: Config) -> tuple[Tensor, Tensor]:
    """``[B, C_in, *S]`` and ``[B, C_out, *S]``, every case ``duplication`` times in a row."""
    images, targets = [], []
    for case in ids:
        volume = volumes[case]
        target = encode_label(volume.require_label(), cfg.data.labels, cfg.model.out_channels)
        images.append(volume.image)
        targets.append(pad_end(target, volume.image.shape[1:]))
    sizes = {image.shape[1:] for image in images}
    if len(sizes) > 1:
        raise ValueError(
            f"train.batch_size {cfg.train.batch_size} needs volumes of one size; got {sorted(sizes)}. Set data.size, "
            "or train.batch_size=1 with train.accumulate"
        )
    times = cfg.train.duplication
    return (
        torch.from_numpy(np.stack(images)).repeat_interleave(times, dim=0),
        torch.from_numpy(np.stack(targets)).repeat_interleave(times, dim=0),
    )


def _stream(cfg: TrainConfig, *key: int) -> int:
    """A 63-bit seed for one purpose: streams of different keys are independent, equal keys give equal bits."""
    return int(np.random.SeedSequence((cfg.seed, *key)).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _is_due(step: int, total: int, every: int) -> bool:
    """Whether something that happens every so many steps, and at the end, happens now; 0 means only at the end."""
    return step == total or (every > 0 and step % every == 0)


def _device(name: str) -> torch.device:
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"train.device is {name!r}, but torch {torch.__version__} sees no CUDA device; use 'cpu'")
    return device


def _claim_folder(out: Path, cfg: Config, resume: bool) -> None:
    """Write the recipe into a new folder; in a used one, insist on the same recipe."""
    recipe = out / "recipe.toml"
    if recipe.exists() or (out / "state.pt").exists():
        if not resume:
            raise FileExistsError(f"{out} holds a run; resume it, or choose another folder")
        changes = config.differences(config.load_recipe(recipe), cfg)
        if changes:
            listed = "; ".join(changes)
            raise ValueError(f"{out} holds a run of another recipe; choose another folder. Differences: {listed}")
    else:
        files.write_text(recipe, config.to_toml(cfg))


def _fix_split(path: Path, cases: list[Case], cfg: Config) -> Split:
    """The split of the run: read if it is there, else made and written."""
    unlabelled = [case.id for case in cases if case.label is None]
    if unlabelled:
        raise ValueError(f"{len(unlabelled)} images have no label, e.g. {unlabelled[0]}; training needs one for each")
    if not path.exists():
        save_split(path, make_split([case.id for case in cases], cfg.data.validation_fraction, cfg.data.split_seed))
    split = load_split(path)
    missing = sorted({*split.train, *split.validation} - {case.id for case in cases})
    if missing:
        raise ValueError(f"{path} names {len(missing)} cases that the data do not hold, e.g. {missing[0]}")
    return split


def _save(
    out: Path, model: M3D, optimizer: torch.optim.Optimizer, cfg: Config, split: Split, step: int, updates: int
) -> None:
    save_model(out / "model.safetensors", model, cfg, {"step": str(step), "split_sha256": split.sha256})
    state = {"step": step, "updates": updates, "split_sha256": split.sha256}
    save_state(out / "state.pt", state | {"model": model.state_dict(), "optimizer": optimizer.state_dict()})


def _restore(path: Path, model: M3D, optimizer: torch.optim.Optimizer, split: Split) -> tuple[int, int]:
    state = load_state(path)
    if state["split_sha256"] != split.sha256:
        raise ValueError(f"{path} belongs to another split than the one in {path.parent / 'split.json'}")
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"], state["updates"]
