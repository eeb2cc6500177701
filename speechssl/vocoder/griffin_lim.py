"""Griffin-Lim: a waveform from log-mel frames without any weights, for where no neural vocoder can be had."""

import torch
import torch.nn.functional as F
import torchaudio.functional as AF
from torch import Tensor, nn

from speechssl.vocoder.inputs import FeatureSource
from speechssl.vocoder.mel import MelConfig, mel_filters


class GriffinLim(nn.Module):
    """Inverts the mel filters by their pseudo-inverse, then searches a phase that fits the magnitudes.

    Paper: Griffin and Lim 1984; the accelerated form of Perraudin et al. 2013.
    """

    name = "Griffin-Lim"
    source: FeatureSource | None = None

    inverse: Tensor

    def __init__(self, mel: MelConfig | None = None, *, iterations: int = 32) -> None:
        super().__init__()
        self.mel = mel or MelConfig()
        self.iterations = iterations
        self.register_buffer("inverse", torch.linalg.pinv(mel_filters(self.mel)), persistent=False)

    def forward(self, frames: Tensor) -> Tensor:
        """Synthesises.

        Args:
            frames: log-mel as `mel.log_mel` gives it, (B, T, M).

        Returns:
            (B, T * hop) in [-1, 1] at `mel.sample_rate`.
        """
        size, hop = self.mel.n_fft, self.mel.hop
        magnitude = (frames.float().exp() @ self.inverse).clamp(min=0.0).transpose(1, 2)  # (B, F, T)
        samples = AF.griffinlim(
            magnitude,
            window=torch.hann_window(size, device=frames.device),
            n_fft=size,
            hop_length=hop,
            win_length=size,
            power=1.0,
            n_iter=self.iterations,
            momentum=0.99,
            length=frames.size(1) * hop - hop // 2,
            # Zero phase at the start makes the result a function of the frames alone.
            rand_init=False,
        )
        # istft takes frame t to stand at t * hop; the mel recipe has it half a hop later.
        return F.pad(samples, (hop // 2, 0)).clamp(-1.0, 1.0)
