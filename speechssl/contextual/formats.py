"""The formats that models of the wav2vec 2.0 architecture come in: what a family's `convert.py` fills in."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from speechssl.contextual import fairseq_names, transformers_format
from speechssl.contextual.config import ContextualConfig
from speechssl.fairseq_format import FairseqCheckpoint, has_settings, is_fairseq, open_fairseq
from speechssl.formats import ForeignModel, Formats, TransformersFolder

OPTIONAL = frozenset({"mask_embedding"})
"""Weights absent from models that were trained without masking, and of no use outside of training."""


@dataclass(frozen=True, kw_only=True)
class ContextualFormats(Formats):
    """Settings and weights of one family in the formats of transformers and fairseq."""

    config: type[ContextualConfig]
    model_types: tuple[str, ...]
    """In transformers' config.json, the one that is written first; also how weights' names begin in models with a
    head."""
    architecture: str
    """The class in transformers."""
    heads: tuple[str, ...]
    """Beginnings of names in transformers that are not of the upstream: for pre-training, or fine-tuned for a task."""
    fairseq_names: tuple[str, ...]
    """The model's names in fairseq."""
    fairseq_heads: tuple[str, ...]
    """As `heads`, in fairseq."""
    optional: frozenset[str] = OPTIONAL

    def read_file(self, content: Any, *, origin: str) -> ForeignModel | None:
        """Reads a checkpoint of fairseq, of S3PRL's converter or of Microsoft's models."""
        if not is_fairseq(content) or not has_settings(content):
            return None
        checkpoint = open_fairseq(content, origin=origin)
        if not self.is_own(checkpoint):
            return None
        config = fairseq_names.config_from_fairseq(checkpoint, self.config, origin=origin)
        state = fairseq_names.rename_weights(checkpoint.state, heads=self.fairseq_heads)
        return ForeignModel(config, state, self.optional)

    def is_own(self, checkpoint: FairseqCheckpoint) -> bool:
        """Whether a checkpoint is this family's."""
        transformer = checkpoint.model.get("layer_type") in (None, "transformer")  # conformers have the same name
        return checkpoint.architecture in self.fairseq_names and transformer

    def read_transformers(self, folder: TransformersFolder) -> ForeignModel:
        """See `speechssl.contextual.transformers_format`."""
        config = transformers_format.config_from_transformers(folder, self.config)
        prefix = f"{folder.model_type.replace('-', '_')}."
        state = transformers_format.from_transformers(folder.state, prefix=prefix, heads=self.heads)
        return ForeignModel(config, state, self.optional)

    def write_transformers(self, config: ContextualConfig, state: Mapping[str, Tensor]) -> TransformersFolder:
        """See `speechssl.contextual.transformers_format`."""
        description = transformers_format.config_to_transformers(
            config, model_type=self.model_types[0], architecture=self.architecture
        )
        preprocessor = {
            "feature_extractor_type": "Wav2Vec2FeatureExtractor",
            "do_normalize": config.normalize,
            "feature_size": 1,
            "padding_value": 0.0,
            "return_attention_mask": config.conv_norm == "layer",
            "sampling_rate": config.sample_rate,
        }
        return TransformersFolder(description, transformers_format.to_transformers(state), preprocessor)
