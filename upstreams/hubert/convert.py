"""HuBERT's settings and weights in the formats of transformers and fairseq."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from speechssl.contextual import fairseq_names, transformers_format
from speechssl.fairseq_format import FairseqCheckpoint
from upstreams.hubert.config import HubertConfig

HEADS = ("lm_head.", "projector.", "classifier.", "layer_weights")
"""Parts that are not of the upstream: for pre-training, or of models fine-tuned for a task."""
FAIRSEQ_NAMES = ("hubert",)
"""The model's names in fairseq."""
FAIRSEQ_HEADS = ("label_embs_concat", "final_proj.", "target_glu.", "proj.", "num_updates")
OPTIONAL = frozenset({"mask_embedding"})
"""Absent from models that were trained without masking, and of no use outside of training."""


def config_from_transformers(config: Mapping[str, Any], *, normalize: bool) -> HubertConfig:
    """See `speechssl.contextual.transformers_format`."""
    return transformers_format.config_from_transformers(config, HubertConfig, normalize=normalize)


def config_to_transformers(config: HubertConfig) -> dict[str, Any]:
    """See `speechssl.contextual.transformers_format`."""
    return transformers_format.config_to_transformers(config, model_type="hubert", architecture="HubertModel")


def from_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """See `speechssl.contextual.transformers_format`."""
    return transformers_format.from_transformers(state, prefix="hubert.", heads=HEADS)


def to_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """See `speechssl.contextual.transformers_format`."""
    return transformers_format.to_transformers(state)


def config_from_fairseq(checkpoint: FairseqCheckpoint, *, origin: str) -> HubertConfig:
    """See `speechssl.contextual.fairseq_names`."""
    return fairseq_names.config_from_fairseq(checkpoint, HubertConfig, origin=origin)


def from_fairseq(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """See `speechssl.contextual.fairseq_names`."""
    return fairseq_names.rename_weights(state, heads=FAIRSEQ_HEADS)
