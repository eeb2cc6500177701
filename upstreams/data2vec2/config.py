"""Shapes of the data2vec 2.0 models for speech.

Paper: Baevski et al. 2022, arXiv:2212.07525, and fairseq's v2/base_audio_only_task.yaml and large_audio_only_task.yaml.
"""

from dataclasses import dataclass, replace
from typing import Literal

from speechssl.contextual.config import ContextualConfig, tiny


@dataclass(frozen=True)
class Data2Vec2Config(ContextualConfig):
    """A data2vec 2.0 model; the defaults are the published base model."""

    conv_norm: Literal["group", "layer"] = "layer"
    normalize: bool = True
    feature_grad_mult: float = 1.0
    depth: int = 12
    """All blocks, those of the prenet first."""
    pos_kernel: int = 19
    """Frames that each positional convolution sees."""
    pos_depth: int = 5
    alibi: bool = True
    input_dropout: float = 0.0


PRESETS: dict[str, Data2Vec2Config] = {
    "data2vec2_tiny": tiny(Data2Vec2Config()),
    "data2vec2_base": Data2Vec2Config(),
    "data2vec2_large": replace(Data2Vec2Config(), width=1024, depth=24, heads=16, ffn_width=4096, layerdrop=0.0),
}
"""tiny is our own; base and large are published, in fairseq's format; the first 8 blocks of large are its prenet."""

REPOSITORIES: dict[str, str] = {}
