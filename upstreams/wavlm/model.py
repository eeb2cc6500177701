"""WavLM: the architecture of wav2vec 2.0 with a gated relative position bias on attention."""

from speechssl.contextual.model import ContextualUpstream
from upstreams.wavlm.config import WavLMConfig


class WavLMUpstream(ContextualUpstream):
    """A WavLM model.

    Paper: Chen et al. 2022, sec. IV, arXiv:2110.13900.
    """

    name = "wavlm"
    family = "wavlm"


def build(config: WavLMConfig) -> WavLMUpstream:
    """Makes the model with random weights."""
    return WavLMUpstream(config)
