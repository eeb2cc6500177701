"""Shapes of the WavLM models.

Paper: Chen et al. 2022, sec. V, arXiv:2110.13900.
"""

from dataclasses import dataclass

from speechssl.contextual.config import ContextualConfig, large, tiny


@dataclass(frozen=True)
class WavLMConfig(ContextualConfig):
    """A WavLM model; the defaults are the published base model."""

    relative_buckets: int = 320
    """Of distances, for a learned relative position bias on attention; 0 = none."""


PRESETS: dict[str, WavLMConfig] = {
    "wavlm_tiny": tiny(WavLMConfig()),
    "wavlm_base": WavLMConfig(),
    "wavlm_base_plus": WavLMConfig(),
    "wavlm_large": large(WavLMConfig()),
}
"""tiny is our own; base has heard 960 hours of LibriSpeech, the others 94,000 hours."""

REPOSITORIES: dict[str, str] = {
    "wavlm_base": "microsoft/wavlm-base",
    "wavlm_base_plus": "microsoft/wavlm-base-plus",
    "wavlm_large": "microsoft/wavlm-large",
}
"""Where the published weights are, in transformers' format."""
