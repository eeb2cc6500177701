"""SSAST: Kaldi's log-mel energies in patches, and DeiT's transformer with its two tokens."""

from speechssl.frontend.log_mel import LogMelConfig
from speechssl.frontend.scaled_log_mel import ScaledLogMel
from speechssl.patches.model import PatchUpstream
from upstreams.ssast.config import SsastConfig


class SsastUpstream(PatchUpstream):
    """An SSAST model.

    Paper: Gong et al. 2022, sec. 3.1, arXiv:2110.09784.
    """

    name = "ssast"
    family = "ssast"

    def __init__(self, config: SsastConfig) -> None:
        spectrum = LogMelConfig(sample_rate=config.sample_rate, num_mel_bins=config.num_mel_bins, window_type="hanning")
        super().__init__(config, ScaledLogMel(spectrum, mean=config.mean, deviation=config.deviation))


def build(config: SsastConfig) -> SsastUpstream:
    """Makes the model with random weights."""
    return SsastUpstream(config)
