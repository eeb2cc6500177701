"""The MFCC baseline, whose clusters are also the first targets of HuBERT.

Paper: Yang et al. 2021, SUPERB, arXiv:2105.01051; Hsu et al. 2021, sec. 3.2, arXiv:2106.07447.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class MfccConfig:
    """Kaldi's MFCC with first and second deltas; the defaults are S3PRL's baseline, 39 channels at 100 Hz."""

    num_ceps: int = 13
    num_mel_bins: int = 23
    cmvn: bool = True
    """Each channel to mean 0 and deviation 1 over the utterance."""


PRESETS: dict[str, MfccConfig] = {"mfcc": MfccConfig(), "mfcc_no_cmvn": MfccConfig(cmvn=False)}
"""HuBERT clusters mfcc_no_cmvn."""
