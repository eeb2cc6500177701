"""The formats that models of the wav2vec 2.0 architecture come in: what a family's `convert.py` fills in."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from speechssl.contextual import fairseq_names, torchaudio_format, transformers_format
from speechssl.contextual.config import ContextualConfig
from speechssl.fairseq_format import FairseqCheckpoint, has_settings, is_fairseq, open_fairseq
from speechssl.formats import ForeignModel, Formats, TransformersFolder

OPTIONAL = frozenset({"mask_embedding"})
"""Weights absent from models that were trained without masking, and of no use outside of training."""


@dataclass(frozen=True, kw_only=True)
class ContextualFormats(Formats):
    """Settings and weights of one family in the formats of transformers, fairseq and torchaudio."""

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
        """Reads a checkpoint of fairseq, of S3PRL's converter, of Microsoft's models or of torchaudio."""
        weights = torchaudio_format.weights_of(content)
        if torchaudio_format.model_type(weights) in self.model_types:
            config = torchaudio_format.config_from_weights(weights, self.config, origin=origin)
            state = torchaudio_format.rename_weights(weights)
            return ForeignModel(config, state, self.optional, torchaudio_format.their_name)
        if not is_fairseq(content) or not has_settings(content):
            return None
        checkpoint = open_fairseq(content, origin=origin)
        if not self.is_own(checkpoint):
            return None
        config = fairseq_names.config_from_fairseq(checkpoint, self.config, origin=origin)
        return ForeignModel(config, self.weights_from_fairseq(checkpoint), self.optional, fairseq_names.their_name)

    def is_own(self, checkpoint: FairseqCheckpoint) -> bool:
        """Whether a checkpoint is this family's."""
        # Conformers have the same name; 'trf_adp' is a transformer with adapters.
        transformer = checkpoint.model.get("layer_type") in (None, "transformer", "trf_adp")
        return checkpoint.architecture in self.fairseq_names and transformer

    def weights_from_fairseq(self, checkpoint: FairseqCheckpoint) -> dict[str, Tensor]:
        """The upstream's weights by our names."""
        return fairseq_names.rename_weights(checkpoint.state, heads=self.fairseq_heads)

    def read_transformers(self, folder: TransformersFolder) -> ForeignModel:
        """See `speechssl.contextual.transformers_format`."""
        config = transformers_format.config_from_transformers(folder, self.config)
        prefix = f"{folder.model_type.replace('-', '_')}."
        state = transformers_format.from_transformers(folder.state, prefix=prefix, heads=self.heads)
        return ForeignModel(config, state, self.optional, transformers_format.their_name)

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
