"""Volumes larger than memory: how one is predicted within a budget, and the ensemble in tiles and files."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import gettempdir

import numpy as np

from ncaseg.budget import resident_bytes, show_bytes
from ncaseg.config import DataConfig
from ncaseg.data.dataset import Volume, loading_bytes
from ncaseg.data.index import Case
from ncaseg.ensemble import DEFAULT_RULE, Combined, combine
from ncaseg.lean.disk import Box, DiskState
from ncaseg.lean.model import SLAB_BYTES, EdgeModel, entry_rows, entry_source, logits_of, size_of, slabs
from ncaseg.lean.plan import TilePlan, plan_tiles, tile_bytes
from ncaseg.lean.tiles import run_tiles
from ncaseg.levels import Triple

RESERVE_BYTES = 128 * 2**20  # for slabs and their copies, and what the kernel's threads need


@dataclass(frozen=True)
class Plan:
    """How a volume is predicted within a budget; ``tiles`` is None where the whole fits."""

    whole_bytes: int
    budget_bytes: int
    tiles: tuple[TilePlan, ...] | None = None
    scratch_bytes: int = 0

    def __str__(self) -> str:
        allowed = show_bytes(self.budget_bytes)
        need = f"the whole volume at once needs {show_bytes(self.whole_bytes)} of memory, {allowed} are allowed"
        if self.tiles is None:
            return f"{need}: at once"
        levels = "; ".join(f"level {i}: {plan}" for i, plan in enumerate(self.tiles))
        return f"{need}: in tiles, with {show_bytes(self.scratch_bytes)} of files\n{levels}"


def check_loading(case: Case, cfg: DataConfig, budget_bytes: int) -> None:
    """Raise a ValueError unless the budget holds reading an image and normalising it, beside what is in use now."""
    need = resident_bytes() + loading_bytes(case, cfg) + SLAB_BYTES  # for slices and the buffers of the file
    if need > budget_bytes:
        raise ValueError(
            f"memory must hold {case.image} while it is read and normalised, {show_bytes(need)} with what is in use "
            f"already; got {show_bytes(budget_bytes)}. Give more memory"
        )


def plan_prediction(
    model: EdgeModel,
    volume: Volume,
    *,
    samples: int,
    budget_bytes: int,
    with_variance: bool = False,
    rule: str = DEFAULT_RULE,
) -> Plan:
    """Whole if it fits, else tiles, given what this process occupies now (the image is part of that).

    Args:
        volume: from ``load_case``.
        samples: members of the ensemble.
        budget_bytes: the most memory that the process may occupy.
        with_variance: whether the variance map is asked for, which lies in memory.
        rule: how members become one; the median holds all of them.

    Raises:
        ValueError: the budget does not hold one tile; the message names the amounts.
    """
    size, cfg = size_of(volume.image), model.cfg
    sizes = model.sizes(size)
    cells = max(math.prod(size), math.prod(volume.native_size))
    used = resident_bytes() + cells * (5 if with_variance else 1)
    logits = 4 * cfg.out_channels * cells
    held = samples * logits if rule == "median" else 0
    # Combining holds up to ten arrays of logits, but no state.
    states = max(tile_bytes(s, p, model.spec) for s, p in zip(sizes, model.levels, strict=True))
    whole = used + max(states + 4 * logits, 10 * logits) + held + RESERVE_BYTES
    if whole <= budget_bytes:
        return Plan(whole, budget_bytes)
    if cfg.ndim == 2:
        raise ValueError(
            f"memory must hold whole volumes with model.ndim 2, {show_bytes(whole)}; got {show_bytes(budget_bytes)}. "
            "Give more memory"
        )
    # Resizing takes the logits of a member as a whole, and some copies of them; the median a row of all members.
    resizing = 4 * logits if volume.is_resized else 0
    left = budget_bytes - used - RESERVE_BYTES - max(resizing, held // volume.native_size[0])
    tiles = tuple(
        plan_tiles(s, p, model.spec, steps, left) for s, p, steps in zip(sizes, model.levels, cfg.steps, strict=True)
    )
    last = 4 * cfg.channels * math.prod(sizes[-1])
    return Plan(whole, budget_bytes, tiles, 2 * last + logits * samples)


def run_in_tiles(
    model: EdgeModel,
    volume: Volume,
    plans: tuple[TilePlan, ...],
    *,
    samples: int,
    seed: int,
    rule: str,
    scratch: Path | None = None,
    with_spread: bool = False,
) -> Iterator[tuple[range, Combined]]:
    """The combined ensemble, some rows of the first axis at a time; states and logits lie in files.

    Args:
        volume: from ``load_case``.
        plans: one per level, see :func:`plan_prediction`.
        samples, seed: members of the ensemble; the stream of fire bits.
        rule, with_spread: as in :func:`ncaseg.ensemble.combine`.
        scratch: folder of the files, by default the system's; nothing is left there.

    Yields:
        Rows of the native grid, and what the ensemble says about them.
    """
    folder = Path(gettempdir()) if scratch is None else scratch
    x, y, z = volume.native_size
    size = (x, y, z)
    with ExitStack() as files:
        members = []
        for member in range(samples):
            logits = files.enter_context(DiskState(folder, size, model.cfg.out_channels))
            _member_in_tiles(model, volume, plans, folder, logits, seed=seed, member=member)
            members.append(logits)
        for rows in slabs(size, model.cfg.out_channels * (2 + samples)):
            parts = (np.moveaxis(logits.read(_box(rows, size))[0], -1, 0) for logits in members)
            yield rows, combine(parts, rule=rule, with_spread=with_spread)


def check_scratch(plan: Plan, scratch: Path | None) -> None:
    """Raise an OSError unless the folder has room for the files of a plan."""
    folder = Path(gettempdir()) if scratch is None else scratch
    free = shutil.disk_usage(folder).free
    if plan.scratch_bytes > free:
        raise OSError(
            f"scratch must be a folder with {show_bytes(plan.scratch_bytes)} free for the states; {folder} has "
            f"{show_bytes(free)}. Name another one (--scratch DIR)"
        )


def _member_in_tiles(
    model: EdgeModel,
    volume: Volume,
    plans: tuple[TilePlan, ...],
    folder: Path,
    logits: DiskState,
    *,
    seed: int,
    member: int,
) -> None:
    """Run one member level by level and store its logits on the native grid."""
    image = volume.image
    coarse: DiskState | None = None
    with ExitStack() as files:
        for level, plan in enumerate(plans):
            pair = [files.enter_context(DiskState(folder, plan.size, model.cfg.channels)) for _ in range(2)]
            for rows in slabs(plan.size, model.cfg.channels):
                above = entry_source(model, level, rows)
                given = None if coarse is None else _rows(coarse, above)
                pair[0].write(_box(rows, plan.size), entry_rows(model, image, level, plan.size, rows, given))
            if coarse is not None:
                coarse.close()
            stream = model.stream(level, seed=seed, member=member)
            steps = model.cfg.steps[level]
            coarse = run_tiles(pair[0], pair[1], model.levels[level], model.spec, steps, plan, stream)
        assert coarse is not None  # a model has at least one level
        _store_logits(model, volume, coarse, logits)


def _store_logits(model: EdgeModel, volume: Volume, state: DiskState, logits: DiskState) -> None:
    size = size_of(volume.image) if volume.is_resized else logits.size
    parts = (
        (rows, logits_of(model, _rows(state, rows), (len(rows), *size[1:]))) for rows in slabs(size, state.channels)
    )
    if volume.is_resized:
        whole = volume.to_native(np.concatenate([part for _, part in parts], axis=1))
        logits.write(_box(range(logits.size[0]), logits.size), np.moveaxis(whole, 0, -1))
        return
    for rows, part in parts:
        logits.write(_box(rows, size), np.moveaxis(part, 0, -1))


def _rows(state: DiskState, rows: range) -> np.ndarray:
    return state.read(_box(rows, state.size))[0]


def _box(rows: range, size: Triple) -> Box:
    return slice(rows.start, rows.stop), slice(0, size[1]), slice(0, size[2])
