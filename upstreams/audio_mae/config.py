"""Shapes of the Audio-MAE models.

Paper: Huang et al. 2022, sec. 3.1 and 4.2, arXiv:2207.06405.
"""

from dataclasses import dataclass

from speechssl.patches.config import PatchConfig


@dataclass(frozen=True)
class AudioMaeConfig(PatchConfig):
    """An Audio-MAE model; the defaults are the published base model."""

    mean: float = -4.2677393
    """Of the log energies of AudioSet."""
    deviation: float = 4.5689974
    """Of the log energies of AudioSet."""


PRESETS: dict[str, AudioMaeConfig] = {"audio_mae_base": AudioMaeConfig()}
