"""What the training loop needs to know of a task."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import nn

import ncakern
from ncaseg.config import Config, TrainConfig
from ncaseg.data.dataset import CaseStore
from ncaseg.levels import Triple, or_native
from ncaseg.models.base import Segmenter

Parts = dict[str, list[float]]  # a column of the log, and a value per sample or batch
Rate = Callable[[TrainConfig], float]  # the learning rate that settings give now


@dataclass(frozen=True)
class Outcome:
    """One optimiser step: what was found, and whether the weights of the model moved."""

    loss: float
    grad_norm: float
    learned: bool
    parts: Parts = field(default_factory=dict)

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.loss + self.grad_norm)


class Task(Protocol):
    """Networks and how they learn.

    Attributes:
        cfg: the recipe.
        model: what the run makes; its weights are averaged, judged and kept.
        columns: of the log, beside those of the loop.
    """

    cfg: Config
    model: Segmenter
    columns: tuple[str, ...]

    def step(self, volumes: CaseStore, batches: list[tuple[str, ...]], step: int, rate: Rate) -> Outcome:
        """One optimiser step over batches of cases; the model stays as it is where the outcome is not finite."""
        ...

    def check_size(self, size: Triple) -> None:
        """Raise a ValueError unless a volume of this grid fits every level, in training and whole."""
        ...

    def step_bytes(self, size: Triple, keep_every: int | None = None) -> int:
        """Bytes at the peak of one forward and backward pass of a batch of such volumes, or of boxes of them.

        ``keep_every`` in the place of the recipe's.
        """
        ...

    def validation_dice(self, model: Segmenter, volumes: CaseStore, ids: Sequence[str]) -> float | None:
        """Mean hard Dice of the merged foreground at native geometry; None without cases."""
        ...

    def state(self) -> dict[str, Any]:
        """All weights and the state of all optimisers."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state` returned."""
        ...


def trained_cells(cfg: Config, size: Triple) -> tuple[int, Triple]:
    """Samples of a batch and the cells of each, for volumes of ``size``: they may be boxes or slices."""
    size, train = or_native(cfg.data.crop, size), cfg.train
    batch = train.batch_size * train.duplication * cfg.data.crops
    if train.slices == 0:
        return batch, size
    return batch * min(train.slices, size[2]), (size[0], size[1], 1)


def keeps_states_only(cfg: Config) -> bool:
    """Whether the kernel will run, and not the reference, which keeps more."""
    return cfg.train.device != "cpu" or ncakern.backends()["cpu"] is None


def clip_gradient(model: nn.Module, cfg: TrainConfig) -> float:
    """Clip the gradient where the recipe says so; the norm that it had."""
    limit = cfg.grad_clip if cfg.grad_clip > 0 else math.inf
    return float(nn.utils.clip_grad_norm_(model.parameters(), limit))
