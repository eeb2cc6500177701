"""What rebuilds a model of transformers: its own two configuration files, as text."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TransformersConfig:
    """A model of transformers and what prepares its input."""

    description: str = ""
    """config.json."""
    preprocessor: str = ""
    """preprocessor_config.json; empty where there is none, which only models of waveforms can do without."""


CONFIG = TransformersConfig
"""Of folders that `save_upstream` wrote: there is no preset to tell."""

PRESETS: dict[str, TransformersConfig] = {}
"""None: models are named as `transformers:REPOSITORY_OR_FOLDER`."""
