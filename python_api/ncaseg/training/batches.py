"""What the training loop draws: the order of the cases, their batches, their augmentation.

Everything random is a function of (seed, purpose, step, ...), so that there is no generator to save.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ncaseg.config import Config, TrainConfig
from ncaseg.data.augment import augment
from ncaseg.data.crop import random_box
from ncaseg.data.dataset import CaseStore, encode_label, pad_end
from ncaseg.data.resample import resize_image, resize_mask
from ncaseg.data.standard import standardise, unstandardise
from ncaseg.levels import or_native
from ncaseg.streams import AUGMENT, BOX, ORDER, SLICE, generator, numbers, stream


def steps_per_epoch(num_cases: int, cfg: TrainConfig) -> int:
    """Optimiser steps in which every case is seen once; the last one may see fewer."""
    return math.ceil(num_cases / (cfg.batch_size * cfg.accumulate))


def draw_batches(ids: Sequence[str], cfg: TrainConfig, step: int) -> list[tuple[str, ...]]:
    """The batches of optimiser step ``step``: a new permutation each epoch, the last, smaller group is kept."""
    group = cfg.batch_size * cfg.accumulate
    epoch, place = divmod(step, steps_per_epoch(len(ids), cfg))
    order = numbers(stream(cfg.seed, ORDER, epoch)).permutation(len(ids))
    chosen = [ids[i] for i in order[place * group : (place + 1) * group]]
    return [tuple(chosen[i : i + cfg.batch_size]) for i in range(0, len(chosen), cfg.batch_size)]


def load_batch(volumes: CaseStore, ids: tuple[str, ...], cfg: Config, step: int, number: int) -> tuple[Tensor, Tensor]:
    """Batch ``number`` of a step: ``[B, C_in, *S]`` and ``[B, C_out, *S]``.

    A case gives ``data.crops`` samples, or ``train.slices`` slices of each, and every one of them ``duplication``
    times in a row. A sample is augmented once, before it is duplicated: the copies differ in their patches and fire
    bits. The first ``train.small_steps`` steps see their batches on the grid ``train.small_size``.

    Raises:
        ValueError: the volumes differ in size.
    """
    each = cfg.data.crops
    first = number * cfg.train.batch_size * each
    repeated = [case for case in ids for _ in range(each)]
    pairs = [load_sample(volumes, case, cfg, step, first + place) for place, case in enumerate(repeated)]
    if cfg.train.slices > 0:
        pairs = [
            pair
            for place, (image, target) in enumerate(pairs)
            for pair in draw_slices(image, target, cfg.train.slices, stream(cfg.train.seed, SLICE, step, first + place))
        ]
    sizes = {tuple(image.shape[1:]) for image, _ in pairs}
    if len(sizes) > 1:
        raise ValueError(
            f"train.batch_size {cfg.train.batch_size} needs volumes of one size; got {sorted(sizes)}. Set data.size, "
            "or train.batch_size=1 with train.accumulate"
        )
    times = cfg.train.duplication
    images, targets = (torch.stack(column).repeat_interleave(times, dim=0) for column in zip(*pairs, strict=True))
    return shrink(images, targets, cfg.train.small_size) if step < cfg.train.small_steps else (images, targets)


def shrink(images: Tensor, targets: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """A batch ``[B, C, *S]`` on another grid (0 keeps an axis): images by area, masks by the nearest cell's centre."""
    cells = or_native(size, images.shape[2:])
    image, mask = resize_image(images.numpy(), cells, "area"), resize_mask(targets.numpy(), cells, "centre")
    return torch.from_numpy(image), torch.from_numpy(np.ascontiguousarray(mask))


def load_sample(volumes: CaseStore, case: str, cfg: Config, step: int, place: int) -> tuple[Tensor, Tensor]:
    """Image ``[C_in, *S]`` and target ``[C_out, *S]`` of the case at one place of an optimiser step.

    First the box is cut, then the sample is augmented, in the intensities before ``data.mean`` and ``data.std``.
    """
    volume = volumes[case]
    masks = encode_label(volume.require_label(), cfg.data.labels, cfg.model.out_channels)
    masks, grid = volume.to_content(masks), volume.image.shape[1:]
    if not (cfg.augment.is_on or cfg.data.crop):
        return torch.from_numpy(volume.image), torch.from_numpy(pad_end(masks, grid))
    # The padding is no part of the image: it is neither moved nor made noisy.
    content = volume.image[(slice(None), *(slice(n) for n in volume.content_size))]
    image, target = torch.from_numpy(unstandardise(content, cfg.data)), torch.from_numpy(masks)
    if cfg.data.crop:
        draw = generator(cfg.train.seed, BOX, step, place)
        image, target = random_box(image, target, cfg.data.crop, cfg.data.crop_places, draw)
        grid = tuple(image.shape[1:])
    if cfg.augment.is_on:
        pairs = zip(volume.spacing_mm, volume.native_size, volume.content_size, strict=True)
        spacing_mm = [mm * native / cells for mm, native, cells in pairs]
        draw = generator(cfg.train.seed, AUGMENT, step, place)
        image, target = augment(image, target, cfg.augment, draw, spacing_mm)
    shown = standardise(pad_end(image.numpy(), grid), cfg.data)
    return torch.from_numpy(shown), torch.from_numpy(pad_end(target.numpy(), grid))


def draw_slices(image: Tensor, target: Tensor, count: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """``count`` random slices of the third axis, each ``[C, X, Y, 1]``; they differ as long as there are enough."""
    depth = image.shape[3]
    order = torch.randperm(depth, generator=generator(seed)).tolist()
    chosen = [order[i % depth] for i in range(count)]
    return [(image[..., z : z + 1], target[..., z : z + 1]) for z in chosen]
