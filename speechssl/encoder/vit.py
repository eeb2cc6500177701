"""The vision transformer, and audio in windows of the length that its positions are learned for.

Conventions: hidden state 0 enters the first block, hidden state L leaves the last, after the closing norm.
B batch, N windows, T frames or columns, K of them in a window, D width, L blocks.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.encoder.transformer import EncoderConfig, TransformerBlock


@dataclass(frozen=True)
class VitConfig:
    """Shape of a vision transformer; the defaults are those of ViT-B."""

    width: int = 768
    depth: int = 12
    heads: int = 12
    ffn_width: int = 3072
    norm_eps: float = 1e-6
    closing_norm: bool = True
    """Whether the last hidden state goes through a layer norm."""


class VisionTransformer(nn.Module):
    """Transformer blocks with the norm before, over tokens that know their places already.

    Paper: Dosovitskiy et al. 2021, sec. 3.1, arXiv:2010.11929.
    """

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        block = EncoderConfig(
            width=config.width,
            depth=config.depth,
            heads=config.heads,
            ffn_width=config.ffn_width,
            pre_norm=True,
            dropout=0.0,
            attention_dropout=0.0,
        )
        self.blocks = nn.ModuleList(TransformerBlock(block) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width) if config.closing_norm else nn.Identity()
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = config.norm_eps
            elif isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor, padding_mask: Tensor | None, *, layers: Iterable[int]) -> dict[int, Tensor]:
        """Encodes, and stops at the deepest layer asked for.

        Args:
            tokens: (B, T, D), with what tells their places.
            padding_mask: (B, T) bool; None = no token is padding.
            layers: wanted hidden states, within 0..L.

        Returns:
            layer -> (B, T, D); tokens of padding hold arbitrary finite numbers.
        """
        wanted = frozenset(layers)
        attended = None if padding_mask is None else ~padding_mask[:, None, None, :]  # (B, 1, 1, T)
        x = tokens
        states = {0: x} if 0 in wanted else {}
        for index, block in enumerate(self.blocks):
            if index >= max(wanted, default=0):
                break
            x = block(x, attended)
            if index + 1 in wanted:
                states[index + 1] = self.norm(x) if index + 1 == len(self.blocks) else x
        return states


@dataclass(frozen=True)
class Windows:
    """Utterances cut into windows of K, those without a valid frame left out."""

    x: Tensor
    """(N, K, ...)."""
    lengths: Tensor
    """Valid frames of each window, (N,) int64, at least 1."""
    kept: Tensor | None
    """(B, windows) bool, True = in `x`; None = one window for each utterance."""

    def join(self, x: Tensor) -> Tensor:
        """Puts windows (N, K, D) side by side again: (B, T or more, D), 0 where there were none."""
        if self.kept is None:
            return x
        whole = x.new_zeros(*self.kept.shape, *x.shape[1:])  # (B, windows, K, D)
        whole[self.kept] = x
        return whole.flatten(1, 2)


def cut_windows(x: Tensor, lengths: Tensor, size: int) -> Windows:
    """Cuts utterances that are longer than `size` into windows of `size`, the last of them shorter.

    Args:
        x: (B, T, ...).
        lengths: valid frames, (B,) int64, at least 1.
        size: K.
    """
    count = -(-x.size(1) // size)
    if count <= 1:
        return Windows(x, lengths, None)
    padding = [0, 0] * (x.dim() - 2) + [0, count * size - x.size(1)]
    windows = F.pad(x, padding).reshape(x.size(0), count, size, *x.shape[2:])  # (B, windows, K, ...)
    starts = size * torch.arange(count, device=lengths.device)
    inside = (lengths[:, None] - starts).clamp(0, size)  # (B, windows)
    kept = inside > 0
    return Windows(windows[kept], inside[kept], kept)
