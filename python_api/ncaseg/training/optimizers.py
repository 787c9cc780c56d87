"""Optimisers by the name that a recipe gives."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ncaseg.config import TrainConfig


class MuonAdamW:
    """Muon for every matrix of a network and AdamW for the rest, behind the face of one optimiser.

    Muon moves a matrix by the orthogonal factor of its momentum, so that all directions move at the same pace. A
    gradient that has come back through dozens of steps of an automaton lies in few directions, and Adam, entry by
    entry, leaves the others behind. The update is scaled to the size of Adam's: one learning rate serves both.

    Args:
        model: its parameters of two dimensions are the matrices: of an automaton the dense layers, and the biases
            ``[F, C]`` of the convolution, whose step then has a length of its own.
        cfg: ``lr``, ``weight_decay`` (apart from the gradient, for both), and ``betas`` of AdamW.

    Raises:
        ValueError: torch has no Muon yet, or the model no matrix.

    Reference:
        Jordan et al., Muon: An optimizer for hidden layers in neural networks, 2024; Liu et al., Muon is Scalable for
        LLM Training, 2025, section 2.2 (scale of the update).
    """

    def __init__(self, model: nn.Module, cfg: TrainConfig) -> None:
        if not hasattr(torch.optim, "Muon"):
            raise ValueError(
                f'train.optimizer "muon" needs torch 2.9 or later; this is {torch.__version__}: '
                'upgrade torch, or use "adam"'
            )
        matrices = [p for p in model.parameters() if p.ndim == 2]
        others = [p for p in model.parameters() if p.ndim != 2]
        if not matrices:
            raise ValueError('train.optimizer "muon" needs a model with dense layers; this one has none: use "adam"')
        muon = torch.optim.Muon(matrices, lr=cfg.lr, weight_decay=cfg.weight_decay, adjust_lr_fn="match_rms_adamw")
        adamw = torch.optim.AdamW(others, lr=cfg.lr, betas=cfg.betas, weight_decay=cfg.weight_decay)
        self._parts: dict[str, Optimizer] = {"muon": muon, "adamw": adamw}

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for part in self._parts.values() for group in part.param_groups]

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self._parts.values():
            part.zero_grad(set_to_none)

    def step(self) -> None:
        for part in self._parts.values():
            part.step()

    def state_dict(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self._parts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, part in self._parts.items():
            part.load_state_dict(state[name])


def make_optimizer(model: nn.Module, cfg: TrainConfig) -> Optimizer | MuonAdamW:
    """One optimiser over all levels, which equals one per level: Adam, AdamW, whose decay is apart, or Muon."""
    if cfg.optimizer == "muon":
        return MuonAdamW(model, cfg)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[cfg.optimizer]
    return kind(model.parameters(), lr=cfg.lr, betas=cfg.betas, weight_decay=cfg.weight_decay)


def set_rate(optimizer: Optimizer | MuonAdamW, lr: float) -> None:
    """Give every group of parameters the same rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr
