"""Scalable AASIST: AASIST behind a frozen model, with standard multi-head attention and a fusion that is learned.

What is scored by hand in AASIST is scaled dot-product attention of four heads; nodes of frequency and of time have
queries and keys of their own where both are in one graph; what the two branches found is not the larger of both, but
attends to each other. Frames beyond an utterance become no nodes: batch = single.

B batch, T frames, F bands, N nodes, C width before, H width after.
Paper: "Towards Scalable AASIST: refining graph attention for speech deepfake detection" 2025, arXiv:2507.11777; sizes
and order as `KORALLLL/AASIST_SCALING`, whose temperatures are set but never read.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from downstreams.deepfake_detection.backends.aasist import (
    POOL,
    WAY_DROPOUT,
    AttentiveReader,
    pool_bands,
    residual_blocks,
)
from downstreams.deepfake_detection.backends.config import ScalableAasistConfig
from downstreams.deepfake_detection.backends.graph import INPUT_DROPOUT, GraphPool, node_norm
from downstreams.deepfake_detection.backends.norm import inside_maps, map_norm
from downstreams.deepfake_detection.backends.window import fit_frames
from downstreams.deepfake_detection.head import Detector
from speechssl.lengths import lengths_to_padding_mask


class ScalableAasist(Detector):
    """Features to logits."""

    def __init__(self, size: int, *, config: ScalableAasistConfig, window: int | None = None) -> None:
        """
        Args:
            size: D of the features.
            window: frames that utterances are cut or repeated to; None = as they are.
        """
        super().__init__()
        self.window = window
        channels, (width, stacked), heads = config.channels[1], config.widths, config.heads
        of_spectral, of_temporal, of_both = config.ratios
        self.project = nn.Linear(size, config.projected)
        self.first_norm = nn.BatchNorm1d(1)
        self.blocks = residual_blocks(config.channels, pools=False, official=False, activation=F.gelu)
        self.reader = AttentiveReader(channels, F.gelu)
        self.positions = nn.Parameter(torch.randn(1, config.projected // POOL, channels))
        self.spectral = MultiHeadGraph(channels, width, heads=heads)
        self.temporal = MultiHeadGraph(channels, width, heads=heads)
        self.pool_spectral = GraphPool(width, ratio=of_spectral)
        self.pool_temporal = GraphPool(width, ratio=of_temporal)
        self.branches = nn.ModuleList(_Branch(width, stacked, ratio=of_both, heads=heads) for _ in range(2))
        self.fusions = nn.ModuleList(Fusion(stacked, heads=heads) for _ in range(3))
        self.dropout = nn.Dropout(config.dropout)
        self.output = nn.Linear(5 * stacked, 2)

    @override
    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        features, lengths = fit_frames(features, lengths, least=POOL, window=self.window)
        states, lengths = pool_bands(self.project(features), lengths)
        maps = states.transpose(1, 2)[:, None]  # (B, 1, F, T/3)
        maps = F.gelu(map_norm(self.first_norm, maps, inside_maps(lengths, maps)))
        for block in self.blocks:
            maps, lengths = block(maps, lengths)
        spectral, temporal = (nodes.transpose(1, 2) for nodes in self.reader(maps, lengths))  # (B, F, C), (B, T, C)
        everywhere = torch.ones(spectral.shape[:2], dtype=torch.bool, device=spectral.device)
        valid = ~lengths_to_padding_mask(lengths, temporal.size(1))
        spectral, of_spectral = self.pool_spectral(self.spectral(spectral + self.positions, everywhere), everywhere)
        temporal, of_temporal = self.pool_temporal(self.temporal(temporal, valid), valid)
        found = [branch(temporal, spectral, of_temporal, of_spectral) for branch in self.branches]
        temporal, spectral, master = (
            fuse(found[0][part], found[1][part], found[0][3 + part]) for part, fuse in enumerate(self.fusions)
        )
        counts = 2 * found[0][3].sum(dim=1, keepdim=True)  # (B, 1)
        pooled = (
            temporal.abs().amax(dim=1),  # 0 where nodes don't count
            temporal.sum(dim=1) / counts,
            spectral.abs().amax(dim=1),
            spectral.mean(dim=1),
            master.mean(dim=1),
        )
        return self.output(self.dropout(torch.cat(pooled, dim=1)))  # type: ignore[no-any-return]


class MultiHeadGraph(nn.Module):
    """Each node takes from all by multi-head attention, and from itself; batch norm, GELU."""

    def __init__(self, size: int, width: int, *, heads: int) -> None:
        super().__init__()
        self.dropout = nn.Dropout(INPUT_DROPOUT)
        self.attention = nn.MultiheadAttention(size, heads, dropout=INPUT_DROPOUT, batch_first=True)
        self.gathered = nn.Linear(size, width)
        self.own = nn.Linear(size, width)
        self.norm = nn.BatchNorm1d(width)

    def forward(self, nodes: Tensor, valid: Tensor) -> Tensor:
        """(B, N, C) and which of them count (B, N) bool -> (B, N, H), 0 where they don't."""
        nodes = self.dropout(nodes)
        found = _attend(self.attention, nodes, nodes, valid)
        return F.gelu(node_norm(self.norm, self.gathered(found) + self.own(nodes), valid))


