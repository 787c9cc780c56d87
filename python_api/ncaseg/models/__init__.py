"""Models by configuration."""

from ncaseg.config import CdalConfig, ModelConfig
from ncaseg.models.base import Segmenter
from ncaseg.models.cdal.build import CDAL, build_generator
from ncaseg.models.m3d import M3D
from ncaseg.models.medsegdiffnca.model import MedSegDiffNCA
from ncaseg.models.unet import UNet


def build_model(cfg: ModelConfig, cdal: CdalConfig | None = None) -> Segmenter:
    """The segmenter that a recipe describes, with fresh weights drawn from torch's default generator.

    ``cdal`` is for ``cfg.kind`` "cdal" alone.
    """
    if cfg.kind == "cdal":
        return CDAL(build_generator(cfg, CdalConfig() if cdal is None else cdal))
    if cfg.kind == "unet":
        return UNet(in_channels=cfg.in_channels, out_channels=cfg.out_channels, features=cfg.features)
    if cfg.kind in ("medsegdiff", "medsegdiff_oneshot"):
        return MedSegDiffNCA(
            in_channels=cfg.in_channels,
            channels=cfg.channels,
            hidden=cfg.hidden,
            kernel_sizes=cfg.kernel_sizes,
            steps=cfg.steps,
            scales=cfg.scales,
            ndim=cfg.ndim,
            attention=cfg.attention,
            attention_reduction=cfg.attention_reduction,
            attention_residual=cfg.attention_residual,
            position=cfg.position,
            pool=cfg.pool,
            perception=cfg.perception,
            num_filters=cfg.num_filters,
            padding=cfg.padding,
            norm=cfg.norm,
            activation=cfg.activation,
            fire_rate=cfg.fire_rate,
        )
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
