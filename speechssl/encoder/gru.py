"""Recurrent layers that hear the past alone.

B batch, T frames, C channels of the input, D width, L layers.
"""

from collections.abc import Iterable

from torch import Tensor, nn


class GruBlock(nn.Module):
    """A gated recurrent unit, dropout, and a residual where the widths allow it.

    Paper: Cho et al. 2014, arXiv:1406.1078.
    """

    def __init__(self, inputs: int, width: int, *, dropout: float, residual: bool) -> None:
        super().__init__()
        self.residual = residual
        self.gru = nn.GRU(inputs, width, batch_first=True)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, D)."""
        y = self.dropout(self.gru(x)[0])
        return x + y if self.residual else y  # type: ignore[no-any-return]  # nn.Module returns Any


class GruEncoder(nn.Module):
    """Recurrent layers, each but the first with a residual; padding at the end reaches no valid frame."""

    def __init__(self, inputs: int, width: int, *, depth: int, dropout: float, residual: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            GruBlock(width if index else inputs, width, dropout=dropout, residual=residual and index > 0)
            for index in range(depth)
        )

    def forward(self, features: Tensor, *, layers: Iterable[int]) -> dict[int, Tensor]:
        """(B, T, C) -> layer -> (B, T, D), layer 0 the input; nothing above the highest of `layers` is computed."""
        wanted = frozenset(layers)
        states, x = {0: features}, features
        for index, block in enumerate(self.blocks[: max(wanted)]):
            x = block(x)
            states[index + 1] = x
        return {layer: states[layer] for layer in wanted}
