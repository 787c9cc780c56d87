"""A run is one TOML file: its settings as frozen dataclasses that check themselves, and the reader of recipes."""

from ncaseg.config.reader import differences, from_dict, load_recipe, recipe_names, to_dict, to_toml, with_reading
from ncaseg.config.settings import (
    AugmentConfig,
    CdalConfig,
    Config,
    DataConfig,
    DiffusionConfig,
    ModelConfig,
    PredictConfig,
    TrainConfig,
)

__all__ = [
    "AugmentConfig",
    "CdalConfig",
    "Config",
    "DataConfig",
    "DiffusionConfig",
    "ModelConfig",
    "PredictConfig",
    "TrainConfig",
    "differences",
    "from_dict",
    "load_recipe",
    "recipe_names",
    "to_dict",
    "to_toml",
    "with_reading",
]
