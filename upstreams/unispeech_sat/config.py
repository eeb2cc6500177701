"""Shapes of the UniSpeech-SAT models.

Paper: Chen et al. 2021, sec. 4.1, arXiv:2110.05752.
"""

from dataclasses import dataclass

from speechssl.contextual.config import ContextualConfig, large, tiny


@dataclass(frozen=True)
class UniSpeechSatConfig(ContextualConfig):
    """A UniSpeech-SAT model; the defaults are the published base model."""


PRESETS: dict[str, UniSpeechSatConfig] = {
    "unispeech_sat_tiny": tiny(UniSpeechSatConfig()),
    "unispeech_sat_base": UniSpeechSatConfig(),
    "unispeech_sat_base_plus": UniSpeechSatConfig(),
    "unispeech_sat_large": large(UniSpeechSatConfig()),
}
"""tiny is our own; base has heard 960 hours of LibriSpeech, the others 94,000 hours."""

REPOSITORIES: dict[str, str] = {
    "unispeech_sat_base": "microsoft/unispeech-sat-base",
    "unispeech_sat_base_plus": "microsoft/unispeech-sat-base-plus",
    "unispeech_sat_large": "microsoft/unispeech-sat-large",
}
"""Where the published weights are, in transformers' format."""
