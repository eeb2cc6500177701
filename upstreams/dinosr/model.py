"""DinoSR: the architecture of data2vec, trained with online codebooks (see pretrain.py)."""

from speechssl.contextual.model import ContextualUpstream
from upstreams.dinosr.config import DinoSRConfig


class DinoSRUpstream(ContextualUpstream):
    """A DinoSR model.

    Paper: Liu et al. 2023, sec. 3, arXiv:2305.10005.
    """

    name = "dinosr"
    family = "dinosr"


def build(config: DinoSRConfig) -> DinoSRUpstream:
    """Makes the model with random weights."""
    return DinoSRUpstream(config)
