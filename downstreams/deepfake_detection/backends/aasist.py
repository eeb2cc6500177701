"""AASIST: graphs of frequency and of time, drawn from a residual network, that are stacked and pooled together.

Utterances may differ in length: frames beyond it are 0 before every convolution, as what torch pads with, get no
attention, become no nodes, and take no part in norms. Batch = single.

B batch, S samples, T frames, F bands, C channels, H width of the nodes.
Papers: Jung et al. 2022, arXiv:2110.01200 (code: `clovaai/aasist`); Tak et al. 2022, arXiv:2202.12233, sec. 3, for the
form behind a pre-trained model (code: `TakHemlata/SSL_Anti-spoofing`).
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from downstreams.deepfake_detection.backends.config import AasistConfig
from downstreams.deepfake_detection.backends.graph import GraphAttention, GraphPool, HeterogeneousAttention
from downstreams.deepfake_detection.backends.norm import inside_maps, map_norm
from downstreams.deepfake_detection.backends.window import fit_frames
from downstreams.deepfake_detection.head import Detector
from speechssl.errors import AudioError
from speechssl.frontend.sinc import sinc_filters
from speechssl.lengths import lengths_to_padding_mask

BLOCKS = 6
POOL = 3
WAY_DROPOUT = 0.2
SINC_CHANNELS, SINC_KERNEL, SINC_RATE = 70, 129, 16_000
Activation = Callable[[Tensor], Tensor]


class Aasist(Detector):
    """Features to logits; with `front='sinc'` all of AASIST but the filters, which are fixed."""

    def __init__(self, size: int, *, config: AasistConfig, window: int | None = None) -> None:
        """
        Args:
            size: D of the features.
            window: frames that utterances are cut or repeated to; None = as they are.
        """
        super().__init__()
        self.window = window
        sinc = config.front == "sinc"
        high = config.channels[1]
        self.project = None if sinc else nn.Linear(size, config.projected)
        self.first_norm = nn.BatchNorm1d(1)
        self.blocks = residual_blocks(config.channels, pools=sinc, official=config.official)
        self.reader = None if sinc else AttentiveReader(high)
        self.graphs = _Graphs(high, size if sinc else config.projected // POOL, config)

    @property
    def least(self) -> int:
        """Frames of which one node of time is left."""
        return POOL**BLOCKS if self.project is None else POOL

    @override
    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        features, lengths = fit_frames(features, lengths, least=self.least, window=self.window)
        states = features
        if self.project is not None:
            states, lengths = pool_bands(self.project(states), lengths)
        maps = states.transpose(1, 2)[:, None]  # (B, 1, F, T)
        maps = F.selu(map_norm(self.first_norm, maps, inside_maps(lengths, maps)))
        for block in self.blocks:
            maps, lengths = block(maps, lengths)
        if self.reader is not None:
            spectral, temporal = self.reader(maps, lengths)
        else:
            spectral, temporal = maps.abs().amax(dim=3), maps.abs().amax(dim=2)  # (B, C, F), (B, C, T)
        return self.graphs(spectral.transpose(1, 2), temporal.transpose(1, 2), lengths)  # type: ignore[no-any-return]


class RawAasist(nn.Module):
    """The published AASIST: waveforms to logits of spoofed (0) and bona fide (1)."""

    filters: Tensor

    def __init__(self, config: AasistConfig, *, channels: int = SINC_CHANNELS) -> None:
        """
        Args:
            config: with `front='sinc'`.
            channels: sinc filters.
        """
        super().__init__()
        self.register_buffer("filters", sinc_filters(channels, SINC_KERNEL, sample_rate=SINC_RATE), persistent=False)
        self.detector = Aasist(channels // POOL, config=config)

    def forward(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        """(B, S) at 16 kHz and valid samples (B,) -> (B, 2).

        Raises:
            AudioError: an utterance is shorter than one pooled frame.
        """
        frames = (lengths - SINC_KERNEL + 1) // POOL
        if int(frames.min()) < 1:
            raise AudioError(
                f"AASIST needs {SINC_KERNEL + POOL - 1} samples at least, but an utterance has {int(lengths.min())}: "
                "leave it out or repeat it."
            )
        bands = F.conv1d(waveform[:, None], self.filters).abs()[:, None]  # (B, 1, C, T)
        bands = F.max_pool2d(bands, POOL)[:, 0]  # (B, C/3, T/3)
        bands = bands.masked_fill(lengths_to_padding_mask(frames, bands.size(2))[:, None], 0.0)
        return self.detector(bands.transpose(1, 2), frames)  # type: ignore[no-any-return]  # nn.Module returns Any


def pool_bands(states: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """The largest of 3 bands x 3 frames: (B, T, F) and valid frames (B,) -> (B, T/3, F/3) and theirs."""
    states = F.max_pool1d(states, POOL)  # (B, T, F/3)
    states = F.max_pool1d(states.transpose(1, 2), POOL).transpose(1, 2)  # windows that padding is in are not valid
    return states, lengths // POOL


def residual_blocks(
    channels: tuple[int, int], *, pools: bool, official: bool, activation: Activation = F.selu
) -> nn.ModuleList:
    """The six blocks: two of the first number of channels, four of the second."""
    low, high = channels
    return nn.ModuleList(
        _ResidualBlock(before, after, first=number == 0, pools=pools, official=official, activation=activation)
        for number, (before, after) in enumerate([(1, low), (low, low), (low, high), *[(high, high)] * 3])
    )


class _ResidualBlock(nn.Module):
    """Two convolutions of 2 bands x 3 frames, added to the input; pooled over three frames if asked for."""

    def __init__(
        self, size: int, channels: int, *, first: bool, pools: bool, official: bool, activation: Activation
    ) -> None:
        super().__init__()
        self.activation = activation
        self.pools = pools
        self.official = official
        self.norm1 = None if first else nn.BatchNorm1d(size)
        self.conv1 = nn.Conv2d(size, channels, (2, 3), padding=(1, 1))
        self.norm2 = nn.BatchNorm1d(channels)
        self.conv2 = nn.Conv2d(channels, channels, (2, 3), padding=(0, 1))
        self.shortcut = nn.Conv2d(size, channels, (1, 3), padding=(0, 1)) if size != channels else None

    def forward(self, maps: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, F, T), 0 beyond the valid frames (B,) -> the same with fewer frames."""
        inside = inside_maps(lengths, maps)
        found = maps
        # The published code computes this, too, but convolves the input itself: its weights expect that.
        if self.norm1 is not None and not self.official:
            found = self.activation(map_norm(self.norm1, found, inside))
        found = self.conv2(self.activation(map_norm(self.norm2, self.conv1(found), inside)))
        maps = (found + (maps if self.shortcut is None else self.shortcut(maps))) * inside
        if not self.pools:
            return maps, lengths
        lengths = lengths // POOL
        maps = F.max_pool2d(maps, (1, POOL))
        return maps * inside_maps(lengths, maps), lengths


