"""The convolutional waveform encoder of wav2vec 2.0.

Seven unpadded convolutions: 320 samples per frame, 400 samples of receptive field at 16 kHz. A frame is valid when its
whole receptive field is, so padding can reach valid frames only through the group norm, whose statistics here are taken
over valid frames alone (fairseq, transformers and torchaudio take them over the padding too).
B batch, S samples, T frames, C channels.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.errors import ConfigError
from speechssl.lengths import conv_output_lengths

EPS = 1e-5


class ConvWaveform(nn.Module):
    """Convolution, norm and GELU per layer.

    Paper: Baevski et al. 2020, sec. 2 and 4.2, arXiv:2006.11477.
    """

    def __init__(
        self,
        channels: int,
        *,
        kernels: Sequence[int],
        strides: Sequence[int],
        norm: Literal["group", "layer"],
        bias: bool = False,
    ) -> None:
        """
        Args:
            channels: width C of every layer.
            kernels: of each layer, samples of its input.
            strides: of each layer, samples of its input.
            norm: 'group': after the first layer, one group per channel (base); 'layer': after every one (large).
            bias: whether the convolutions have one.
        """
        super().__init__()
        if len(kernels) != len(strides):
            raise ConfigError(f"`kernels` and `strides` must be equally long, but are {kernels} and {strides}.")
        if norm not in ("group", "layer"):
            raise ConfigError(f"`norm` must be 'group' or 'layer', but is '{norm}'.")
        self.norm = norm
        self.layers = list(zip(kernels, strides, strict=True))
        self.hop = math.prod(strides)  # samples from one frame to the next
        inputs = [1] + [channels] * (len(kernels) - 1)
        self.convs = nn.ModuleList(
            nn.Conv1d(i, channels, kernel, stride=stride, bias=bias)
            for i, (kernel, stride) in zip(inputs, self.layers, strict=True)
        )
        for conv in self.convs:
            nn.init.kaiming_normal_(conv.weight)  # type: ignore[arg-type]  # ModuleList forgets that these are Conv1d
        count = 1 if norm == "group" else len(kernels)
        self.norms = nn.ModuleList(nn.LayerNorm(channels, eps=EPS) for _ in range(count))

    def output_lengths(self, lengths: Tensor) -> Tensor:
        """Valid frames for valid samples, both (B,) int64."""
        return conv_output_lengths(lengths, self.layers)

    def forward(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        """(B, S) -> (B, T, C); frames beyond `output_lengths(lengths)` hold arbitrary finite numbers."""
        x = waveform[:, None, None, :].to(next(self.parameters()).dtype)  # (B, 1, 1, S)
        for index, conv in enumerate(self.convs):
            x = _channels_last_conv(x, conv)  # type: ignore[arg-type]  # ModuleList forgets that these are Conv1d
            if self.norm == "layer":
                x = self.norms[index](x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            elif index == 0:
                valid = conv_output_lengths(lengths, self.layers[:1])
                x = masked_group_norm(x, valid, self.norms[0].weight, self.norms[0].bias)  # type: ignore[arg-type]
            x = F.gelu(x)  # (B, C, 1, frames of this layer)
        return x.squeeze(2).transpose(1, 2)


def _channels_last_conv(x: Tensor, conv: nn.Conv1d) -> Tensor:
    """(B, C, 1, T) -> (B, C, 1, T), as a two-dimensional convolution of height 1 with the channels next to each other.

    It is faster than `conv` itself on a CPU, and the layer norms and the encoder need this order anyway.
    """
    weight = conv.weight[:, :, None, :].contiguous(memory_format=torch.channels_last)
    return F.conv2d(x, weight, conv.bias, stride=(1, conv.stride[0]))


def masked_group_norm(x: Tensor, lengths: Tensor, weight: Tensor, bias: Tensor, eps: float = EPS) -> Tensor:
    """Group norm with one group per channel, over the valid frames of each utterance only.

    Args:
        x: (B, C, 1, T).
        lengths: valid frames, (B,) int64.
        weight: (C,).
        bias: (C,).

    Returns:
        (B, C, 1, T) in the type of `x`.
    """
    counts = lengths.clamp(min=1).tolist()
    rows = [_normalize_row(row[None, :, :, :n], weight, bias, eps) for row, n in zip(x, counts, strict=True)]
    return torch.cat([F.pad(row, (0, x.size(3) - row.size(3))) for row in rows])


def _normalize_row(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """(1, C, 1, T) -> (1, C, 1, T), each channel over all of T."""
    if x.dtype != torch.float32:
        return F.group_norm(x, x.size(1), weight, bias, eps)
    # With the channels next to each other, torch's kernel sums squares one by one: off by 4e-5 in ten seconds of audio,
    # by more where there is an offset. Its `mean` sums in a tree.
    mean = x.mean(dim=3, keepdim=True)
    variance = (x - mean).square_().mean(dim=3, keepdim=True)
    scale = weight[:, None, None] * torch.rsqrt(variance + eps)  # (1, C, 1, 1)
    return x * scale + (bias[:, None, None] - mean * scale)
