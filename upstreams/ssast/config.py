"""Shapes of the SSAST models.

Paper: Gong et al. 2022, sec. 3.1, arXiv:2110.09784.
"""

from dataclasses import dataclass
from typing import Literal

from speechssl.patches.config import PatchConfig


@dataclass(frozen=True)
class SsastConfig(PatchConfig):
    """An SSAST model; the defaults are the published base model on patches."""

    prefix_tokens: int = 2
    """The class and the distillation token of DeiT."""
    position_cut: Literal["start", "centre"] = "centre"
    """Which of the positions shorter audio takes."""
    mean: float = -4.2677393
    """Of the log energies of AudioSet."""
    deviation: float = 4.5689974
    """Of the log energies of AudioSet."""


def _frames(*, width: int = 768, heads: int = 12, ffn_width: int = 3072) -> SsastConfig:
    """A model on strips of 2 frames and all frequencies, as long as 16 x 16 patches in all: 10.24 s are 512 strips."""
    return SsastConfig(
        patch_frames=2,
        patch_bands=128,
        stride_frames=2,
        stride_bands=128,
        columns=512,
        width=width,
        heads=heads,
        ffn_width=ffn_width,
    )


PRESETS: dict[str, SsastConfig] = {
    "ssast_patch_tiny": SsastConfig(width=192, heads=3, ffn_width=768),
    "ssast_patch_small": SsastConfig(width=384, heads=6, ffn_width=1536),
    "ssast_patch_base": SsastConfig(),
    "ssast_frame_tiny": _frames(width=192, heads=3, ffn_width=768),
    "ssast_frame_small": _frames(width=384, heads=6, ffn_width=1536),
    "ssast_frame_base": _frames(),
}
"""All are published but frame_small, whose checkpoint the authors did not put out."""
