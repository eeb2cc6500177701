"""data2vec 2.0: the architecture of data2vec with linear biases on attention."""

from speechssl.contextual.model import ContextualUpstream
from upstreams.data2vec2.config import Data2Vec2Config


class Data2Vec2Upstream(ContextualUpstream):
    """A data2vec 2.0 model for speech.

    Paper: Baevski et al. 2022, sec. 3, arXiv:2212.07525.
    """

    name = "data2vec2"
    family = "data2vec2"

    def __init__(self, config: Data2Vec2Config) -> None:
        super().__init__(config)
        self.register_parameter("mask_embedding", None)  # hidden frames are left out, or noise: nothing is learned


def build(config: Data2Vec2Config) -> Data2Vec2Upstream:
    """Makes the model with random weights."""
    return Data2Vec2Upstream(config)
