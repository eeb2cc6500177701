"""What S3PRL's checkpoints of feature-based models have in common."""

from collections.abc import Mapping
from typing import Any

from speechssl.errors import ConfigError, SpeechsslError

APC_WINDOW = {"frame_length": 25, "frame_shift": 10}
"""Milliseconds."""


def section(settings: Any, name: str, origin: str) -> Mapping[str, Any]:
    """A mapping within settings.

    Raises:
        SpeechsslError: it is not there.
    """
    found = settings.get(name) if isinstance(settings, Mapping) else None
    if not isinstance(found, Mapping):
        raise SpeechsslError(f"The settings of {origin} must hold '{name}': check that it is S3PRL's checkpoint.")
    return found


def require(settings: Mapping[str, Any], needed: Mapping[str, Any], origin: str) -> None:
    """Refuses settings that are there and differ from `needed`.

    Raises:
        ConfigError: naming the first of them.
    """
    for key, value in needed.items():
        if settings.get(key, value) != value:
            raise ConfigError(f"`{key}` of {origin} is {settings[key]!r}; only {value!r} is supported.")


def read_mel_bins(config: Any, origin: str) -> int:
    """Mel bands of APC's and NPC's settings, whose features must be Kaldi's, normalised over each utterance."""
    audio = section(section(config, "data", origin), "audio", origin)
    require(audio, {"feat_type": "fbank", "cmvn": True, **APC_WINDOW}, origin)
    unknown = audio.keys() - {"feat_type", "feat_dim", "cmvn", "decode_wav", *APC_WINDOW}
    if unknown:
        raise ConfigError(f"`{min(unknown)}` of {origin} is not supported: its features would be others.")
    return int(audio["feat_dim"])
