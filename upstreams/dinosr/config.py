"""Shapes of the DinoSR models: those of data2vec.

Paper: Liu et al. 2023, sec. 3.1 and 4.1, arXiv:2305.10005, and the official code's config/base.yaml.
"""

from dataclasses import dataclass
from typing import Literal

from speechssl.contextual.config import ContextualConfig, tiny


@dataclass(frozen=True)
class DinoSRConfig(ContextualConfig):
    """A DinoSR model; the defaults are the published base model."""

    conv_norm: Literal["group", "layer"] = "layer"
    normalize: bool = True
    feature_grad_mult: float = 1.0
    pos_kernel: int = 19
    """Frames that each positional convolution sees."""
    pos_depth: int = 5
    input_dropout: float = 0.0


PRESETS: dict[str, DinoSRConfig] = {"dinosr_tiny": tiny(DinoSRConfig()), "dinosr_base": DinoSRConfig()}
"""tiny is our own, base is published, in fairseq's format."""

REPOSITORIES: dict[str, str] = {}
