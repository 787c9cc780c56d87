"""The settings of a run as frozen dataclasses that check themselves; :mod:`ncaseg.config` reads and writes them."""

import dataclasses

from ncaseg.config.settings.cdal import CdalConfig
from ncaseg.config.settings.checks import require
from ncaseg.config.settings.data import AugmentConfig, DataConfig
from ncaseg.config.settings.diffusion import DiffusionConfig
from ncaseg.config.settings.model import (
    KINDS,
    AutomataConfig,
    CdalModelConfig,
    M3DConfig,
    MedSegDiffConfig,
    ModelConfig,
    UNetConfig,
)
from ncaseg.config.settings.training import PredictConfig, TrainConfig

__all__ = [
    "KINDS",
    "AugmentConfig",
    "AutomataConfig",
    "CdalConfig",
    "CdalModelConfig",
    "Config",
    "DataConfig",
    "DiffusionConfig",
    "M3DConfig",
    "MedSegDiffConfig",
    "ModelConfig",
    "PredictConfig",
    "TrainConfig",
    "UNetConfig",
]


@dataclasses.dataclass(frozen=True)
class Config:
    """One run: everything but the folder of the data and the folder of the results."""

    name: str
    train: TrainConfig
    model: ModelConfig = M3DConfig()
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    predict: PredictConfig = PredictConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    cdal: CdalConfig = CdalConfig()

    def __post_init__(self) -> None:
        allowed = (1, len(self.data.labels))
        require(
            self.model.out_channels in allowed,
            "model.out_channels",
            f"be 1 (merged foreground) or one per entry of data.labels {self.data.labels}",
            self.model.out_channels,
        )
        require(
            self.model.in_channels == len(self.data.modalities),
            "model.in_channels",
            f"equal the number of data.modalities ({len(self.data.modalities)})",
            self.model.in_channels,
        )
        channels = self.diffusion.image_channels
        limit = f"not exceed model.in_channels ({self.model.in_channels})"
        require(channels <= self.model.in_channels, "diffusion.image_channels", limit, channels)
        is_flat = self.train.slices == 0 or self.model.ndim == 2
        require(is_flat, "train.slices", "be 0 unless model.ndim is 2", self.train.slices)
        is_free = self.predict.flips == "" or not self.model.is_diffusion
        require(is_free, "predict.flips", "be empty where masks are sampled", self.predict.flips)
        if isinstance(self.model, CdalModelConfig) and self.cdal.generator == "nca":
            self._check_automata_of_cdal(self.model)

    def _check_automata_of_cdal(self, model: CdalModelConfig) -> None:
        """What automata need as generators: room for what they are given, and no norm over several samples."""
        least = model.in_channels + 2 * model.label_channels
        holds = f"be at least {least}: image, noisy label and logits"
        require(model.channels >= least, "model.channels", holds, model.channels)
        each = model.norm in ("none", "instance")
        require(each, "model.norm", 'be "none" or "instance" with cdal.generator "nca"', model.norm)
