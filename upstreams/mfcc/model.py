"""The MFCC baseline as an upstream."""

from speechssl.frontend.log_mel import Mfcc
from speechssl.frontend.spectral import SpectralUpstream
from upstreams.mfcc.config import MfccConfig


def build(config: MfccConfig) -> SpectralUpstream:
    """Makes the upstream; it has no weights."""
    spectrum = Mfcc(num_ceps=config.num_ceps, num_mel_bins=config.num_mel_bins)
    return SpectralUpstream(spectrum, family="mfcc", config=config, cmvn=config.cmvn)
