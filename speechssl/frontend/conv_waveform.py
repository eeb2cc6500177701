"""The convolutional waveform encoder of wav2vec 2.0.

Seven unpadded convolutions: 320 samples per frame, 400 samples of receptive field at 16 kHz. A frame is valid when its
whole receptive field is, so padding can reach valid frames only through the group norm, whose statistics here are taken
over valid frames alone (fairseq, transformers and torchaudio take them over the padding too).

Those statistics come in closed form: what the first convolution puts out is linear in the windows of the waveform, so
its mean and variance follow from the mean and the covariance of the windows, a 10 x 10 matrix. The group norm then
costs one scale and one shift, and audio of any length can be convolved piece by piece.
B batch, S samples, T frames, C channels, K samples of the first kernel.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.conv import channels_last, conv_over_time
from speechssl.errors import ConfigError
from speechssl.lengths import conv_output_lengths

EPS = 1e-5
BLOCK = 100
"""Frames that are convolved at once on a CPU: few enough for what lies between the layers to stay in its cache."""
PIECE = 1 << 15
"""Windows whose statistics are taken at once."""


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
        self.known_norm: tuple[Tensor, Tensor] | None = None
        """What `first_norm` gives for the whole of an utterance, where what is convolved is a stretch of it."""
        self.channels = channels
        self.layers = list(zip(kernels, strides, strict=True))
        self.hop = math.prod(strides)  # samples from one frame to the next
        steps = [math.prod(strides[:i]) for i in range(len(strides))]
        self.receptive_field = 1 + sum((k - 1) * step for k, step in zip(kernels, steps, strict=True))  # samples
        inputs = [1] + [channels] * (len(kernels) - 1)
        self.convs = nn.ModuleList(
            nn.Conv1d(i, channels, kernel, stride=stride, bias=bias)
            for i, (kernel, stride) in zip(inputs, self.layers, strict=True)
        )
        for conv in self.convs:
            nn.init.kaiming_normal_(conv.weight)  # type: ignore[arg-type]  # ModuleList forgets that these are Conv1d
            # Kept with the channels next to each other, as `_convolve` takes them: no copy in any forward pass.
            weight: Tensor = conv.weight  # type: ignore[assignment]
            conv.weight = nn.Parameter(channels_last(weight.detach()))
        count = 1 if norm == "group" else len(kernels)
        self.norms = nn.ModuleList(nn.LayerNorm(channels, eps=EPS) for _ in range(count))

    def output_lengths(self, lengths: Tensor) -> Tensor:
        """Valid frames for valid samples, both (B,) int64."""
        return conv_output_lengths(lengths, self.layers)

    def forward(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        """(B, S) -> (B, T, C); frames beyond `output_lengths(lengths)` hold arbitrary finite numbers."""
        scale, shift = self.first_norm(waveform, lengths) if self.norm == "group" else (None, None)
        dtype = self._parts[0][0].weight.dtype
        if waveform.device.type != "cpu" or torch.is_grad_enabled():
            return self._convolve(waveform.to(dtype), scale, shift)
        frames = self.output_lengths(lengths).tolist()
        result = waveform.new_zeros(len(frames), max(frames), self.channels, dtype=dtype)
        for row, count in enumerate(frames):
            first = self._first(*((None, None) if scale is None or shift is None else (scale[row], shift[row])))
            for start in range(0, count, BLOCK):
                stop = min(start + BLOCK, count)
                piece = waveform[row, None, start * self.hop : (stop - 1) * self.hop + self.receptive_field]
                result[row, start:stop] = self._convolve(piece, first=first)[0]
        return result

    def _first(self, scale: Tensor | None, shift: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of the first convolution, both float32, with the group norm of one utterance in them."""
        conv, _ = self._parts[0]
        weight, bias = conv.weight.float(), None if conv.bias is None else conv.bias.float()
        if scale is None or shift is None:
            return weight, bias
        return weight * scale[:, None, None], shift if bias is None else shift + scale * bias

    def first_norm(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and shift, both (B, C) float32, that the group norm comes to after the first convolution.

        Args:
            waveform: (B, S), 0 beyond `lengths`.
            lengths: valid samples, (B,) int64.
        """
        if self.known_norm is not None:
            scale, shift = self.known_norm
            return scale.expand(waveform.size(0), -1), shift.expand(waveform.size(0), -1)
        kernel, stride = self.layers[0]
        return self.norm_of_windows(*window_statistics(waveform, lengths, kernel=kernel, stride=stride))

    def norm_of_windows(self, mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
        """`first_norm` from the mean (B, K) and the covariance (B, K, K) of the windows, both float64."""
        conv, norm = self._parts[0]
        weight = conv.weight.squeeze(1).double()  # (C, K)
        means = mean @ weight.T  # (B, C)
        if conv.bias is not None:
            means = means + conv.bias.double()
        variances = torch.einsum("ck,bkl,cl->bc", weight, covariance, weight).clamp(min=0.0)
        scale = norm.weight.double() * torch.rsqrt(variances + EPS)
        return scale.float(), (norm.bias.double() - means * scale).float()

    @property
    def _parts(self) -> list[tuple[nn.Conv1d, nn.LayerNorm]]:
        """Each convolution and its norm; with a group norm the first one's stands for all."""
        norms = [self.norms[0]] * len(self.convs) if self.norm == "group" else self.norms
        return list(zip(self.convs, norms, strict=True))  # type: ignore[arg-type]  # ModuleList forgets its types

    def _convolve(
        self,
        waveform: Tensor,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
        *,
        first: tuple[Tensor, Tensor | None] | None = None,
    ) -> Tensor:
        """(B, S) -> (B, T, C), with the channels next to each other throughout, as norms and encoder need them.

        Args:
            waveform: (B, S).
            scale: of the group norm, (B, C), or None.
            shift: of the group norm, (B, C), or None.
            first: weight and bias to take in place of the first convolution's, in the type of `waveform`.
        """
        kernel, stride = self.layers[0]
        x = waveform.unfold(1, kernel, stride)  # (B, frames of this layer, K)
        for index, (conv, norm) in enumerate(self._parts):
            weight, bias = first if first is not None and index == 0 else (conv.weight, conv.bias)
            if index == 0 and scale is not None and shift is not None:
                x = _scaled(x, weight, bias, scale, shift)
            elif index == 0:  # with a single channel to hear, a plain product is the faster convolution
                x = F.linear(x, weight.squeeze(1), bias)  # (B, frames, C)
                x = x if first is None else x.to(conv.weight.dtype)
            else:
                x = conv_over_time(x, weight, bias, stride=conv.stride[0])
            if self.norm == "layer":
                x = norm(x)
            x = F.gelu(x)
        return x


def _scaled(windows: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor, shift: Tensor) -> Tensor:
    """The first convolution with its group norm in its weights, so that what it puts out is gone through but once.

    Args:
        windows: (B, frames, K).
        weight: (C, 1, K).
        bias: (C,).
        scale: (B, C).
        shift: (B, C).

    Returns:
        (B, frames, C).
    """
    weights = (weight.squeeze(1) * scale[:, :, None]).to(windows.dtype)  # (B, C, K)
    added = (shift if bias is None else shift + scale * bias).to(windows.dtype)
    return torch.baddbmm(added[:, None], windows, weights.transpose(1, 2))


def window_statistics(waveform: Tensor, lengths: Tensor, *, kernel: int, stride: int) -> tuple[Tensor, Tensor]:
    """Mean and covariance of a waveform's windows that lie within the valid samples.

    Args:
        waveform: (B, S), 0 beyond `lengths`.
        lengths: valid samples, (B,) int64.
        kernel: samples K of a window.
        stride: samples from one window to the next.

    Returns:
        (B, K) and (B, K, K), float64.
    """
    counts = conv_output_lengths(lengths, [(kernel, stride)])[:, None, None]  # (B, 1, 1)
    total = waveform.new_zeros(waveform.size(0), kernel, dtype=torch.float64)
    squares = waveform.new_zeros(waveform.size(0), kernel, kernel, dtype=torch.float64)
    first = 0
    for windows in torch.split(waveform.unfold(1, kernel, stride), PIECE, dim=1):  # (B, N, K): a view
        number = torch.arange(first, first + windows.size(1), device=waveform.device)[None, :, None]
        valid = torch.where(number < counts, windows.double(), 0.0)
        total = total + valid.sum(dim=1)
        squares = squares + valid.transpose(1, 2) @ valid
        first += windows.size(1)
    count = counts.clamp(min=1).double()
    mean = total / count[:, 0]
    return mean, squares / count - mean[:, :, None] * mean[:, None, :]
