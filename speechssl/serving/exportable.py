"""Upstreams as programs of tensors alone, which exporters can follow for any batch size and length.

What makes the normal path fast (pieces that stay in a cache, utterances one by one, as many frames as the longest has)
decides by the numbers in `lengths`, and a traced program would keep the decisions of its example. Here each of those
parts gives the same numbers by masks.
B batch, S samples, T frames, C channels, D width, H heads.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.conv_context.model import ConvContextUpstream
from speechssl.encoder.alibi import LinearBias
from speechssl.encoder.attention import SelfAttention
from speechssl.encoder.positional import ConvPositionalEmbedding
from speechssl.encoder.relative_attention import RelativeAttention
from speechssl.encoder.relative_bias import PositionGate, RelativePositionBias
from speechssl.frontend.conv_waveform import EPS, ConvWaveform
from speechssl.frontend.log_mel import FLOOR, PREEMPHASIS, LogMel, normalize_frames
from speechssl.frontend.stacked_log_mel import StackedLogMel
from speechssl.lengths import conv_output_lengths
from speechssl.upstream import Upstream, normalize_waveform

SKELETON = ("frontend", "feature_norm", "projection", "encoder")
"""The parts that an upstream must have for its forward pass to be written out here; others run their own `compute`."""


class Exportable(nn.Module):
    """Waveforms and lengths in, the chosen hidden states and the valid frames out; shares its weights.

    Attributes:
        layers: the hidden states that come out, in this order.
    """

    def __init__(self, upstream: Upstream, layers: Sequence[int] | None = None) -> None:
        """
        Args:
            upstream: in evaluation mode; it stays as it is.
            layers: which of the L+1 hidden states (negative counts from the end); None = all.
        """
        super().__init__()
        self.layers = tuple(sorted(upstream.resolve_layers(layers)))
        self.upstream = sharing_copy(upstream).eval()
        for module in self.upstream.modules():
            for kind, replacement in REPLACEMENTS.items():
                if isinstance(module, kind) and not hasattr(module, "parametrizations"):
                    module.__class__ = replacement  # of the copy

    def forward(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        """Extracts.

        Args:
            waveform: (B, S) float32.
            lengths: valid samples, (B,) int64, each of at least one frame.

        Returns:
            For each of `layers` (B, T, D), 0 beyond the valid frames, with the T of S samples; then the valid frames,
            (B,) int64.
        """
        upstream = self.upstream
        inside = torch.arange(waveform.size(1), device=waveform.device)[None, :] < lengths[:, None]  # (B, S)
        waveform = torch.where(inside, waveform, 0.0)
        if upstream.normalize:
            waveform = normalize_waveform(waveform, lengths)
        frames = upstream.output_lengths(lengths)
        states = self._states(waveform, lengths, frames)
        ready = (torch.where(_inside(frames, states[k])[:, :, None], states[k], 0.0) for k in self.layers)
        return (*ready, frames)

    def _states(self, waveform: Tensor, lengths: Tensor, frames: Tensor) -> dict[int, Tensor]:
        """What the upstream's `compute` gives, for all frames of S samples."""
        upstream: Any = self.upstream  # its parts are the family's own
        wanted = frozenset(self.layers)
        found: dict[int, Tensor]
        if all(hasattr(upstream, part) for part in SKELETON):
            features = upstream.frontend(waveform, lengths).to(upstream.projection.weight.dtype)
            x = upstream.projection(upstream.feature_norm(features))
            found = upstream.encoder(x, ~_inside(frames, x), layers=wanted)
        elif isinstance(upstream, ConvContextUpstream):
            heard = upstream.represent(upstream.frontend(waveform, lengths), frames)  # (B, C, T)
            found = upstream.encoder(heard, frames, layers=wanted)
        else:
            found = upstream.compute(waveform, lengths, wanted)
        return found


def sharing_copy(upstream: Upstream) -> Upstream:
    """A copy whose modules can be changed, with the same weights."""
    tensors = [*upstream.parameters(), *upstream.buffers()]
    return copy.deepcopy(upstream, {id(tensor): tensor for tensor in tensors})


