"""The fbank baseline.

Paper: Yang et al. 2021, SUPERB, arXiv:2105.01051.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class FbankConfig:
    """Kaldi's filterbank with first and second deltas; the defaults are S3PRL's baseline, 240 channels at 100 Hz."""

    num_mel_bins: int = 80
    cmvn: bool = True
    """Each channel to mean 0 and deviation 1 over the utterance."""


PRESETS: dict[str, FbankConfig] = {"fbank": FbankConfig(), "fbank_no_cmvn": FbankConfig(cmvn=False)}
