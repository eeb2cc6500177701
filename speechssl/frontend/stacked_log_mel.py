"""Normalised log-mel frames, joined to a lower frame rate.

B batch, S samples, T frames, M mel bands.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from speechssl.frontend.log_mel import LogMel, LogMelConfig, normalize_frames, standardize_frames


class StackedLogMel(nn.Module):
    """Log-mel energies with mean and variance normalised per utterance, `stack` frames of 10 ms joined into one.

    It has no weights and costs next to nothing, where the convolutions of wav2vec 2.0 take a third of the base model.

    Paper: Chiu et al. 2022 (stacked log-mel as input of masked prediction), arXiv:2202.01855.
    """

    def __init__(
        self,
        num_mel_bins: int,
        *,
        stack: int,
        window_type: Literal["povey", "hanning", "hamming"] = "povey",
        correction: int = 0,
    ) -> None:
        """
        Args:
            window_type: see `LogMelConfig`.
            correction: of the variance, see `normalize_frames`.
        """
        super().__init__()
        self.stack = stack
        self.correction = correction
        self.known_statistics: tuple[Tensor, Tensor] | None = None
        """Mean and deviation (M,) of the whole of an utterance, where the waveform is a stretch of it."""
        self.width = num_mel_bins * stack
        self.log_mel = LogMel(LogMelConfig(num_mel_bins=num_mel_bins, window_type=window_type))
        self.hop = self.log_mel.options.hop * stack  # samples from one frame to the next

    def output_lengths(self, lengths: Tensor) -> Tensor:
        """Valid frames for valid samples, both (B,) int64; frames left over at the end are dropped."""
        return torch.div(self.log_mel.output_lengths(lengths), self.stack, rounding_mode="floor")

    def forward(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        """(B, S) -> (B, T, stack M), float32; a last frame that is half padding is not a valid one."""
        features = self.log_mel(waveform)  # (B, stack T, M)
        if self.known_statistics is None:
            frames = self.log_mel.output_lengths(lengths)
            features = normalize_frames(features, frames, correction=self.correction)
        else:
            features = standardize_frames(features, *self.known_statistics)
        size = features.size(1) // self.stack
        features = features[:, : size * self.stack]
        return features.reshape(features.size(0), size, self.width)
