"""Generator and discriminator by configuration, and the generator in the place of a segmenter."""

from typing import Any

from ncaseg.config import CdalConfig, CdalModelConfig
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
        self.steps = generator.steps


def build_generator(cfg: CdalModelConfig, cdal: CdalConfig) -> Generator:
    """The generator that a recipe describes, with fresh weights drawn from torch's default generator."""
    if cdal.generator == "nca":
        return NCAGenerator(cfg, cdal)
    names = ("latent", "latent_width", "latent_layers", "width", "multipliers", "blocks", "attention_levels")
    options: dict[str, Any] = {name: getattr(cdal, name) for name in names}
    options |= {"ndim": cfg.ndim, "label_channels": cfg.label_channels, "image_channels": cfg.in_channels}
    if cdal.generator == "library":
        return LibraryGenerator(**options)
    return NCSNpp(**options, encoder_blocks=cdal.encoder_blocks)


def build_discriminator(cfg: CdalModelConfig, cdal: CdalConfig) -> Discriminator | None:
    """The discriminator that a recipe describes, or None."""
    if cdal.discriminator == "none":
        return None
    return Discriminator(
        ndim=cfg.ndim,
        label_channels=cfg.label_channels,
        layout=cdal.discriminator,
        width=cdal.d_width,
        time_width=cdal.d_time_width,
        init=cdal.d_init,
    )
