"""Shapes of the data2vec models for speech.

Paper: Baevski et al. 2022, sec. 4.2, arXiv:2202.03555, and fairseq's base_librispeech.yaml.
"""

from dataclasses import dataclass, replace
from typing import Literal

from speechssl.contextual.config import ContextualConfig, tiny


@dataclass(frozen=True)
class Data2VecConfig(ContextualConfig):
    """A data2vec model; the defaults are the published base model."""

    conv_norm: Literal["group", "layer"] = "layer"
    normalize: bool = True
    feature_grad_mult: float = 1.0
    pos_kernel: int = 19
    """Frames that each positional convolution sees."""
    pos_depth: int = 5
    input_dropout: float = 0.0


PRESETS: dict[str, Data2VecConfig] = {
    "data2vec_tiny": tiny(Data2VecConfig()),
    "data2vec_base": Data2VecConfig(),
    "data2vec_large": replace(Data2VecConfig(), width=1024, depth=24, heads=16, ffn_width=4096),
}
"""tiny is our own; base and large are published, with layer norms after attention and feed-forward in both."""

REPOSITORIES: dict[str, str] = {
    "data2vec_base": "facebook/data2vec-audio-base",
    "data2vec_large": "facebook/data2vec-audio-large",
}
"""Where the published weights are, in transformers' format."""
