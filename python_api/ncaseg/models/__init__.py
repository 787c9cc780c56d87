"""Models by configuration."""

from collections.abc import Callable
from typing import Any

from ncaseg.config import CdalConfig, CdalModelConfig, M3DConfig, MedSegDiffConfig, ModelConfig, UNetConfig
from ncaseg.models.base import Segmenter
from ncaseg.models.cdal.build import CDAL, build_generator
from ncaseg.models.m3d import M3D
from ncaseg.models.medsegdiffnca.model import MedSegDiffNCA
from ncaseg.models.unet import UNet

MODELS: dict[type[ModelConfig], Callable[[Any], Segmenter]] = {
    M3DConfig: M3D,
    UNetConfig: UNet,
    MedSegDiffConfig: MedSegDiffNCA,
}


def build_model(cfg: ModelConfig, cdal: CdalConfig | None = None) -> Segmenter:
    """The segmenter that a recipe describes, with fresh weights drawn from torch's default generator.

    ``cdal`` is for a generator of cDAL alone.
    """
    if isinstance(cfg, CdalModelConfig):
        return CDAL(build_generator(cfg, CdalConfig() if cdal is None else cdal))
    return MODELS[type(cfg)](cfg)
