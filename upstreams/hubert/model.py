"""HuBERT: the architecture of wav2vec 2.0, trained to predict clusters (see pretrain.py)."""

from speechssl.contextual.model import ContextualUpstream
from upstreams.hubert.config import HubertConfig


class HubertUpstream(ContextualUpstream):
    """A HuBERT model.

    Paper: Hsu et al. 2021, sec. 2, arXiv:2106.07447.
    """

    name = "hubert"
    family = "hubert"


def build(config: HubertConfig) -> HubertUpstream:
    """Makes the model with random weights."""
    return HubertUpstream(config)
