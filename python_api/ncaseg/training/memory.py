"""How much memory a training run will need, told before it starts.

The kernel keeps states only: C values per cell and step. Without it the reference keeps what plain PyTorch keeps.
"""

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

import ncakern
from ncaseg.budget import show_bytes
from ncaseg.config import Config, ModelConfig
from ncaseg.levels import Triple, or_native, pad_size, working_sizes
from ncaseg.models.cdal.build import build_discriminator, build_generator

FLOAT_BYTES = 4
# States alive beside the kept ones at the peak of the backward pass: input, output, gradients, scratch. 7.6 and 7.0
# were measured (64x64x52 cells, 20 steps, keep_every 1 and 4; x86-64, torch 2.13, 2026-11).
WORKING_STATES = 8
# More of them in MedSegDiffNCA, which puts states together anew, and in the one step with attention that is being
# differentiated: 3.4 and 15 were measured (4 x 256x256 cells, 16 channels, the same machine).
DIFFUSION_STATES = 4
ATTENTION_STATES = 15
# Feature maps of BasicUNet at full resolution, in units of its first width, all stages counted: 16.6 and 17.4 were
# measured (48x64x48 and 64x64x96 cells, batch 2, MONAI 1.6.1, the same machine).
UNET_MAPS = 18
WEIGHT_COPIES = 4  # a weight, its gradient, two moments
CGROUP = Path("/sys/fs/cgroup")  # version 2, as a container sees its own
CGROUP_FILES = ("memory.max", "memory.current")


def check_memory(cfg: Config, sizes: Sequence[Triple], device: torch.device) -> str:
    """Estimate what training needs and compare it with what there is.

    Args:
        cfg: the recipe.
        sizes: grids of all volumes, see :func:`ncaseg.data.dataset.grid_sizes`.
        device: where the training runs.

    Returns:
        One line about both.

    Raises:
        MemoryError: it does not fit; the message says what would.
    """
    size = max(sizes, key=math.prod)
    step, cache = step_bytes(cfg, size), cache_bytes(cfg, sizes)
    cells = "x".join(str(n) for n in size)
    need = f"about {show_bytes(step)} for a training step on {cells} cells"
    free = free_bytes(device)
    on_cpu = cache if device.type == "cpu" else 0
    if on_cpu:
        need += f", {show_bytes(cache)} for the volumes"
    if free is not None and step + on_cpu > free:
        raise MemoryError(f"training needs {need}; {show_bytes(free)} are free. {_advice(cfg, size, free - on_cpu)}")
    return f"memory: {need}; " + ("free memory unknown" if free is None else f"{show_bytes(free)} free")


def step_bytes(cfg: Config, size: Triple, keep_every: int | None = None) -> int:
    """Bytes at the peak of one forward and backward pass on volumes of ``size`` cells (the network's grid), or boxes.

    For the automata: the kept states of all levels, the states at work on the largest one, and image and label.
    """
    model, train = cfg.model, cfg.train
    keep = train.keep_every if keep_every is None else keep_every
    size = or_native(cfg.data.crop, size)
    depth = min(train.slices, size[2]) if train.slices > 0 else 1
    batch = train.batch_size * train.duplication * cfg.data.crops * depth
    if train.slices > 0:
        size = (size[0], size[1], 1)
    volume = batch * math.prod(size) * FLOAT_BYTES
    if model.kind == "cdal" and cfg.cdal.generator != "nca":
        depth = 1 if model.ndim == 3 else size[2]
        return adversarial_bytes(cfg, batch * depth, size[: model.ndim])
    if model.kind == "unet":
        return volume * (model.features[0] * UNET_MAPS)
    cells = [
        batch * math.prod(level)
        for level in working_sizes(pad_size(size, model.scales, model.pad), model.scales, model.training_patches)
    ]
    state = [FLOAT_BYTES * model.channels * n for n in cells]
    working = WORKING_STATES + ATTENTION_STATES * model.attention + DIFFUSION_STATES * (model.kind != "m3d")
    if ncakern.backends()["cpu"] is not None and train.device == "cpu":
        kept = sum(reference_bytes(model) * steps * n for steps, n in zip(model.steps, cells, strict=True))
        return kept + working * max(state)
    kept = sum(math.ceil(steps / keep) * s for steps, s in zip(model.steps, state, strict=True))
    again = max(min(keep, steps) * s for steps, s in zip(model.steps, state, strict=True)) if keep > 1 else 0
    images = 2 * volume * (model.in_channels + model.out_channels)
    return kept + again + working * max(state) + images


def adversarial_bytes(cfg: Config, samples: int, size: tuple[int, ...]) -> int:
    """What cDAL's networks keep for the backward pass of ``samples`` labels of ``size`` cells, and all their weights.

    Both are built without memory (device "meta") and asked. They learn one after the other; the gradient penalty is
    differentiated as well, which keeps three times as much.
    """
    with torch.device("meta"):
        model = build_generator(cfg.model, cfg.cdal)
        discriminator = build_discriminator(cfg.model, cfg.cdal)
        x, tau = torch.empty(1, model.label_channels, *size), torch.zeros(1)
        image, z = torch.empty(1, model.image_channels, *size), torch.empty(1, model.latent) if model.latent else None
    kept = kept_bytes(lambda: model(x, tau, image, z))
    weights = sum(p.numel() for p in model.parameters())
    if discriminator is not None:
        penalised = 3 if cfg.cdal.r1_gamma > 0 else 1
        kept = max(kept, penalised * kept_bytes(lambda: discriminator(x, tau, x)))
        weights += sum(p.numel() for p in discriminator.parameters())
    return samples * kept + FLOAT_BYTES * WEIGHT_COPIES * weights


def kept_bytes(run: Callable[[], object]) -> int:
    """Bytes of the tensors, other than weights, that autograd keeps of a forward pass."""
    kept = 0

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += 0 if isinstance(tensor, torch.nn.Parameter) else tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return kept


def reference_bytes(model: ModelConfig) -> int:
    """Bytes per cell and step that plain PyTorch keeps for the backward pass.

    Identity, filters and their concatenation; the hidden values once, and three times with a norm.
    """
    wide = model.hidden if model.norm == "none" else 3 * model.hidden
    return FLOAT_BYTES * ((2 + 2 * model.num_filters) * model.channels + wide)


def cache_bytes(cfg: Config, sizes: Sequence[Triple]) -> int:
    """Bytes of all volumes in memory: float32 images, int64 labels; 0 where the recipe keeps none."""
    cells = sum(math.prod(size) for size in sizes)
    return cells * (FLOAT_BYTES * cfg.model.in_channels + 8) if cfg.data.cache else 0


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


def _advice(cfg: Config, size: Triple, free: int) -> str:
    smaller = "Use a smaller train.batch_size (with train.accumulate), patches (model.patches) or a machine with more"
    best = math.isqrt(max(cfg.model.steps))
    if cfg.model.kind != "unet" and best > cfg.train.keep_every:
        least = step_bytes(cfg, size, best)
        if least <= free:
            return f"train.keep_every={best} needs {show_bytes(least)} for the same result, and some more time"
        return f"{smaller}; train.keep_every={best} alone still needs {show_bytes(least)}"
    return smaller
