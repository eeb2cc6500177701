"""Shapes of the Dasheng models.

Paper: Dinkel et al. 2024, sec. 2 and table 1, arXiv:2406.06992.
"""

from dataclasses import dataclass

from speechssl.patches.config import PatchConfig


@dataclass(frozen=True)
class DashengConfig(PatchConfig):
    """A Dasheng model; the defaults are the published base model."""

    num_mel_bins: int = 64
    patch_frames: int = 4
    """Frames of 10 ms."""
    patch_bands: int = 64
    """All mel bands."""
    stride_frames: int = 4
    stride_bands: int = 64
    columns: int = 252
    """Strips of 40 ms that positions were learned for, 10.08 s; longer audio is read in windows of so many."""
    prefix_tokens: int = 0
    """None stands for the whole clip."""
    window: int = 512
    """Samples under the Hann window; the transform is as long."""
    hop: int = 160
    """Samples."""
    low_freq: float = 0.0
    """Hz."""
    high_freq: float = 8000.0
    """Hz."""
    top_db: float = 120.0
    """Decibels below an utterance's loudest value at which energies are cut off."""


PRESETS: dict[str, DashengConfig] = {
    "dasheng_base": DashengConfig(),
    "dasheng_06b": DashengConfig(width=1280, depth=32, heads=16, ffn_width=5120),
    "dasheng_12b": DashengConfig(width=1536, depth=40, heads=24, ffn_width=6144),
}

REPOSITORIES: dict[str, str] = {
    "dasheng_base": "mispeech/dasheng-base",
    "dasheng_06b": "mispeech/dasheng-0.6B",
    "dasheng_12b": "mispeech/dasheng-1.2B",
}
"""Where the authors put the published weights, in a folder of transformers' form."""
