"""The spectrogram baseline.

Paper: Yang et al. 2021, SUPERB, arXiv:2105.01051 (whose toolkit offers it, under this name).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class SpectrogramConfig:
    """Kaldi's log power spectrum; the defaults are S3PRL's baseline, 257 channels at 100 Hz."""

    cmvn: bool = True
    """Each channel to mean 0 and deviation 1 over the utterance."""


PRESETS: dict[str, SpectrogramConfig] = {
    "spectrogram": SpectrogramConfig(),
    "spectrogram_no_cmvn": SpectrogramConfig(cmvn=False),
}
