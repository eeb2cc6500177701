"""UniSpeech-SAT: the architecture of HuBERT, trained to tell speakers apart besides predicting clusters."""

from speechssl.contextual.model import ContextualUpstream
from upstreams.unispeech_sat.config import UniSpeechSatConfig


class UniSpeechSatUpstream(ContextualUpstream):
    """A UniSpeech-SAT model.

    Paper: Chen et al. 2021, sec. 3, arXiv:2110.05752.
    """

    name = "unispeech_sat"
    family = "unispeech_sat"


def build(config: UniSpeechSatConfig) -> UniSpeechSatUpstream:
    """Makes the model with random weights."""
    return UniSpeechSatUpstream(config)
