"""What ATST hears: mel energies in decibels, brought to -1..1 by two fixed numbers.

B batch, S samples, T frames, M mel bands.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.frontend.centred_mel import CentredMel, CentredMelConfig
from speechssl.lengths import lengths_to_padding_mask
from upstreams.atst.config import AtstConfig

FLOOR = 1e-10
"""Least energy before the logarithm."""


class ScaledDecibels(nn.Module):
    """Decibels, cut off below the loudest of the utterance, without the frames that fill no patch of their window.

    Paper: Li and Li 2022, sec. 3.1, arXiv:2204.12076; the decibels as torchaudio's `AmplitudeToDB`.
    """

    def __init__(self, config: AtstConfig) -> None:
        super().__init__()
        self.mel = CentredMel(CentredMelConfig(sample_rate=config.sample_rate, num_mel_bins=config.num_mel_bins))
        self.hop = self.mel.hop
        self.least, self.most = config.least, config.most
        self.dynamic_range = config.dynamic_range
        self.window = config.window_frames
        self.kept = config.window_frames - config.window_frames % config.patch_frames

    def output_lengths(self, lengths: Tensor) -> Tensor:
        """Valid frames for valid samples, both (B,) int64."""
        frames = self.mel.output_lengths(lengths)
        whole = torch.div(frames, self.window, rounding_mode="floor")
        return whole * self.kept + (frames - whole * self.window).clamp(max=self.kept)

    def forward(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        """(B, S) -> (B, T, M), float32."""
        energy = self.mel(waveform, lengths)  # (B, T, M)
        decibels = 10.0 * energy.clamp(min=FLOOR).log10()
        beyond = lengths_to_padding_mask(self.mel.output_lengths(lengths), energy.size(1))
        loudest = decibels.masked_fill(beyond[:, :, None], -torch.inf).amax(dim=(1, 2), keepdim=True)  # (B, 1, 1)
        decibels = torch.maximum(decibels, loudest - self.dynamic_range)
        return self._pass_over((decibels - self.least) / (self.most - self.least) * 2.0 - 1.0)

    def _pass_over(self, features: Tensor) -> Tensor:
        """Leaves out what fills no patch at the end of each window: (B, T, M) -> (B, T or fewer, M)."""
        B, T, M = features.shape
        if self.kept >= T:
            return features
        count = -(-T // self.window)
        windows = F.pad(features, (0, 0, 0, count * self.window - T)).view(B, count, self.window, M)
        return windows[:, :, : self.kept].flatten(1, 2)
