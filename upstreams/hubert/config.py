"""Shapes of the HuBERT models.

Paper: Hsu et al. 2021, table 1, arXiv:2106.07447.
"""

from dataclasses import dataclass

from speechssl.contextual.config import ContextualConfig


@dataclass(frozen=True)
class HubertConfig(ContextualConfig):
    """A HuBERT model; the defaults are the published base model."""


PRESETS: dict[str, HubertConfig] = {
    "hubert_tiny": HubertConfig(
        frontend="log_mel",
        feature_grad_mult=1.0,
        width=256,
        depth=6,
        heads=4,
        ffn_width=1024,
        pos_kernel=31,
        dropout=0.0,
        attention_dropout=0.0,
        input_dropout=0.0,
        layerdrop=0.0,
    ),
    "hubert_base": HubertConfig(),
    "hubert_large": HubertConfig(
        conv_norm="layer",
        normalize=True,
        feature_grad_mult=1.0,
        width=1024,
        depth=24,
        heads=16,
        ffn_width=4096,
        pre_norm=True,
        dropout=0.0,
        attention_dropout=0.0,
        input_dropout=0.0,
        layerdrop=0.0,
    ),
    "hubert_xlarge": HubertConfig(
        conv_norm="layer",
        normalize=True,
        feature_grad_mult=1.0,
        width=1280,
        depth=48,
        heads=16,
        ffn_width=5120,
        pre_norm=True,
        dropout=0.0,
        attention_dropout=0.0,
        input_dropout=0.0,
        layerdrop=0.0,
    ),
}
"""tiny is our own; base, large and xlarge are published."""

REPOSITORIES: dict[str, str] = {
    "hubert_base": "facebook/hubert-base-ls960",
    "hubert_large": "facebook/hubert-large-ll60k",
    "hubert_xlarge": "facebook/hubert-xlarge-ll60k",
}
"""Where the published weights are, in transformers' format."""
