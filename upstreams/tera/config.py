"""Shapes of TERA, Mockingjay and Audio ALBERT.

Papers: Liu et al. 2021 (TERA), sec. IV, arXiv:2007.06028; Liu et al. 2020 (Mockingjay), sec. 3, arXiv:1910.12638; Chi
et al. 2021 (Audio ALBERT), sec. 2, arXiv:2005.08575; and S3PRL's pretrain/{tera,mockingjay}.
"""

from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True)
class TeraConfig:
    """A transformer over normalised log-mel frames; the defaults are TERA base, trained on 960 hours."""

    frontend: Literal["centred_mel", "fbank"] = "centred_mel"
    """S3PRL's `mel` features, or Kaldi's filterbank with first and second deltas."""
    num_mel_bins: int = 80
    level: float | None = -25.0
    """dB below full scale that each waveform is brought to first, of `centred_mel`; None = as it is."""
    width: int = 768
    depth: int = 3
    heads: int = 12
    ffn_width: int = 3072
    share_blocks: bool = False
    """Whether all blocks have the same weights, as in Audio ALBERT."""
    max_frames: int = 1500
    """Longer utterances are cut into equal parts of at most this, each with its own positions; 0 = never."""
    norm_eps: float = 1e-12
    dropout: float = 0.1
    attention_dropout: float = 0.1


_BASE = TeraConfig()

PRESETS: dict[str, TeraConfig] = {
    "tera_tiny": replace(_BASE, width=256, heads=4, ffn_width=1024, dropout=0.0, attention_dropout=0.0),
    "tera_base": _BASE,
    "tera_base_100h": replace(_BASE, dropout=0.3, attention_dropout=0.3),
    "tera_medium": replace(_BASE, depth=6),
    "tera_large": replace(_BASE, depth=12),
    "tera_fbank_base": replace(_BASE, frontend="fbank", level=None, dropout=0.3, attention_dropout=0.3),
    "tera_mockingjay_base": _BASE,
    "tera_mockingjay_large": replace(_BASE, depth=12, max_frames=500),
    "tera_audio_albert": replace(_BASE, share_blocks=True),
}

REPOSITORIES: dict[str, str] = {
    "tera_base": "s3prl/tera/tera_logMelBase_T_F_M_AdamW_b32_1m_960hr_drop1/states-1000000.ckpt",
    "tera_mockingjay_large": (
        "s3prl/mockingjay/mockingjay_logMelLinearLarge_T_AdamW_b32_500k_360hr_drop1/states-500000.ckpt"
    ),
    "tera_audio_albert": (
        "s3prl/audio_albert/audio_albert_logMelBase_T_share_AdamW_b32_1m_960hr_drop1/states-1000000.ckpt"
    ),
}
"""Where the published weights are, in S3PRL's format."""
