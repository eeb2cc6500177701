"""The LFCC baselines of ASVspoof.

Paper: Sahidullah, Kinnunen and Hanilçi 2015, Interspeech (the features); Todisco et al. 2019, arXiv:1904.05441, and
Yamagishi et al. 2021, arXiv:2109.00537 (the baselines).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class LfccUpstreamConfig:
    """Linear-frequency cepstra with first and second deltas; by default of ASVspoof 2019, 60 channels at 100 Hz."""

    num_ceps: int = 20
    num_filters: int = 20
    window: int = 320
    """Samples at 16 kHz: 20 ms."""
    hop: int = 160
    """Samples: 10 ms."""
    fft_size: int = 512
    high_freq: float = 8_000.0
    """Hz; the filters begin at 0."""
    preemphasis: bool = True
    """Whether 0.97 times the sample before is taken from each."""
    energy: bool = False
    """Whether the logarithm of the frame's energy stands in place of coefficient 0."""
    floor: float = 2.0**-52
    """Added to energies before the logarithm: the smallest step above 1 of float64; in the LCNN baseline of float32."""
    cmvn: bool = False
    """Each channel to mean 0 and deviation 1 over the utterance; no baseline does so."""


PRESETS: dict[str, LfccUpstreamConfig] = {
    "lfcc": LfccUpstreamConfig(),
    "lfcc_2021_gmm": LfccUpstreamConfig(
        num_filters=70, window=480, hop=240, fft_size=1024, high_freq=4_000.0, preemphasis=False
    ),
    "lfcc_2021_lcnn": LfccUpstreamConfig(fft_size=1024, high_freq=4_000.0, energy=True, floor=2.0**-23),
}
"""The GMM baseline of 2021 hears 30 ms every 15 ms; both of 2021 hear the lower half of the spectrum alone."""
