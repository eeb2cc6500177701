"""What rebuilds a model of fairseq2: its family and its own configuration, as text."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Fairseq2Config:
    """A model of fairseq2."""

    model_family: str = ""
    """fairseq2's name of it: 'wav2vec2', 'wav2vec2_asr' or 'w2vbert'."""
    settings: str = ""
    """fairseq2's configuration of the model as JSON."""
    normalize: bool = False
    """Each waveform to zero mean and unit variance first; fairseq2 leaves that to its recipes."""


CONFIG = Fairseq2Config
"""Of folders that `save_upstream` wrote: there is no preset to tell."""

PRESETS: dict[str, Fairseq2Config] = {}
"""None: models are named as `fairseq2:CARD_OR_FOLDER`."""
