"""How good a model is while it trains: the Dice of one answer per case, whatever the model answers with."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ncaseg.config import TrainConfig
from ncaseg.data.dataset import CaseStore
from ncaseg.evaluation.metrics import hard_dice
from ncaseg.models.base import Segmenter
from ncaseg.streams import VALIDATE, stream


@torch.no_grad()
def mean_dice(
    model: Segmenter,
    volumes: CaseStore,
    ids: Sequence[str],
    train: TrainConfig,
    *,
    answer: Callable[..., Tensor],
    find: Callable[[np.ndarray], Any],
) -> float | None:
    """Mean hard Dice of the merged foreground at native geometry; None without cases.

    Args:
        model: says on which device it works.
        volumes, ids: the cases.
        train: names the random stream.
        answer: maps ``[1, C, *S]`` for an ``image`` ``[1, C_in, *S]``, a ``seed`` and the number ``first_sample``.
        find: the foreground ``[*S]``, bool, in maps ``[C, *S]`` on the native grid.
    """
    device, seed = next(model.parameters()).device, stream(train.seed, VALIDATE)
    scores = []
    for number, case in enumerate(ids):
        volume = volumes[case]
        maps = answer(torch.from_numpy(volume.image)[None].to(device), seed=seed, first_sample=number)
        mask = np.asarray(find(volume.to_native(maps[0].cpu().numpy())))
        scores.append(hard_dice(mask, np.asarray(volume.require_label() > 0)))
    return sum(scores) / len(scores) if scores else None
