"""The shape of DistilHuBERT.

Paper: Chang et al. 2022, sec. 3, arXiv:2110.01900, and S3PRL's pretrain/distiller/config_model.yaml.
"""

from dataclasses import dataclass, replace

from speechssl.contextual.config import ContextualConfig, tiny


@dataclass(frozen=True)
class DistilHubertConfig(ContextualConfig):
    """A DistilHuBERT model; the defaults are the published one."""

    feature_norm: bool = False
    depth: int = 2
    activation_dropout: float = 0.1
    input_dropout: float = 0.0
    layerdrop: float = 0.0


PRESETS: dict[str, DistilHubertConfig] = {
    "distilhubert_tiny": replace(tiny(DistilHubertConfig()), depth=2),
    "distilhubert": DistilHubertConfig(),
}
"""tiny is our own, for a tiny teacher."""

REPOSITORIES: dict[str, str] = {"distilhubert": "ntu-spml/distilhubert"}
"""Where the published weights are, in transformers' format: a folder of family `hubert`, by its model type."""
