"""data2vec: the architecture of wav2vec 2.0 with five positional convolutions."""

from speechssl.contextual.model import ContextualUpstream
from upstreams.data2vec.config import Data2VecConfig


class Data2VecUpstream(ContextualUpstream):
    """A data2vec model for speech.

    Paper: Baevski et al. 2022, sec. 4.2, arXiv:2202.03555.
    """

    name = "data2vec"
    family = "data2vec"


def build(config: Data2VecConfig) -> Data2VecUpstream:
    """Makes the model with random weights."""
    return Data2VecUpstream(config)