class AttentiveReader(nn.Module):
    """Each channel's attentive sum over time, one node a band, and over bands, one node a frame (SSL-AASIST)."""

    def __init__(self, channels: int, activation: Activation = F.selu) -> None:
        super().__init__()
        self.activation = activation
        self.norm = nn.BatchNorm1d(channels)
        self.enter = nn.Conv2d(channels, 2 * channels, 1)
        self.hidden_norm = nn.BatchNorm1d(2 * channels)
        self.leave = nn.Conv2d(2 * channels, channels, 1)

    def forward(self, maps: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, F, T) -> (B, C, F) and (B, C, T)."""
        inside = inside_maps(lengths, maps)
        maps = self.activation(map_norm(self.norm, maps, inside))
        scores = self.leave(map_norm(self.hidden_norm, self.activation(self.enter(maps)), inside))
        over_time = scores.masked_fill(~inside, -torch.inf).softmax(dim=3)
        return (maps * over_time).sum(dim=3), (maps * scores.softmax(dim=2)).sum(dim=2)


class _Graphs(nn.Module):
    """From nodes of frequency and of time to logits."""

    def __init__(self, channels: int, bands: int, config: AasistConfig) -> None:
        super().__init__()
        width, stacked = config.widths
        of_spectral, of_temporal, of_both, last = config.ratios
        ratios = (of_both, of_both if config.official else last)
        self.positions = nn.Parameter(torch.randn(1, bands, channels))
        self.spectral = GraphAttention(channels, width, temperature=config.temperatures[0])
        self.temporal = GraphAttention(channels, width, temperature=config.temperatures[1])
        self.pool_spectral = GraphPool(width, ratio=of_spectral)
        self.pool_temporal = GraphPool(width, ratio=of_temporal)
        self.branches = nn.ModuleList(
            _Branch(width, stacked, ratios=ratios, temperature=config.temperatures[2]) for _ in range(2)
        )
        self.dropout = nn.Dropout(config.dropout)
        self.output = nn.Linear(5 * stacked, 2)

    def forward(self, spectral: Tensor, temporal: Tensor, lengths: Tensor) -> Tensor:
        """(B, F, C), (B, T, C), valid nodes of time (B,) -> (B, 2)."""
        everywhere = torch.ones(spectral.shape[:2], dtype=torch.bool, device=spectral.device)
        valid = ~lengths_to_padding_mask(lengths, temporal.size(1))
        spectral, of_spectral = self.pool_spectral(self.spectral(spectral + self.positions, everywhere), everywhere)
        temporal, of_temporal = self.pool_temporal(self.temporal(temporal, valid), valid)
        found = [branch(temporal, spectral, of_temporal, of_spectral) for branch in self.branches]
        of_temporal = found[0][3]  # the same in both
        # Nodes meet by their rank in each branch, not by where they come from: as published.
        temporal, spectral, master = (torch.maximum(found[0][part], found[1][part]) for part in range(3))
        pooled = (
            temporal.abs().amax(dim=1),  # 0 where nodes don't count
            temporal.sum(dim=1) / of_temporal.sum(dim=1, keepdim=True),
            spectral.abs().amax(dim=1),
            spectral.mean(dim=1),
            master.squeeze(1),
        )
        return self.output(self.dropout(torch.cat(pooled, dim=1)))  # type: ignore[no-any-return]


class _Branch(nn.Module):
    """Two layers of attention over both graphs with a pooling between them; the second adds to the first."""

    def __init__(self, width: int, stacked: int, *, ratios: tuple[float, float], temperature: float) -> None:
        super().__init__()
        self.master = nn.Parameter(torch.randn(1, 1, width))
        self.first = HeterogeneousAttention(width, stacked, temperature=temperature)
        self.pool_spectral = GraphPool(stacked, ratio=ratios[0])
        self.pool_temporal = GraphPool(stacked, ratio=ratios[1])
        self.second = HeterogeneousAttention(stacked, stacked, temperature=temperature)
        self.dropout = nn.Dropout(WAY_DROPOUT)

    def forward(
        self, temporal: Tensor, spectral: Tensor, of_temporal: Tensor, of_spectral: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Nodes and which of them count -> nodes of time, of frequency, the master, and which nodes of time count."""
        temporal, spectral, master = self.first(temporal, spectral, self.master, of_temporal, of_spectral)
        spectral, of_spectral = self.pool_spectral(spectral, of_spectral)
        temporal, of_temporal = self.pool_temporal(temporal, of_temporal)
        added = self.second(temporal, spectral, master, of_temporal, of_spectral)
        states = (part + more for part, more in zip((temporal, spectral, master), added, strict=True))
        temporal, spectral, master = (self.dropout(part) for part in states)
        return temporal, spectral, master, of_temporal
