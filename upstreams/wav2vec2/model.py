"""wav2vec 2.0: the shared architecture under its first name."""

from speechssl.contextual.model import ContextualUpstream
from upstreams.wav2vec2.config import Wav2Vec2Config


class Wav2Vec2Upstream(ContextualUpstream):
    """A wav2vec 2.0 model.

    Paper: Baevski et al. 2020, sec. 2, arXiv:2006.11477.
    """

    name = "wav2vec2"
    family = "wav2vec2"


def build(config: Wav2Vec2Config) -> Wav2Vec2Upstream:
    """Makes the model with random weights."""
    return Wav2Vec2Upstream(config)
