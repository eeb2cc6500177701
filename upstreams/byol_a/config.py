"""Shapes of the BYOL-A models.

Papers: Niizumi et al. 2021, sec. III.B, arXiv:2103.06695; Niizumi et al. 2022 (v2), sec. III, arXiv:2204.07402.
"""

from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True)
class ByolAConfig:
    """A BYOL-A model; the defaults are the published one of 2048 dimensions."""

    sample_rate: int = 16_000
    """Hz."""
    num_mel_bins: int = 64
    mel_scale: Literal["htk", "slaney"] = "htk"
    """Of the mel filters: torchaudio's (first version), or librosa's (second)."""
    mean: float = -5.4919195
    """Of the log-mel energies of the data, natural logarithm."""
    deviation: float = 5.0389895
    """Of the log-mel energies of the data."""
    conv_channels: int = 64
    conv_layers: int = 3
    """Each halves the frame rate and the mel bands."""
    ffn_width: int = 2048
    """Of the first dense layer."""
    width: int = 2048
    """Of the second dense layer."""
    stacked: bool = False
    """Whether the last hidden state holds the convolutions' features, too (second version)."""
    dropout: float = 0.3


_V1 = ByolAConfig()

PRESETS: dict[str, ByolAConfig] = {
    "byol_a_512": replace(_V1, ffn_width=512, width=512),
    "byol_a_1024": replace(_V1, ffn_width=1024, width=1024),
    "byol_a_2048": _V1,
    "byol_a_v2": replace(_V1, mel_scale="slaney", mean=-9.660292, deviation=4.7219563, conv_layers=2, stacked=True),
}
"""All are published, as AudioNTT2020-BYOLA-64x96d{512,1024,2048}.pth and AudioNTT2022-BYOLA-64x96d2048.pth."""
