"""Attention between the nodes of a graph, and its pooling, where utterances differ in how many nodes they have.

Nodes beyond those that an utterance has are 0, get no attention, and take no part in norms: batch = single.

B batch, N nodes (N_t of time, N_s of frequency), C width before, H width after.
Paper: Jung et al. 2022 (AASIST), sec. 2.2 and 3, arXiv:2110.01200; what it leaves open as in `clovaai/aasist`.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechssl.head.standardise import batch_norm

INPUT_DROPOUT, POOL_DROPOUT = 0.2, 0.3


class GraphAttention(nn.Module):
    """Each node takes from all, weighted by a score of their product, and from itself; batch norm, SELU."""

    def __init__(self, size: int, width: int, *, temperature: float) -> None:
        """
        Args:
            size: C.
            width: H.
            temperature: divides the scores.
        """
        super().__init__()
        self.temperature = temperature
        self.dropout = nn.Dropout(INPUT_DROPOUT)
        self.edge = nn.Linear(size, width)
        self.edge_weight = _weight(width)
        self.gathered = nn.Linear(size, width)
        self.own = nn.Linear(size, width)
        self.norm = nn.BatchNorm1d(width)

    def forward(self, nodes: Tensor, valid: Tensor) -> Tensor:
        """(B, N, C) and which of them count (B, N) bool -> (B, N, H), 0 where they don't."""
        nodes = self.dropout(nodes)
        scores = (_edges(self.edge, nodes) @ self.edge_weight).squeeze(3)  # (B, N, N)
        weights = _softmax(scores / self.temperature, valid[:, None])
        return F.selu(node_norm(self.norm, self.gathered(weights @ nodes) + self.own(nodes), valid))


class HeterogeneousAttention(nn.Module):
    """Attention among nodes of two kinds, scored by the kinds of both ends, and a master that hears all nodes."""

    def __init__(self, size: int, width: int, *, temperature: float) -> None:
        """
        Args:
            size: C.
            width: H.
            temperature: divides the scores.
        """
        super().__init__()
        self.temperature = temperature
        self.enter_temporal = nn.Linear(size, size)
        self.enter_spectral = nn.Linear(size, size)
        self.dropout = nn.Dropout(INPUT_DROPOUT)
        self.edge = nn.Linear(size, width)
        self.master_edge = nn.Linear(size, width)
        self.weight_temporal = _weight(width)
        self.weight_spectral = _weight(width)
        self.weight_across = _weight(width)
        self.weight_master = _weight(width)
        self.gathered = nn.Linear(size, width)
        self.own = nn.Linear(size, width)
        self.master_gathered = nn.Linear(size, width)
        self.master_own = nn.Linear(size, width)
        self.norm = nn.BatchNorm1d(width)

    def forward(
        self, temporal: Tensor, spectral: Tensor, master: Tensor, valid_temporal: Tensor, valid_spectral: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Passes messages once.

        Args:
            temporal: (B, N_t, C).
            spectral: (B, N_s, C).
            master: (B or 1, 1, C).
            valid_temporal: which nodes count, (B, N_t) bool.
            valid_spectral: (B, N_s) bool.

        Returns:
            (B, N_t, H), (B, N_s, H), 0 where they don't count, and the master (B, 1, H).
        """
        border = temporal.size(1)
        valid = torch.cat((valid_temporal, valid_spectral), dim=1)  # (B, N)
        nodes = self.dropout(torch.cat((self.enter_temporal(temporal), self.enter_spectral(spectral)), dim=1))
        edges = _edges(self.edge, nodes)  # (B, N, N, H)
        above, below = edges[:, :border], edges[:, border:]
        scores = torch.cat(
            (
                torch.cat((above[:, :, :border] @ self.weight_temporal, above[:, :, border:] @ self.weight_across), 2),
                torch.cat((below[:, :, :border] @ self.weight_across, below[:, :, border:] @ self.weight_spectral), 2),
            ),
            dim=1,
        ).squeeze(3)  # (B, N, N)
        weights = _softmax(scores / self.temperature, valid[:, None])
        heard = (torch.tanh(self.master_edge(nodes * master)) @ self.weight_master).squeeze(2)  # (B, N)
        share = _softmax(heard / self.temperature, valid)[:, None]  # (B, 1, N)
        master = self.master_gathered(share @ nodes) + self.master_own(master)
        nodes = F.selu(node_norm(self.norm, self.gathered(weights @ nodes) + self.own(nodes), valid))
        return nodes[:, :border], nodes[:, border:], master


class GraphPool(nn.Module):
    """Keeps a share of each utterance's nodes, those with the highest score first, and scales them by it."""

    def __init__(self, size: int, *, ratio: float) -> None:
        """
        Args:
            size: C.
            ratio: share that is kept, rounded down, one node at least.
        """
        super().__init__()
        self.ratio = ratio
        self.dropout = nn.Dropout(POOL_DROPOUT)
        self.score = nn.Linear(size, 1)

    def forward(self, nodes: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N, C) and which count (B, N) bool -> those kept (B, N', C), 0 where they don't count, and (B, N')."""
        scores = torch.sigmoid(self.score(self.dropout(nodes)))  # (B, N, 1)
        kept = (valid.sum(dim=1).double() * self.ratio).long().clamp(min=1)  # (B,)
        best = scores.squeeze(2).masked_fill(~valid, -1.0).topk(int(kept.max()), dim=1).indices  # (B, N')
        chosen = (nodes * scores).gather(1, best[:, :, None].expand(-1, -1, nodes.size(2)))
        valid = torch.arange(best.size(1), device=nodes.device)[None] < kept[:, None]
        return chosen * valid[:, :, None], valid


def _edges(layer: nn.Linear, nodes: Tensor) -> Tensor:
    """What is scored of each pair of nodes, (B, N, C) -> (B, N, N, H)."""
    return torch.tanh(layer(nodes[:, :, None] * nodes[:, None]))


def _softmax(scores: Tensor, valid: Tensor) -> Tensor:
    """Over the last dimension, of which only `valid` counts."""
    return scores.masked_fill(~valid, -torch.inf).softmax(dim=-1)


def node_norm(norm: nn.BatchNorm1d, nodes: Tensor, valid: Tensor) -> Tensor:
    """Batch norm over the nodes that count; 0 for the others."""
    return torch.zeros_like(nodes).masked_scatter(valid[:, :, None], batch_norm(norm, nodes[valid]).to(nodes.dtype))


def _weight(width: int) -> nn.Parameter:
    weight = nn.Parameter(torch.empty(width, 1))
    nn.init.xavier_normal_(weight)
    return weight
