"""What a run trains: the networks with their optimisers, one step of them, and how they are judged."""

from collections.abc import Callable

from ncaseg.config import Config
from ncaseg.models.base import Segmenter
from ncaseg.training.tasks.base import Outcome, Task
from ncaseg.training.tasks.cdal import Adversarial
from ncaseg.training.tasks.medsegdiff import MaskDiffusion
from ncaseg.training.tasks.segmentation import Segmentation

__all__ = ["Adversarial", "MaskDiffusion", "Outcome", "Segmentation", "Task", "make_task"]


def make_task(cfg: Config, model: Segmenter) -> Task:
    """The task of a recipe around its model; other networks of it get fresh weights from torch's default generator."""
    kinds: dict[str, Callable[[Config, Segmenter], Task]] = {"medsegdiff": MaskDiffusion, "cdal": Adversarial}
    return kinds.get(cfg.model.kind, Segmentation)(cfg, model)
