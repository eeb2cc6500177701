"""The fbank baseline as an upstream."""

from speechssl.frontend.log_mel import LogMel, LogMelConfig
from speechssl.frontend.spectral import SpectralUpstream
from upstreams.fbank.config import FbankConfig


def build(config: FbankConfig) -> SpectralUpstream:
    """Makes the upstream; it has no weights."""
    spectrum = LogMel(LogMelConfig(num_mel_bins=config.num_mel_bins))
    return SpectralUpstream(spectrum, family="fbank", config=config, cmvn=config.cmvn)
