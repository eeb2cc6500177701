"""The spectrogram baseline as an upstream."""

from speechssl.frontend.log_mel import LogMelConfig, LogSpectrum
from speechssl.frontend.spectral import SpectralUpstream
from upstreams.spectrogram.config import SpectrogramConfig


def build(config: SpectrogramConfig) -> SpectralUpstream:
    """Makes the upstream; it has no weights."""
    spectrum = LogSpectrum(LogMelConfig())
    return SpectralUpstream(spectrum, family="spectrogram", config=config, cmvn=config.cmvn, deltas=False)
