"""The formats that models of the wav2vec 2.0 architecture come in: what a family's `convert.py` fills in."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from speechssl.contextual import fairseq_names, transformers_format
from speechssl.contextual.config import ContextualConfig
from speechssl.fairseq_format import FairseqCheckpoint


@dataclass(frozen=True)
class ContextualFormats:
    """Settings and weights of one family in the formats of transformers and fairseq."""

    config: type[ContextualConfig]
    model_type: str
    """In transformers' config.json; also the beginning of weights' names in models with a head."""
    architecture: str
    """The class in transformers."""
    heads: tuple[str, ...]
    """Beginnings of names in transformers that are not of the upstream: for pre-training, or fine-tuned for a task."""
    fairseq_names: tuple[str, ...]
    """The model's names in fairseq."""
    fairseq_heads: tuple[str, ...]
    """As `heads`, in fairseq."""
    optional: frozenset[str] = frozenset({"mask_embedding"})
    """Weights absent from models that were trained without masking, and of no use outside of training."""

    def config_from_transformers(self, config: Mapping[str, Any], *, normalize: bool) -> ContextualConfig:
        """See `speechssl.contextual.transformers_format`."""
        return transformers_format.config_from_transformers(config, self.config, normalize=normalize)

    def config_to_transformers(self, config: ContextualConfig) -> dict[str, Any]:
        """See `speechssl.contextual.transformers_format`."""
        return transformers_format.config_to_transformers(
            config, model_type=self.model_type, architecture=self.architecture
        )

    def from_transformers(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `speechssl.contextual.transformers_format`."""
        return transformers_format.from_transformers(state, prefix=f"{self.model_type}.", heads=self.heads)

    def to_transformers(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `speechssl.contextual.transformers_format`."""
        return transformers_format.to_transformers(state)

    def config_from_fairseq(self, checkpoint: FairseqCheckpoint, *, origin: str) -> ContextualConfig:
        """See `speechssl.contextual.fairseq_names`."""
        return fairseq_names.config_from_fairseq(checkpoint, self.config, origin=origin)

    def from_fairseq(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `speechssl.contextual.fairseq_names`."""
        return fairseq_names.rename_weights(state, heads=self.fairseq_heads)
