"""Generator and discriminator by configuration, and the generator in the place of a segmenter."""

from typing import Any

from ncaseg.config import CdalConfig, ModelConfig
from ncaseg.models.base import Segmenter
from ncaseg.models.cdal.base import Generator
from ncaseg.models.cdal.discriminator import Discriminator
from ncaseg.models.cdal.library import LibraryGenerator
from ncaseg.models.cdal.nca import NCAGenerator
from ncaseg.models.cdal.ncsnpp import NCSNpp


class CDAL(Segmenter):
    """A generator as the model of a run. It has no logits: :mod:`ncaseg.sampling.cdal` samples labels from it."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator


def build_generator(cfg: ModelConfig, cdal: CdalConfig) -> Generator:
    """The generator that a recipe describes, with fresh weights drawn from torch's default generator."""
    options: dict[str, Any] = {
        "ndim": cfg.ndim,
        "label_channels": label_channels(cfg),
        "image_channels": cfg.in_channels,
        "latent": cdal.latent,
        "latent_width": cdal.latent_width,
        "latent_layers": cdal.latent_layers,
    }
    if cdal.generator == "nca":
        return NCAGenerator(
            **options,
            timesteps=cdal.timesteps,
            channels=cfg.channels,
            hidden=cfg.hidden,
            kernel_sizes=cfg.kernel_sizes,
            steps=cfg.steps,
            scales=cfg.scales,
            pool=cfg.pool,
            perception=cfg.perception,
            num_filters=cfg.num_filters,
            padding=cfg.padding,
            norm=cfg.norm,
            fire_rate=cfg.fire_rate,
        )
    options |= {
        "width": cdal.width,
        "multipliers": cdal.multipliers,
        "blocks": cdal.blocks,
        "attention_levels": cdal.attention_levels,
    }
    if cdal.generator == "library":
        return LibraryGenerator(**options)
    return NCSNpp(**options, encoder_blocks=cdal.encoder_blocks)


def build_discriminator(cfg: ModelConfig, cdal: CdalConfig) -> Discriminator | None:
    """The discriminator that a recipe describes, or None."""
    if cdal.discriminator == "none":
        return None
    return Discriminator(
        ndim=cfg.ndim,
        label_channels=label_channels(cfg),
        layout=cdal.discriminator,
        width=cdal.d_width,
        time_width=cdal.d_time_width,
        init=cdal.d_init,
    )


def label_channels(cfg: ModelConfig) -> int:
    """Channels of a coded label: one, or one per class and one for the background."""
    return cfg.out_channels + cfg.has_background
