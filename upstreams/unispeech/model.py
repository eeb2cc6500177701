"""UniSpeech: the architecture of wav2vec 2.0, trained on speech with labels and without."""

from speechssl.contextual.model import ContextualUpstream
from upstreams.unispeech.config import UniSpeechConfig


class UniSpeechUpstream(ContextualUpstream):
    """A UniSpeech model.

    Paper: Wang et al. 2021, sec. 3, arXiv:2101.07597.
    """

    name = "unispeech"
    family = "unispeech"


def build(config: UniSpeechConfig) -> UniSpeechUpstream:
    """Makes the model with random weights."""
    return UniSpeechUpstream(config)
