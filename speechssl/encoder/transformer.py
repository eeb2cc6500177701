"""The transformer encoder of wav2vec 2.0 and its descendants.

Conventions: `padding_mask` True = padding. Hidden state 0 enters the first block, hidden state L leaves the last, as
transformers numbers them; with `pre_norm` the last one, and only it, has been through the closing layer norm.
B batch, T frames, D width, L blocks.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from speechssl.encoder.attention import SelfAttention
from speechssl.encoder.positional import ConvPositionalEmbedding


@dataclass(frozen=True)
class EncoderConfig:
    """Shape and regularisation of a transformer encoder; the defaults are those of wav2vec 2.0 base."""

    width: int = 768
    depth: int = 12
    heads: int = 12
    ffn_width: int = 3072
    pre_norm: bool = False
    """Layer norms before attention and feed-forward (large models) instead of after."""
    pos_kernel: int = 128
    """Frames that the positional convolution sees."""
    pos_groups: int = 16
    dropout: float = 0.1
    attention_dropout: float = 0.1
    activation_dropout: float = 0.0


class TransformerBlock(nn.Module):
    """Self-attention and feed-forward with residuals.

    Paper: Vaswani et al. 2017, arXiv:1706.03762 (norm after); Xiong et al. 2020, arXiv:2002.04745 (norm before).
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.pre_norm = config.pre_norm
        self.attention = SelfAttention(config.width, heads=config.heads, dropout=config.attention_dropout)
        self.attention_norm = nn.LayerNorm(config.width)
        self.fc1 = nn.Linear(config.width, config.ffn_width)
        self.fc2 = nn.Linear(config.ffn_width, config.width)
        self.ffn_norm = nn.LayerNorm(config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.activation_dropout = nn.Dropout(config.activation_dropout)

    def feed_forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        hidden = self.activation_dropout(F.gelu(self.fc1(x)))  # (B, T, ffn_width)
        return self.dropout(self.fc2(hidden))  # type: ignore[no-any-return]  # nn.Module returns Any

    def forward(self, x: Tensor, attended: Tensor | None) -> Tensor:
        """(B, T, D) -> (B, T, D); `attended` is (B, 1, 1, T) bool or None, see `SelfAttention`."""
        if self.pre_norm:
            x = x + self.dropout(self.attention(self.attention_norm(x), attended))
            return x + self.feed_forward(self.ffn_norm(x))
        x = self.attention_norm(x + self.dropout(self.attention(x, attended)))
        return self.ffn_norm(x + self.feed_forward(x))  # type: ignore[no-any-return]  # nn.Module returns Any


class TransformerEncoder(nn.Module):
    """Positional convolution and L transformer blocks.

    Set `checkpoint_activations` to trade time for memory while training.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.pre_norm = config.pre_norm
        self.checkpoint_activations = False
        self.position = ConvPositionalEmbedding(config.width, kernel=config.pos_kernel, groups=config.pos_groups)
        self.norm = nn.LayerNorm(config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(TransformerBlock(config) for _ in range(config.depth))
        self.apply(_init_bert)

    def forward(
        self,
        x: Tensor,
        padding_mask: Tensor | None,
        *,
        layers: Iterable[int],
        skipped_blocks: frozenset[int] = frozenset(),
    ) -> dict[int, Tensor]:
        """Encodes, and stops at the deepest layer asked for.

        Args:
            x: (B, T, D).
            padding_mask: (B, T) bool; None = no frame is padding.
            layers: wanted hidden states, within 0..L.
            skipped_blocks: blocks to pass by, counted from 0, for layer drop; see `sample_skipped_blocks`.

        Returns:
            layer -> (B, T, D); frames of padding hold arbitrary finite numbers.
        """
        wanted = frozenset(layers)
        attended = None
        if padding_mask is not None:
            x = x.masked_fill(padding_mask[:, :, None], 0.0)
            attended = ~padding_mask[:, None, None, :]  # (B, 1, 1, T)
        x = x + self.position(x)
        x = self.dropout(x if self.pre_norm else self.norm(x))
        states = {0: x} if 0 in wanted else {}
        for index, block in enumerate(self.blocks):
            if index >= max(wanted, default=0):
                break
            if index not in skipped_blocks:
                x = self._run(block, x, attended)
            if index + 1 in wanted:
                last = index + 1 == len(self.blocks)
                states[index + 1] = self.norm(x) if last and self.pre_norm else x
        return states

    def _run(self, block: nn.Module, x: Tensor, attended: Tensor | None) -> Tensor:
        if self.checkpoint_activations and torch.is_grad_enabled():
            return checkpoint(block, x, attended, use_reentrant=False)  # type: ignore[no-any-return]  # untyped in torch
        return block(x, attended)  # type: ignore[no-any-return]  # nn.Module returns Any


def sample_skipped_blocks(depth: int, prob: float, *, generator: torch.Generator) -> frozenset[int]:
    """Draws the blocks that layer drop passes by in one training step, each with probability `prob`.

    The draw is explicit so that it can be repeated after a resume and be the same on every rank.

    Paper: Fan et al. 2020, arXiv:1909.11556.
    """
    draws = torch.rand(depth, generator=generator)
    return frozenset(int(i) for i in torch.nonzero(draws < prob).flatten())


def _init_bert(module: nn.Module) -> None:
    """Linear weights N(0, 0.02), biases 0, as fairseq's `init_bert_params`."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, mean=0.0, std=0.02)
        nn.init.zeros_(module.bias)
