"""Shapes of the ATST models.

Papers: Li and Li 2022 (ATST-Clip), sec. 2, arXiv:2204.12076; Li et al. 2023 (ATST-Frame), sec. III, arXiv:2306.04186.
"""

from dataclasses import dataclass, replace

from speechssl.patches.config import PatchConfig


@dataclass(frozen=True)
class AtstConfig(PatchConfig):
    """An ATST model; the defaults are the published ATST-Frame base."""

    num_mel_bins: int = 64
    patch_frames: int = 4
    patch_bands: int = 64
    stride_frames: int = 4
    stride_bands: int = 64
    columns: int = 250
    prefix_tokens: int = 0
    """1 in ATST-Clip: the token that stands for the clip."""
    window_frames: int = 1001
    """Frames of 10 ms that are read at once; what does not fill a patch at the end of a window is passed over."""
    least: float = -79.6482
    """Decibels that become -1."""
    most: float = 50.6842
    """Decibels that become 1."""
    dynamic_range: float = 80.0
    """Decibels below the loudest of an utterance at which its energies are cut off."""


_FRAME = AtstConfig()
_CLIP = replace(_FRAME, columns=150, window_frames=601, prefix_tokens=1)

PRESETS: dict[str, AtstConfig] = {
    "atst_frame_small": replace(_FRAME, width=384, heads=6, ffn_width=1536),
    "atst_frame_base": _FRAME,
    "atst_clip_small": replace(_CLIP, width=384, heads=6, ffn_width=1536),
    "atst_clip_base": _CLIP,
}
"""All are published, by their authors."""
