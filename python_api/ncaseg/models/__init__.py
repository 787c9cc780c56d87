"""Models by configuration."""

from ncaseg.config import ModelConfig
from ncaseg.models.base import Segmenter
from ncaseg.models.segmenter import M3D
from ncaseg.models.unet import UNet


def build_model(cfg: ModelConfig) -> Segmenter:
    """The segmenter that a recipe describes, with fresh weights drawn from torch's default generator."""
    if cfg.kind == "unet":
        return UNet(in_channels=cfg.in_channels, out_channels=cfg.out_channels, features=cfg.features)
    return M3D(
        in_channels=cfg.in_channels,
        out_channels=cfg.out_channels,
        channels=cfg.channels,
        hidden=cfg.hidden,
        kernel_sizes=cfg.kernel_sizes,
        steps=cfg.steps,
        scales=cfg.scales,
        norm=cfg.norm,
        padding=cfg.padding,
        fire_rate=cfg.fire_rate,
        pad=cfg.pad,
        pool=cfg.pool,
        patches=cfg.patches,
        ndim=cfg.ndim,
        perception=cfg.perception,
        num_filters=cfg.num_filters,
    )
