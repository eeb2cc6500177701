"""The LFCC baseline as an upstream."""

from speechssl.frontend.lfcc import Lfcc, LfccConfig
from speechssl.frontend.spectral import SpectralUpstream
from upstreams.lfcc.config import LfccUpstreamConfig

DELTA_WINDOW = 3  # frames


def build(config: LfccUpstreamConfig) -> SpectralUpstream:
    """Makes the upstream; it has no weights."""
    spectrum = Lfcc(
        LfccConfig(
            num_ceps=config.num_ceps,
            num_filters=config.num_filters,
            window=config.window,
            hop=config.hop,
            fft_size=config.fft_size,
            high_freq=config.high_freq,
            preemphasis=config.preemphasis,
            energy=config.energy,
            floor=config.floor,
        )
    )
    return SpectralUpstream(spectrum, family="lfcc", config=config, cmvn=config.cmvn, delta_window=DELTA_WINDOW)
