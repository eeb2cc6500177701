"""Log-mel frames, normalised by the statistics of a corpus, and gated convolutions that halve their rate.

B batch, S samples, F frames of 10 ms, T frames, M mel bands, C channels.
Reference: the code of Yang et al. 2023 (`utils/extract_fbank.py`, `model/fasthubert.py`) and fairseq's
`Conv1dSubsampler`, which lets a padded utterance's last frames hear what it is padded with; here they hear zeros, as
alone.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.conv import conv_over_time
from speechssl.errors import ConfigError
from speechssl.frontend.log_mel import CorpusNorm, LogMel, LogMelConfig
from speechssl.lengths import lengths_to_padding_mask

GAIN = 2.0**15
"""Of the waveform: Kaldi hears 16-bit integers."""
STRIDE = 2
"""Of each convolution."""


class SubsampledLogMel(nn.Module):
    """Kaldi's log-mel energies, `CorpusNorm`, and per layer a convolution and a gated linear unit.

    Paper: Yang et al. 2023, sec. 3, arXiv:2309.13860; the convolutions are those of Synnaeve et al. 2020,
    arXiv:1911.08460.
    """

    def __init__(self, num_mel_bins: int, *, channels: int, inner: int, kernels: Sequence[int]) -> None:
        """
        Args:
            num_mel_bins: M.
            channels: C of what comes out.
            inner: of each convolution but the last, before the gate that halves them.
            kernels: of each convolution, odd, frames of its input.
        """
        super().__init__()
        if not kernels or inner % 2 or any(kernel % 2 == 0 for kernel in kernels):
            raise ConfigError(
                f"`subsample_kernels` must be odd and `subsample_channels` even, but they are {kernels} and {inner}."
            )
        self.log_mel = LogMel(LogMelConfig(num_mel_bins=num_mel_bins))
        self.norm = CorpusNorm(num_mel_bins)
        widths = [num_mel_bins] + [inner // 2] * (len(kernels) - 1) + [channels]
        self.convs = nn.ModuleList(
            nn.Conv1d(a, 2 * b, kernel, stride=STRIDE, padding=kernel // 2)
            for (a, b), kernel in zip(pairwise(widths), kernels, strict=True)
        )
        self.hop = self.log_mel.options.hop * STRIDE ** len(kernels)  # samples from one frame to the next

    def output_lengths(self, lengths: Tensor) -> Tensor:
        """Valid frames for valid samples, both (B,) int64: ceil(F / 2) after each convolution."""
        frames = self.log_mel.output_lengths(lengths)
        for _ in self.convs:
            frames = _halved(frames)
        return frames

    def forward(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        """(B, S) -> (B, T, C); frames beyond `output_lengths(lengths)` hold arbitrary finite numbers."""
        frames = self.log_mel.output_lengths(lengths)
        x: Tensor = self.norm(self.log_mel(waveform * GAIN))  # (B, F, M)
        for conv in self.convs:
            x = x.masked_fill(lengths_to_padding_mask(frames, x.size(1))[:, :, None], 0.0)
            x = F.glu(_convolve(conv, x), dim=2)  # type: ignore[arg-type]  # ModuleList forgets its types
            frames = _halved(frames)
        return x

    def fit(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Takes the statistics of log-mel energies of batches: waveforms (B, S), and valid samples (B,) int64."""
        self.norm.fit((self.log_mel(w * GAIN), self.log_mel.output_lengths(lengths)) for w, lengths in batches)


def _convolve(conv: nn.Conv1d, x: Tensor) -> Tensor:
    """(B, T, C) -> (B, ceil(T / 2), C')."""
    padding = conv.kernel_size[0] // 2
    return conv_over_time(x.to(conv.weight.dtype), conv.weight, conv.bias, stride=STRIDE, padding=padding)


def _halved(frames: Tensor) -> Tensor:
    return (frames + 1) // STRIDE
