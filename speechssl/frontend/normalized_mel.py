"""Log-mel frames whose channels have mean 0 and deviation 1 over each utterance, as S3PRL's extracters make them.

B batch, S samples, T frames, M mel bands, C channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.frontend.centred_mel import CentredMel, CentredMelConfig
from speechssl.frontend.log_mel import LogMel, LogMelConfig, normalize_frames, with_deltas

FLOOR = 1e-10
"""Added to energies before the logarithm."""


class NormalizedCentredMel(nn.Module):
    """Log-mel energies of centred frames of 25 ms, every 10 ms.

    Reference: S3PRL `upstream/baseline/preprocessor.py` of one utterance alone. What it normalises of a padded batch
    depends on the batch, here it does not; a channel that does not vary becomes 0.
    """

    def __init__(self, num_mel_bins: int, *, level: float | None) -> None:
        """
        Args:
            level: root mean square that each waveform is brought to first, dB below full scale; None = as it is.
        """
        super().__init__()
        self.level = level
        self.mel = CentredMel(CentredMelConfig(num_mel_bins=num_mel_bins, window=400, low_freq=0.0, high_freq=8_000.0))
        self.hop = self.mel.hop
        self.width = num_mel_bins
        self.spectrum_width = self.mel.options.window // 2 + 1

    def output_lengths(self, lengths: Tensor) -> Tensor:
        """Valid frames for valid samples, both (B,) int64; too little to be reflected at both ends gives one frame."""
        frames = torch.div(lengths, self.hop, rounding_mode="floor")
        return torch.where(lengths > self.mel.options.window // 2, frames + 1, frames)

    def forward(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        """(B, S), 0 beyond `lengths` -> (B, T, M), float32, 0 beyond the valid frames."""
        return self._normalized(self.mel(*self._levelled(waveform, lengths)), lengths)

    def spectrum(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        """The same of the whole spectrum: (B, S), 0 beyond `lengths` -> (B, T, 201), float32."""
        return self._normalized(self.mel.power(*self._levelled(waveform, lengths)), lengths)

    def _levelled(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        if self.level is not None:
            power = waveform.square().sum(dim=1, keepdim=True) / lengths[:, None]
            waveform = waveform * (10.0 ** (self.level / 20.0) / (power.sqrt() + FLOOR))
        # What is to be reflected must be longer than that.
        return F.pad(waveform, (0, max(0, self.mel.options.window // 2 + 1 - waveform.size(1)))), lengths

    def _normalized(self, energy: Tensor, lengths: Tensor) -> Tensor:
        with torch.autocast(energy.device.type, enabled=False):
            return normalize_frames((energy + FLOOR).log(), self.output_lengths(lengths), correction=1)


class NormalizedFbank(nn.Module):
    """Kaldi's log-mel energies with first and second deltas.

    Reference: S3PRL `upstream/baseline/extracter.py`.
    """

    def __init__(self, num_mel_bins: int) -> None:
        super().__init__()
        self.log_mel = LogMel(LogMelConfig(num_mel_bins=num_mel_bins))
        self.hop = self.log_mel.options.hop
        self.width = 3 * num_mel_bins

    def output_lengths(self, lengths: Tensor) -> Tensor:
        """Valid frames for valid samples, both (B,) int64."""
        return self.log_mel.output_lengths(lengths)

    def forward(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        """(B, S) -> (B, T, 3 M), float32, 0 beyond the valid frames."""
        frames = self.output_lengths(lengths)
        features = with_deltas(self.log_mel(waveform), frames)
        with torch.autocast(waveform.device.type, enabled=False):
            return normalize_frames(features, frames, correction=1)
