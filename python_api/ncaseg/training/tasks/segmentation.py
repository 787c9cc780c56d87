"""One network and one loss: segmentation in one pass, or a mask denoised."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ncaseg.config import Config, TrainConfig
from ncaseg.data.dataset import CaseStore
from ncaseg.levels import Triple, or_native
from ncaseg.models.base import Segmenter
from ncaseg.streams import CROP, FIRE, generator, stream
from ncaseg.training.batches import load_batch
from ncaseg.training.losses import LOSSES
from ncaseg.training.optimizers import make_optimizer, set_rate
from ncaseg.training.tasks.base import Outcome, Parts, Rate, clip_gradient, keeps_states_only, trained_cells
from ncaseg.training.validation import mean_dice


class Segmentation:
    """A segmenter learns the logits of a mask; see :class:`ncaseg.training.tasks.base.Task`."""

    columns: tuple[str, ...] = ()

    def __init__(self, cfg: Config, model: Segmenter) -> None:
        self.cfg, self.model = cfg, model
        self.optimizer = make_optimizer(model, cfg.train)

    def check_size(self, size: Triple) -> None:
        self.model.check_size(or_native(self.cfg.data.crop, size), training=True)
        self.model.check_size(size)

    def step_bytes(self, size: Triple, keep_every: int | None = None) -> int:
        batch, cells = trained_cells(self.cfg, size)
        keep_every = self.cfg.train.keep_every if keep_every is None else keep_every
        return self.model.training_bytes(batch, cells, keep_every, has_kernel=keeps_states_only(self.cfg))

    def step(self, volumes: CaseStore, batches: list[tuple[str, ...]], step: int, rate: Rate) -> Outcome:
        set_rate(self.optimizer, rate(self.cfg.train))
        loss, learned, parts = self.accumulate(volumes, batches, step)
        outcome = Outcome(loss, clip_gradient(self.model, self.cfg.train), learned, parts)
        if learned and outcome.is_finite:
            self.optimizer.step()
        return outcome

    def accumulate(self, volumes: CaseStore, batches: list[tuple[str, ...]], step: int) -> tuple[float, bool, Parts]:
        """Leave the mean gradient over the batches in the parameters.

        Returns:
            The mean loss, whether there is a gradient, and what the loss is made of.
        """
        self.optimizer.zero_grad(set_to_none=True)
        device = next(self.model.parameters()).device
        mean_loss, learned, parts = 0.0, False, Parts()
        for number, ids in enumerate(batches):
            image, target = (tensor.to(device) for tensor in load_batch(volumes, ids, self.cfg, step, number))
            with torch.autocast(device.type, torch.bfloat16, enabled=self.cfg.train.precision == "bfloat16"):
                loss, batch_parts = self.batch_loss(image, target, step, number)
            loss = loss / len(batches)
            for name, values in batch_parts.items():
                parts.setdefault(name, []).extend(values)
            mean_loss += loss.item()
            if loss.requires_grad:
                loss.backward()
                learned = True
        return mean_loss, learned, parts

    def batch_loss(self, image: Tensor, target: Tensor, step: int, number: int) -> tuple[Tensor, Parts]:
        """The loss of batch ``number`` of a step, and what it is made of where the log has columns for that."""
        train = self.cfg.train
        logits, target = self.model.crop_forward(
            image,
            target,
            seed=stream(train.seed, FIRE, step, number),
            generator=generator(train.seed, CROP, step, number),
            keep_every=train.keep_every,
            foreground=train.foreground_crops,
        )
        return loss_of(logits, target, train), {}

    def validation_dice(self, model: Segmenter, volumes: CaseStore, ids: Sequence[str]) -> float | None:
        """One run per case."""
        return mean_dice(model, volumes, ids, self.cfg.train, answer=model, find=lambda maps: (maps > 0).any(axis=0))

    def state(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])


def loss_of(logits: Tensor, target: Tensor, cfg: TrainConfig) -> Tensor:
    """The loss that the recipe names; see :mod:`ncaseg.training.losses`."""
    more = {"gamma": cfg.focal_gamma} if cfg.loss == "dice_focal" else {}
    return LOSSES[cfg.loss](logits.float(), target, skip_empty=cfg.skip_empty, weights=cfg.loss_weights, **more)
