"""wav2vec 2.0's settings and weights in the formats of transformers and fairseq."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from speechssl.contextual import fairseq_names, transformers_format
from speechssl.fairseq_format import FairseqCheckpoint
from upstreams.wav2vec2.config import Wav2Vec2Config

HEADS = ("quantizer.", "project_hid.", "project_q.", "lm_head.", "projector.", "classifier.", "layer_weights")
"""Parts that are not of the upstream: for pre-training, or of models fine-tuned for a task."""
FAIRSEQ_NAMES = ("wav2vec2",)
"""The model's names in fairseq."""
FAIRSEQ_HEADS = ("quantizer.", "project_q.", "final_proj.", "target_glu.", "proj.", "num_updates")
OPTIONAL = frozenset({"mask_embedding"})
"""Absent from models that were trained without masking, and of no use outside of training."""


def config_from_transformers(config: Mapping[str, Any], *, normalize: bool) -> Wav2Vec2Config:
    """See `speechssl.contextual.transformers_format`."""
    return transformers_format.config_from_transformers(config, Wav2Vec2Config, normalize=normalize)


def config_to_transformers(config: Wav2Vec2Config) -> dict[str, Any]:
    """See `speechssl.contextual.transformers_format`."""
    return transformers_format.config_to_transformers(config, model_type="wav2vec2", architecture="Wav2Vec2Model")


def from_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """See `speechssl.contextual.transformers_format`."""
    return transformers_format.from_transformers(state, prefix="wav2vec2.", heads=HEADS)


def to_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """See `speechssl.contextual.transformers_format`."""
    return transformers_format.to_transformers(state)


def config_from_fairseq(checkpoint: FairseqCheckpoint, *, origin: str) -> Wav2Vec2Config:
    """See `speechssl.contextual.fairseq_names`."""
    return fairseq_names.config_from_fairseq(checkpoint, Wav2Vec2Config, origin=origin)


def from_fairseq(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """See `speechssl.contextual.fairseq_names`."""
    return fairseq_names.rename_weights(state, heads=FAIRSEQ_HEADS)