def _inside(frames: Tensor, x: Tensor) -> Tensor:
    """Which frames of `x` (B, T, ...) are valid, (B, T) bool."""
    return torch.arange(x.size(1), device=x.device)[None, :] < frames[:, None]


class _Linear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        """Without a choice of kernels; torch.export can only follow products of contiguous tensors for a batch of 1."""
        return F.linear(x.contiguous(), self.weight, self.bias)


class _ConvWaveform(ConvWaveform):
    def forward(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        """(B, S) -> (B, T, C), with the group norm's statistics from what the first convolution puts out."""
        x = waveform[:, None, :].to(self.convs[0].weight.dtype)  # type: ignore[arg-type]  # ModuleList forgets its types
        for index, conv in enumerate(self.convs):
            x = conv(x)  # (B, C, frames of this layer)
            if self.norm == "layer":
                x = self.norms[index](x.transpose(1, 2)).transpose(1, 2)
            elif index == 0:
                x = self._group_norm(x, conv_output_lengths(lengths, self.layers[:1]))
            x = F.gelu(x)
        return x.transpose(1, 2).contiguous()

    def _group_norm(self, x: Tensor, frames: Tensor) -> Tensor:
        """(B, C, T) -> (B, C, T), each channel over its valid frames."""
        valid = _inside(frames, x.transpose(1, 2))[:, None, :]  # (B, 1, T)
        count = frames.clamp(min=1)[:, None, None].to(x.dtype)
        mean = torch.where(valid, x, 0.0).sum(dim=2, keepdim=True) / count
        centred = x - mean
        variance = torch.where(valid, centred, 0.0).square().sum(dim=2, keepdim=True) / count
        norm: nn.LayerNorm = self.norms[0]  # type: ignore[assignment]  # ModuleList forgets its types
        return centred * torch.rsqrt(variance + EPS) * norm.weight[:, None] + norm.bias[:, None]


class _LogMel(LogMel):
    def forward(self, waveform: Tensor) -> Tensor:
        """(B, S) -> (B, T, M), with the Fourier transform as a product, since exporters have no other."""
        options = self.options
        frames = (waveform.size(1) - options.window) // options.hop + 1
        first = torch.arange(frames, device=waveform.device)[:, None] * options.hop  # (T, 1)
        windows = waveform[:, first + torch.arange(options.window, device=waveform.device)].double()  # (B, T, window)
        spectrum = windows @ self._transform().to(waveform.device)  # (B, T, 2 (fft_size / 2 + 1))
        real, imaginary = spectrum.chunk(2, dim=2)
        energy = (real.square() + imaginary.square()) @ self.filters.double()  # (B, T, M)
        return energy.float().clamp(min=FLOOR).log()

    def _transform(self) -> Tensor:
        """All that happens to the samples of a frame up to its spectrum: a matrix (window, 2 (fft_size / 2 + 1))."""
        size = self.options.window
        one = torch.eye(size, dtype=torch.float64)
        centred = one - 1.0 / size
        previous = torch.cat((centred[:, :1], centred[:, :-1]), dim=1)
        heard = (centred - PREEMPHASIS * previous) * self.window.double().cpu()  # (window, window)
        spectrum = torch.fft.rfft(heard, n=self.fft_size)
        return torch.cat((spectrum.real, spectrum.imag), dim=1)


class _StackedLogMel(StackedLogMel):
    def forward(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        """(B, S) -> (B, T, stack M), by indices and with one division: torch.export can't reason about two."""
        features = normalize_frames(self.log_mel(waveform), self.log_mel.output_lengths(lengths))  # (B, stack T, M)
        options = self.log_mel.options
        rest = waveform.size(1) - options.window - (self.stack - 1) * options.hop
        first = torch.arange(rest // self.hop + 1, device=features.device) * self.stack  # (T,)
        return torch.cat([features[:, first + offset] for offset in range(self.stack)], dim=2)


class _ConvPositionalEmbedding(ConvPositionalEmbedding):
    def forward(self, x: Tensor, padding_mask: Tensor | None = None) -> Tensor:  # noqa: ARG002  # as the original
        """(B, T, D) -> (B, T, D), without keeping the normalised weight from one call to the next."""
        y = self.conv(x.transpose(1, 2))[:, :, : x.size(1)]
        return F.gelu(y).transpose(1, 2)


class _SelfAttention(SelfAttention):
    def forward(self, x: Tensor, attended: Tensor | None, positions: Tensor | None = None) -> Tensor:
        """As plain products over the whole batch; `positions` has its keys in the order of frames."""
        B, T, D = x.shape
        qkv = self.qkv(x).view(B, T, 3, self.heads, D // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, H, T, D/H)
        scores = query @ key.transpose(2, 3) * (D // self.heads) ** -0.5  # (B, H, T, T)
        if positions is not None:
            scores = scores + (positions if self.gate is None else self.gate(x) * positions)
        if attended is not None:
            scores = scores.masked_fill(~attended, -torch.inf)
        y = scores.softmax(dim=3) @ value
        return self.output(y.transpose(1, 2).reshape(B, T, D))  # type: ignore[no-any-return]  # nn.Module returns Any


class _PositionGate(PositionGate):
    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, H, T, 1), with one product for all heads: torch.export can't follow one over four axes."""
        B, T, D = x.shape
        diagonal = torch.eye(self.heads, device=x.device)[:, None, :, None] * self.projection.weight[:, None, :]
        weight = diagonal.reshape(8 * self.heads, D)
        logits = F.linear(x.contiguous(), weight, self.projection.bias.repeat(self.heads)).view(B, T, self.heads, 2, 4)
        update, reset = logits.sum(dim=4).sigmoid().transpose(1, 2).chunk(2, dim=3)  # each (B, H, T, 1)
        return update * (reset * self.scale - 1.0) + 2.0  # type: ignore[no-any-return]  # nn.Module returns Any


class _RelativePositionBias(RelativePositionBias):
    def forward(self, frames: int) -> Tensor:
        """(H, T, T), with the keys in the order of frames."""
        distances = _distances(frames, self.buckets).clamp(-self.max_distance, self.max_distance)
        return self.bias(self.buckets[distances + self.max_distance]).permute(2, 0, 1)  # type: ignore[no-any-return]


class _LinearBias(LinearBias):
    def forward(self, frames: int) -> Tensor:
        """(H, T, T), with the keys in the order of frames."""
        steepness = self.slopes.float() * self.scale.float().clamp(min=0.0)  # (H,)
        bias = -steepness[:, None, None] * _distances(frames, self.slopes).abs().float()
        return bias.to(self.scale.dtype)


class _RelativeAttention(RelativeAttention):
    def _sinusoid_scores(self, query: Tensor, table: Tensor) -> Tensor:
        """(B, H, T, T), each row of the scores picked by its index instead of by strides."""
        B, H, T, width = query.shape
        projected = self.position(table).view(2 * T - 1, H, width).permute(1, 2, 0)  # (H, D/H, 2T-1)
        scores = (query + self.position_bias[:, None, :]) @ projected  # (B, H, T, 2T-1)
        column = _distances(T, query) + (T - 1)  # (T, T): s - t + T - 1
        return scores.gather(3, column.expand(B, H, T, T)) * width**-0.5  # type: ignore[no-any-return]  # nn.Module


def _distances(frames: int, like: Tensor) -> Tensor:
    """Key minus query, (T, T) int64."""
    frame = torch.arange(frames, device=like.device)
    return frame[None, :] - frame[:, None]


REPLACEMENTS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: _Linear,
    ConvWaveform: _ConvWaveform,
    LogMel: _LogMel,
    StackedLogMel: _StackedLogMel,
    ConvPositionalEmbedding: _ConvPositionalEmbedding,
    SelfAttention: _SelfAttention,
    PositionGate: _PositionGate,
    RelativePositionBias: _RelativePositionBias,
    LinearBias: _LinearBias,
    RelativeAttention: _RelativeAttention,
}
"""What a part of an upstream becomes; nothing but its forward pass differs."""
