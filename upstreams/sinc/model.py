"""Fixed sinc filters as an upstream.

B batch, S samples, T frames, C filters.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from speechssl.frontend.sinc import sinc_filters
from speechssl.upstream import Upstream
from upstreams.sinc.config import POOL, SincConfig

SAMPLE_RATE = 16_000
CHUNK = 80_000
"""Frames that are computed at a time: before pooling they take 9 C numbers each."""


class Sinc(Upstream):
    """The absolute output of each filter, pooled; one layer, no weights."""

    filters: Tensor

    def __init__(self, config: SincConfig) -> None:
        super().__init__(
            sample_rate=SAMPLE_RATE, frame_rate=SAMPLE_RATE / POOL, hidden_sizes=(config.conv_channels // POOL,)
        )
        self.name = self.family = "sinc"
        self.config: Any = config
        filters = sinc_filters(config.conv_channels, config.kernel, sample_rate=SAMPLE_RATE)
        self.register_buffer("filters", filters, persistent=False)

    @override
    def output_lengths(self, lengths: Tensor) -> Tensor:
        return lengths // POOL

    @override
    def compute(self, waveform: Tensor, lengths: Tensor, layers: frozenset[int]) -> dict[int, Tensor]:
        del lengths  # beyond them there is silence, as before the first sample
        reach = self.config.kernel // 2
        frames = waveform.size(1) // POOL
        padded = F.pad(waveform.to(self.filters.dtype), (reach, reach))[:, None]  # (B, 1, S + 2 reach)
        parts = []
        for start in range(0, frames, CHUNK):
            end = min(start + CHUNK, frames)
            response = F.conv1d(padded[:, :, POOL * start : POOL * end + 2 * reach], self.filters).abs()  # (B, C, 3 T)
            parts.append(F.max_pool2d(response[:, None], POOL)[:, 0].transpose(1, 2))  # (B, T, C/3)
        return dict.fromkeys(layers, torch.cat(parts, dim=1).float())

    @override
    def fingerprint_config(self) -> str:
        return repr(self.config)


def build(config: SincConfig) -> Sinc:
    """Makes the upstream; it has no weights."""
    return Sinc(config)
