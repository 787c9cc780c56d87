"""How much memory a training run will need, told before it starts."""

import math
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from ncaseg.budget import show_bytes
from ncaseg.config import Config
from ncaseg.levels import Triple
from ncaseg.models.multilevel import FLOAT_BYTES
from ncaseg.training.tasks.base import Task

LABEL_BYTES = 8
CGROUP = Path("/sys/fs/cgroup")  # version 2, as a container sees its own
CGROUP_FILES = ("memory.max", "memory.current")


def check_memory(task: Task, sizes: Sequence[Triple], device: torch.device) -> str:
    """Estimate what training needs and compare it with what there is.

    Args:
        task: what is trained.
        sizes: grids of all volumes, see :func:`ncaseg.data.dataset.grid_sizes`.
        device: where the training runs.

    Returns:
        One line about both.

    Raises:
        MemoryError: it does not fit; the message says what would.
    """
    size = max(sizes, key=math.prod)
    step, cache = task.step_bytes(size), cache_bytes(task.cfg, sizes)
    cells = "x".join(str(n) for n in size)
    need = f"about {show_bytes(step)} for a training step on {cells} cells"
    free = free_bytes(device)
    on_cpu = cache if device.type == "cpu" else 0
    if on_cpu:
        need += f", {show_bytes(cache)} for the volumes"
    if free is not None and step + on_cpu > free:
        raise MemoryError(f"training needs {need}; {show_bytes(free)} are free. {_advice(task, size, free - on_cpu)}")
    return f"memory: {need}; " + ("free memory unknown" if free is None else f"{show_bytes(free)} free")


def cache_bytes(cfg: Config, sizes: Sequence[Triple]) -> int:
    """Bytes of all volumes in memory: float32 images, int64 labels; 0 where the recipe keeps none."""
    cells = sum(math.prod(size) for size in sizes)
    return cells * (FLOAT_BYTES * cfg.model.in_channels + LABEL_BYTES) if cfg.data.cache else 0


def free_bytes(device: torch.device, *, cgroup: Path = CGROUP) -> int | None:
    """Bytes that can still be had on the device: of the machine, or of the control group that the process is in."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if sys.platform != "linux":
        return None
    lines = Path("/proc/meminfo").read_text().splitlines()
    available = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), None)
    limit = _cgroup_room(cgroup)
    rooms = [room for room in (available, limit) if room is not None]
    return min(rooms, default=None)


def _cgroup_room(folder: Path) -> int | None:
    try:
        limit, used = ((folder / name).read_text().strip() for name in CGROUP_FILES)
    except OSError:
        return None
    return None if limit == "max" else max(0, int(limit) - int(used))


def _advice(task: Task, size: Triple, free: int) -> str:
    smaller = "Use a smaller train.batch_size (with train.accumulate), patches (model.patches) or a machine with more"
    best = math.isqrt(max(task.model.steps, default=0))
    if best <= task.cfg.train.keep_every:
        return smaller
    least = task.step_bytes(size, best)
    if least <= free:
        return f"train.keep_every={best} needs {show_bytes(least)} for the same result, and some more time"
    return f"{smaller}; train.keep_every={best} alone still needs {show_bytes(least)}"