class HeterogeneousHeads(nn.Module):
    """One graph of nodes of two kinds, each with queries and keys of its own, and a master that hears all nodes."""

    def __init__(self, size: int, width: int, *, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.enter_temporal = nn.Linear(size, size)
        self.enter_spectral = nn.Linear(size, size)
        self.dropout = nn.Dropout(INPUT_DROPOUT)
        self.query_temporal, self.query_spectral = nn.Linear(size, size), nn.Linear(size, size)
        self.key_temporal, self.key_spectral = nn.Linear(size, size), nn.Linear(size, size)
        self.value = nn.Linear(size, size)
        self.leave = nn.Linear(size, size)
        self.leave_dropout = nn.Dropout(INPUT_DROPOUT)
        self.gathered = nn.Linear(size, width)
        self.own = nn.Linear(size, width)
        self.master_attention = nn.MultiheadAttention(size, heads, dropout=INPUT_DROPOUT, batch_first=True)
        self.master_gathered = nn.Linear(size, width)
        self.master_own = nn.Linear(size, width)
        self.norm = nn.BatchNorm1d(width)

    def forward(
        self, temporal: Tensor, spectral: Tensor, master: Tensor, valid_temporal: Tensor, valid_spectral: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As `graph.HeterogeneousAttention`, the master (B, 1, C)."""
        border = temporal.size(1)
        valid = torch.cat((valid_temporal, valid_spectral), dim=1)  # (B, N)
        temporal, spectral = self.dropout(
            torch.cat((self.enter_temporal(temporal), self.enter_spectral(spectral)), dim=1)
        ).split((border, spectral.size(1)), dim=1)
        nodes = torch.cat((temporal, spectral), dim=1)  # (B, N, C)
        heard = _attend(self.master_attention, master, nodes, valid)
        master = self.master_gathered(heard) + self.master_own(master)
        query = torch.cat((self.query_temporal(temporal), self.query_spectral(spectral)), dim=1)
        key = torch.cat((self.key_temporal(temporal), self.key_spectral(spectral)), dim=1)
        query, key, value = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in (query, key, self.value(nodes))
        )
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=valid[:, None, None])
        found = self.leave_dropout(self.leave(found.transpose(1, 2).flatten(2)))
        nodes = F.gelu(node_norm(self.norm, self.gathered(found) + self.own(nodes), valid))
        return nodes[:, :border], nodes[:, border:], master


class _Branch(nn.Module):
    """Two layers of attention over both graphs with a pooling between them; the second adds to the first."""

    def __init__(self, width: int, stacked: int, *, ratio: float, heads: int) -> None:
        super().__init__()
        self.master = nn.Parameter(torch.randn(1, 1, width))
        self.first = HeterogeneousHeads(width, stacked, heads=heads)
        self.pool_spectral = GraphPool(stacked, ratio=ratio)
        self.pool_temporal = GraphPool(stacked, ratio=ratio)
        self.second = HeterogeneousHeads(stacked, stacked, heads=heads)
        self.dropout = nn.Dropout(WAY_DROPOUT)

    def forward(self, temporal: Tensor, spectral: Tensor, of_temporal: Tensor, of_spectral: Tensor) -> list[Tensor]:
        """Nodes and which of them count -> nodes of time, of frequency, the master, and which of each count."""
        master = self.master.expand(len(temporal), -1, -1)
        temporal, spectral, master = self.first(temporal, spectral, master, of_temporal, of_spectral)
        spectral, of_spectral = self.pool_spectral(spectral, of_spectral)
        temporal, of_temporal = self.pool_temporal(temporal, of_temporal)
        added = self.second(temporal, spectral, master, of_temporal, of_spectral)
        found = [self.dropout(a + b) for a, b in zip((temporal, spectral, master), added, strict=True)]
        always = torch.ones_like(of_temporal[:, :1])
        return [*found, of_temporal, of_spectral, always]


class Fusion(nn.Module):
    """What two branches found of the same kind side by side: self-attention over both, added to them, layer norm."""

    def __init__(self, width: int, *, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, dropout=WAY_DROPOUT, batch_first=True)
        self.norm = nn.LayerNorm(width)

    def forward(self, one: Tensor, other: Tensor, valid: Tensor) -> Tensor:
        """Twice (B, N, H), of which the same nodes count (B, N) bool -> (B, 2 N, H), 0 where they don't."""
        nodes = torch.cat((one, other), dim=1)
        valid = torch.cat((valid, valid), dim=1)
        fused: Tensor = self.norm(nodes + _attend(self.attention, nodes, nodes, valid))
        return fused.masked_fill(~valid[:, :, None], 0.0)


def _attend(attention: nn.MultiheadAttention, query: Tensor, nodes: Tensor, valid: Tensor) -> Tensor:
    """(B, M, C), (B, N, C) of which (B, N) count -> (B, M, C)."""
    found: Tensor = attention(query, nodes, nodes, key_padding_mask=~valid, need_weights=False)[0]
    return found
