"""Shapes of the UniSpeech models.

Paper: Wang et al. 2021, sec. 4.1, arXiv:2101.07597.
"""

from dataclasses import dataclass, replace

from speechssl.contextual.config import ContextualConfig, large, tiny


@dataclass(frozen=True)
class UniSpeechConfig(ContextualConfig):
    """A UniSpeech model; the defaults have the size of wav2vec 2.0 base."""


_LARGE = replace(large(UniSpeechConfig(conv_bias=True)), dropout=0.1, attention_dropout=0.1, input_dropout=0.1)

PRESETS: dict[str, UniSpeechConfig] = {
    "unispeech_tiny": tiny(UniSpeechConfig()),
    "unispeech_large": _LARGE,
    "unispeech_large_multilingual": _LARGE,
}
"""tiny is our own; the others have heard 1,500 hours of Common Voice, with labels of English and of several languages;
their dropout is that of the official pre-training."""

REPOSITORIES: dict[str, str] = {
    "unispeech_large": "microsoft/unispeech-large-1500h-cv",
    "unispeech_large_multilingual": "microsoft/unispeech-large-multi-lingual-1500h-cv",
}
"""Where the published weights are, in transformers' format."""
