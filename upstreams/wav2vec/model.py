"""wav2vec: the shared architecture without a quantizer."""

from speechssl.conv_context.model import ConvContextUpstream
from upstreams.wav2vec.config import Wav2VecConfig


class Wav2VecUpstream(ConvContextUpstream):
    """A wav2vec model.

    Paper: Schneider et al. 2019, sec. 2, arXiv:1904.05862.
    """

    name = "wav2vec"
    family = "wav2vec"


def build(config: Wav2VecConfig) -> Wav2VecUpstream:
    """Makes the model with random weights."""
    return Wav2VecUpstream(config, feature_width=config.conv_channels)
