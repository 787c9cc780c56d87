"""A run is one TOML file: its settings as frozen dataclasses that check themselves, and the reader of recipes."""

from ncaseg.config.reader import differences, from_dict, load_recipe, recipe_names, to_dict, to_toml, with_reading
from ncaseg.config.settings import (
    KINDS,
    AugmentConfig,
    AutomataConfig,
    CdalConfig,
    CdalModelConfig,
    Config,
    DataConfig,
    DiffusionConfig,
    M3DConfig,
    MedSegDiffConfig,
    ModelConfig,
    PredictConfig,
    TrainConfig,
    UNetConfig,
)

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
    "differences",
    "from_dict",
    "load_recipe",
    "recipe_names",
    "to_dict",
    "to_toml",
    "with_reading",
]
