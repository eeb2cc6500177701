"""DistilHuBERT: HuBERT with two blocks and no layer norm between its frontend and the projection."""

from speechssl.contextual.model import ContextualUpstream
from upstreams.distilhubert.config import DistilHubertConfig


class DistilHubertUpstream(ContextualUpstream):
    """A DistilHuBERT model.

    Paper: Chang et al. 2022, sec. 3, arXiv:2110.01900.
    """

    name = "distilhubert"
    family = "distilhubert"


def build(config: DistilHubertConfig) -> DistilHubertUpstream:
    """Makes the model with random weights."""
    return DistilHubertUpstream(config)
