"""Settings of transformers over patches of a spectrogram; free of torch, so that listing presets stays fast."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class PatchConfig:
    """A grid of patches and a vision transformer; the defaults are ViT-B on 16 x 16 patches of 10.24 s."""

    sample_rate: int = 16_000
    """Hz."""
    num_mel_bins: int = 128
    patch_frames: int = 16
    """Frames of 10 ms."""
    patch_bands: int = 16
    """Mel bands."""
    stride_frames: int = 16
    stride_bands: int = 16
    columns: int = 64
    """Columns of patches that positions were learned for; longer audio is read in windows of so many."""
    position_cut: Literal["start", "centre"] = "start"
    """Which of the positions shorter audio takes."""
    prefix_tokens: int = 1
    """Tokens before the patches that stand for the whole clip."""
    width: int = 768
    depth: int = 12
    heads: int = 12
    ffn_width: int = 3072
    norm_eps: float = 1e-6
    closing_norm: bool = True
    """Whether the last hidden state goes through a layer norm."""
    frequency: Literal["join", "mean"] = "join"
    """How the patches of a column become a frame: side by side, from low to high frequencies, or as their mean."""
