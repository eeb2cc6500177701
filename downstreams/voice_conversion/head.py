"""The network from frames of an upstream to log-mel frames of a vocoder.

Shapes: B batch, T feature frames, T' mel frames, D width of the features, H width of the network, M mel bands.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from downstreams.voice_conversion.config import HeadConfig
from speechssl.errors import SpeechsslError
from speechssl.lengths import lengths_to_padding_mask


class MelHead(nn.Module):
    """Standardisation, residual convolutions at the rate of the features, interpolation, and more at the mel rate.

    Frames beyond `lengths` are zero before every convolution, as beyond the ends, so an utterance's mel does not
    depend on its batch.

    Paper: in place of the vocoder on features of Baas et al. 2023, sec. 2.3, arXiv:2305.18975, whose weights are
    trained for one upstream: a log-mel is what ready vocoders read.
    """

    def __init__(self, size: int, frame_rate: float, *, n_mels: int, mel_rate: float, config: HeadConfig) -> None:
        """
        Args:
            size: D.
            frame_rate: of the features, Hz.
            n_mels: M.
            mel_rate: of the log-mel frames, Hz.
        """
        super().__init__()
        self.scale = mel_rate / frame_rate
        width, kernel = config.width, config.kernel
        self.standardise = nn.BatchNorm1d(size, affine=False)
        self.project = nn.Linear(size, width)
        self.blocks = nn.ModuleList(_Block(width, kernel) for _ in range(config.blocks))
        self.refine = nn.ModuleList(_Block(width, kernel) for _ in range(config.refining_blocks))
        self.out = nn.Linear(width, n_mels)
        # What a frame says of the spectrum linearly need not be learned through the convolutions.
        self.shortcut = nn.Linear(size, n_mels)
        nn.init.constant_(self.out.bias, -5.0)  # the mean log-mel of speech at a usual level

        # Of the convolutions at either rate, and two frames that the interpolation may reach.
        reach = kernel // 2 * config.blocks + math.ceil(kernel // 2 * config.refining_blocks / self.scale) + 2
        self.context = reach
        """Frames of features on each side of one that its mel frames depend on."""

    def mel_lengths(self, lengths: Tensor) -> Tensor:
        """Mel frames for `lengths` feature frames, (B,) int64."""
        return (lengths.double() * self.scale).floor().long()

    def directions(self, features: Tensor) -> Tensor:
        """Standardises frames (..., D) by the running statistics, without gradient: where neighbours are looked for."""
        norm = self.standardise
        if norm.running_mean is None or norm.running_var is None:
            raise SpeechsslError("`standardise` must track running statistics, but doesn't.")
        return (features.detach() - norm.running_mean) / (norm.running_var + norm.eps).sqrt()

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        """(B, T, D) and (B,) valid frames -> (B, T', M) log-mel, T' = mel_lengths(lengths).max()."""
        valid = ~lengths_to_padding_mask(lengths, features.size(1))  # (B, T)
        standard = torch.zeros_like(features)
        standard[valid] = self.standardise(features[valid])
        hidden = self.project(standard).transpose(1, 2)  # (B, H, T)
        for block in self.blocks:
            hidden = block(hidden, valid[:, None])
        out_lengths = self.mel_lengths(lengths)
        hidden = self._to_mel_rate(hidden, lengths)[:, :, : int(out_lengths.max())]  # (B, H, T')
        shortcut = self._to_mel_rate(self.shortcut(standard).transpose(1, 2), lengths)[:, :, : hidden.size(2)]
        valid = ~lengths_to_padding_mask(out_lengths)
        for block in self.refine:
            hidden = block(hidden, valid[:, None])
        mel: Tensor = self.out(hidden.transpose(1, 2)) + shortcut.transpose(1, 2)  # (B, T', M)
        return mel

    def stretch(self, features: Tensor, *, begin: int, first: int, last: int) -> Tensor:
        """The mel frames of a stretch of one utterance, as `forward` gives them where enough is seen around it.

        Args:
            features: (T, D) frames `begin` and following, with `context` of them, or all there are, on both sides.
            first: first frame of the stretch; `last` is the first behind it.

        Returns:
            (T', M): mel frames mel_lengths(first) to mel_lengths(last) of the utterance.
        """
        standard = self.standardise(features)
        hidden = self.project(standard).T[None]  # (1, H, T)
        everywhere = torch.ones(1, 1, 1, dtype=torch.bool, device=features.device)
        for block in self.blocks:
            hidden = block(hidden, everywhere)
        bounds = self.mel_lengths(torch.tensor([begin, first, last, begin + len(features)])).tolist()
        lower, upper, weight = self._between(begin, len(features), bounds[0], bounds[3], device=features.device)
        hidden = torch.lerp(hidden[:, :, lower], hidden[:, :, upper], weight)  # (1, H, T')
        linear = self.shortcut(standard)  # (T, M)
        for block in self.refine:
            hidden = block(hidden, everywhere)
        mel: Tensor = self.out(hidden[0].T) + torch.lerp(linear[lower], linear[upper], weight[:, None])
        return mel[bounds[1] - bounds[0] : bounds[2] - bounds[0]]

    def _between(
        self, begin: int, count: int, first: int, last: int, *, device: torch.device
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Between which of `count` frames from `begin` on mel frames `first` to `last` stand, and where, (T',) each."""
        places = (torch.arange(first, last, dtype=torch.float64) + 0.5) / self.scale - 0.5 - begin
        places = places.clamp(min=0.0, max=count - 1)  # as `F.interpolate` does it
        lower = places.floor().long()
        weight = (places - lower).float()
        return lower.to(device), (lower + 1).clamp(max=count - 1).to(device), weight.to(device)

    def _to_mel_rate(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        """Linear interpolation between frame centres; the last valid frame is repeated into the padding first."""
        last = torch.arange(hidden.size(2), device=hidden.device)[None].minimum(lengths[:, None] - 1)  # (B, T)
        hidden = hidden.gather(2, last[:, None].expand_as(hidden))
        resampled: Tensor = F.interpolate(hidden, scale_factor=self.scale, mode="linear", align_corners=False)
        return resampled


class _Block(nn.Module):
    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.first = nn.Conv1d(width, width, kernel, padding=kernel // 2)
        self.second = nn.Conv1d(width, width, 1)

    def forward(self, hidden: Tensor, valid: Tensor) -> Tensor:
        """(B, H, T) and valid frames (B, 1, T) bool -> (B, H, T)."""
        normed = self.norm(hidden.transpose(1, 2)).transpose(1, 2)
        change = self.second(F.gelu(self.first(torch.where(valid, normed, 0.0))))
        summed: Tensor = hidden + change
        return summed
