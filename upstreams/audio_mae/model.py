"""Audio-MAE: Kaldi's log-mel energies in patches, fixed positions, and the encoder of a masked autoencoder.

C columns, R rows, D width.
"""

import torch
from torch import Tensor, nn

from speechssl.errors import ConfigError
from speechssl.frontend.log_mel import LogMelConfig
from speechssl.frontend.scaled_log_mel import ScaledLogMel
from speechssl.patches.model import PatchUpstream
from upstreams.audio_mae.config import AudioMaeConfig

LONGEST = 10_000.0
"""Period of the slowest wave, in units of 2 pi."""


class AudioMaeUpstream(PatchUpstream):
    """An Audio-MAE model.

    Paper: Huang et al. 2022, sec. 3.1, arXiv:2207.06405.
    """

    name = "audio_mae"
    family = "audio_mae"

    def __init__(self, config: AudioMaeConfig) -> None:
        spectrum = LogMelConfig(sample_rate=config.sample_rate, num_mel_bins=config.num_mel_bins, window_type="hanning")
        super().__init__(config, ScaledLogMel(spectrum, mean=config.mean, deviation=config.deviation))
        columns, rows, width = self.position.shape
        with torch.no_grad():
            self.position.copy_(grid_positions(columns, rows, width))
        if self.prefix_position is not None:
            nn.init.zeros_(self.prefix_position)


def grid_positions(columns: int, rows: int, width: int) -> Tensor:
    """The positions that Audio-MAE was trained with: sines and cosines of two coordinates, half of the width each.

    The authors count the coordinates along rows, and the patches along columns, so that a patch does not get those of
    its own place: the i-th of all patches has the coordinates of the i-th place along the rows. They are all different,
    and the model has learned with them.

    Returns:
        (C, R, D).
    """
    if width % 4:
        raise ConfigError(f"`width` must be a multiple of 4, for the sines of two coordinates, but is {width}.")
    place = torch.arange(columns * rows, dtype=torch.float64)
    frequencies = LONGEST ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))  # (D / 4,)
    waves = []
    for coordinate in (place % columns, torch.div(place, columns, rounding_mode="floor")):
        angles = coordinate[:, None] * frequencies  # (C R, D / 4)
        waves += [angles.sin(), angles.cos()]
    return torch.cat(waves, dim=1).view(columns, rows, width).float()


def build(config: AudioMaeConfig) -> AudioMaeUpstream:
    """Makes the model with random weights."""
    return AudioMaeUpstream(config)
