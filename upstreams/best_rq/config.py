"""Shapes of the BEST-RQ models.

Papers: Chiu et al. 2022, arXiv:2202.01855; Whetten et al. 2024, arXiv:2405.04296, and SpeechBrain's BEST-RQ.yaml.
"""

from dataclasses import dataclass, replace
from typing import Literal

from speechssl.contextual.config import ContextualConfig, tiny


@dataclass(frozen=True)
class BestRqConfig(ContextualConfig):
    """A BEST-RQ model; the defaults are SpeechBrain's base model, a conformer at 25 Hz.

    The `conv_` fields of the waveform frontend and the `pos_` fields of a transformer have no meaning for it.
    """

    frontend: Literal["conv_waveform", "log_mel"] = "log_mel"
    stack: int = 4
    """Frames of 10 ms per encoder frame, and per target."""
    stem: Literal["conv", "linear"] = "conv"
    """What joins them: two convolutions over time and frequency, each of stride 2, or a linear layer on all of them."""
    stem_channels: tuple[int, int] = (128, 32)
    """Of the convolutions."""
    stem_dropout: float = 0.1
    blocks: Literal["conformer", "transformer"] = "conformer"
    block_kernel: int = 31
    """Frames that the convolution within a conformer block sees."""
    conv_dropout: float = 0.1
    """After that convolution."""
    feature_grad_mult: float = 1.0
    feature_norm: bool = False
    """A layer norm of what enters the linear stem would make the faint noise at hidden frames as loud as speech."""
    width: int = 576
    depth: int = 12
    heads: int = 8
    ffn_width: int = 2048
    pre_norm: bool = True
    activation_dropout: float = 0.1
    layerdrop: float = 0.0


PRESETS: dict[str, BestRqConfig] = {
    "best_rq_tiny": tiny(
        BestRqConfig(stack=2, stem="linear", blocks="transformer", conv_dropout=0.0, pre_norm=False)
    ),
    "best_rq_tiny_conformer": replace(
        tiny(BestRqConfig(stem_channels=(32, 16), stem_dropout=0.0, conv_dropout=0.0)), heads=4, block_kernel=15
    ),
    "best_rq_base": BestRqConfig(),
    "best_rq_large": BestRqConfig(
        width=1024, depth=24, ffn_width=4096, block_kernel=5, stem_dropout=0.0, conv_dropout=0.0, dropout=0.0,
        attention_dropout=0.0, activation_dropout=0.0, input_dropout=0.0,
    ),
}  # fmt: skip
"""tiny is our own, the same model as the other families' tiny ones at 50 Hz (but for their norm of features), so that
objectives can be compared; its conformer is of the kind of base, at 25 Hz. large is the paper's of 0.6 B parameters."""
