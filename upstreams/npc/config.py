"""Shapes of NPC.

Paper: Liu et al. 2021, sec. 3.1, arXiv:2011.00406, and the authors' config/self_supervised/npc_example.yml.
"""

from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True)
class NpcConfig:
    """Convolution blocks over normalised log-mel frames, and masked views of them; the defaults are the published
    model."""

    num_mel_bins: int = 80
    width: int = 512
    depth: int = 4
    """Convolution blocks."""
    kernel: int = 15
    """Frames that each masked convolution reaches over."""
    mask_size: int = 5
    """Frames in the middle that the prediction knows nothing of."""
    dropout: float = 0.1
    residual: bool = True
    batch_norm: bool = True
    activation: Literal["relu", "tanh"] = "relu"
    cross_layer: bool = True
    """Whether all blocks are seen through the mask, not the last one alone."""


_BASE = NpcConfig()

PRESETS: dict[str, NpcConfig] = {
    "npc_tiny": replace(_BASE, width=256, dropout=0.0),
    "npc_base": _BASE,
    "npc_360h": _BASE,
}

REPOSITORIES: dict[str, str] = {
    "npc_base": "leo19941227/apc_series/npc_960hr.ckpt",
    "npc_360h": "leo19941227/apc_series/npc_360hr.ckpt",
}
"""Where the published weights are, in S3PRL's format."""
