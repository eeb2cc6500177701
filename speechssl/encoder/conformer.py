"""The conformer encoder: transformer blocks with a convolution inside, between two halves of a feed-forward.

Conventions: `padding_mask` True = padding. Hidden state 0 enters the first block, hidden state L leaves the last (and
the closing layer norm, where there is one), as transformers numbers them.
B batch, T frames, D width, L blocks.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from speechssl.encoder.linear import Linear
from speechssl.encoder.relative_attention import Positions, RelativeAttention, position_table
from speechssl.errors import ConfigError


@dataclass(frozen=True)
class ConformerConfig:
    """Shape and regularisation of a conformer encoder; the defaults are those of wav2vec 2.0 conformer large."""

    width: int = 1024
    depth: int = 24
    heads: int = 16
    ffn_width: int = 4096
    positions: Positions = "relative"
    limits: tuple[int, int] = (64, 8)
    """Frames to the left and to the right that 'relative_key' tells apart."""
    rotary_base: float = 10_000.0
    kernel: int = 31
    """Frames that a block's convolution sees."""
    conv_expansion: int = 1
    """How many times wider than the block its convolution is inside."""
    causal: bool = False
    """Whether the convolution sees past frames only."""
    conv_norm: Literal["batch", "layer"] = "batch"
    """After the depthwise convolution."""
    closing_norm: bool = True
    """A layer norm after the last block."""
    dropout: float = 0.0
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    conv_dropout: float = 0.0


class FeedForward(nn.Module):
    """Linear, swish, linear."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        self.fc1 = Linear(config.width, config.ffn_width)
        self.fc2 = Linear(config.ffn_width, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.activation_dropout = nn.Dropout(config.activation_dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        return self.dropout(self.fc2(self.activation_dropout(F.silu(self.fc1(x)))))  # type: ignore[no-any-return]


class ConvolutionModule(nn.Module):
    """Pointwise with gate, depthwise, norm, swish, pointwise; what is padding counts as silence.

    Paper: Gulati et al. 2020, sec. 2.2, arXiv:2005.08100.
    """

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        if config.kernel % 2 == 0:
            raise ConfigError(f"`kernel` must be odd, but is {config.kernel}.")
        if config.conv_norm not in ("batch", "layer"):
            raise ConfigError(f"`conv_norm` must be 'batch' or 'layer', but is '{config.conv_norm}'.")
        self.edges = (config.kernel - 1, 0) if config.causal else (config.kernel // 2, config.kernel // 2)
        inner = config.conv_expansion * config.width
        self.pointwise1 = Linear(config.width, 2 * inner, bias=False)
        self.depthwise = nn.Conv1d(inner, inner, config.kernel, groups=inner, bias=False)
        self.norm = nn.BatchNorm1d(inner) if config.conv_norm == "batch" else nn.LayerNorm(inner)
        self.pointwise2 = Linear(inner, config.width, bias=False)
        self.dropout = nn.Dropout(config.conv_dropout)

    def forward(self, x: Tensor, padding_mask: Tensor | None) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        if padding_mask is not None:
            x = x.masked_fill(padding_mask[:, :, None], 0.0)
        x = F.glu(self.pointwise1(x), dim=2)  # (B, T, inner), still 0 where padding
        x = self.depthwise(F.pad(x.transpose(1, 2), self.edges)).transpose(1, 2)
        return self.dropout(self.pointwise2(F.silu(self._normalize(x, padding_mask))))  # type: ignore[no-any-return]

    def _normalize(self, x: Tensor, padding_mask: Tensor | None) -> Tensor:
        if isinstance(self.norm, nn.LayerNorm):
            return self.norm(x)  # type: ignore[no-any-return]  # nn.Module returns Any
        if self.training and padding_mask is not None:
            # A batch's statistics, which only training takes, are those of its valid frames.
            return torch.zeros_like(x).masked_scatter(~padding_mask[:, :, None], self.norm(x[~padding_mask]))
        return self.norm(x.transpose(1, 2)).transpose(1, 2)  # type: ignore[no-any-return]  # nn.Module returns Any


class ConformerBlock(nn.Module):
    """Half a feed-forward, attention, convolution, half a feed-forward, each with a norm before it, and a closing norm.

    Paper: Gulati et al. 2020, sec. 2.4, arXiv:2005.08100.
    """

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        self.ffn1_norm, self.ffn2_norm = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        self.ffn1, self.ffn2 = FeedForward(config), FeedForward(config)
        self.attention_norm = nn.LayerNorm(config.width)
        self.attention = RelativeAttention(
            config.width,
            heads=config.heads,
            positions=config.positions,
            limits=config.limits,
            dropout=config.attention_dropout,
        )
        self.dropout = nn.Dropout(config.attention_dropout)
        self.conv_norm = nn.LayerNorm(config.width)
        self.conv = ConvolutionModule(config)
        self.norm = nn.LayerNorm(config.width)

    def forward(self, x: Tensor, table: Tensor, padding_mask: Tensor | None) -> Tensor:
        """(B, T, D) -> (B, T, D); `table` is that of `position_table`, `padding_mask` (B, T) bool or None."""
        attended = None if padding_mask is None else ~padding_mask[:, None, None, :]  # (B, 1, 1, T)
        x = x + 0.5 * self.ffn1(self.ffn1_norm(x))
        x = x + self.dropout(self.attention(self.attention_norm(x), table, attended))
        x = x + self.conv(self.conv_norm(x), padding_mask)
        return self.norm(x + 0.5 * self.ffn2(self.ffn2_norm(x)))  # type: ignore[no-any-return]  # nn.Module returns Any


class ConformerEncoder(nn.Module):
    """L conformer blocks.

    Set `checkpoint_activations` to trade time for memory while training.
    """

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        self.options = config
        self.checkpoint_activations = False
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(ConformerBlock(config) for _ in range(config.depth))
        if config.closing_norm:
            self.norm = nn.LayerNorm(config.width)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, mean=0.0, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(
        self,
        x: Tensor,
        padding_mask: Tensor | None,
        *,
        layers: Iterable[int],
        skipped_blocks: frozenset[int] = frozenset(),
        entered: int | None = None,
    ) -> dict[int, Tensor]:
        """Encodes, and stops at the deepest layer asked for; see `TransformerEncoder.forward`."""
        wanted, options, begin = frozenset(layers), self.options, entered or 0
        table = position_table(
            options.positions,
            x.size(1),
            x.size(2),
            heads=options.heads,
            limits=options.limits,
            base=options.rotary_base,
            like=x,
        )
        if padding_mask is not None:
            x = x.masked_fill(padding_mask[:, :, None], 0.0)
        x = self.dropout(x) if entered is None else x
        states = {begin: x} if begin in wanted else {}
        for index, block in enumerate(self.blocks[: max(wanted, default=0)]):
            if index < begin:
                continue
            if index not in skipped_blocks:
                x = self._run(block, x, table, padding_mask)
            if index + 1 in wanted:
                last = index + 1 == len(self.blocks)
                states[index + 1] = self.norm(x) if last and options.closing_norm else x
        return states

    def _run(self, block: nn.Module, *inputs: Tensor | None) -> Tensor:
        if self.checkpoint_activations and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)  # type: ignore[no-any-return]  # untyped in torch
        return block(*inputs)  # type: ignore[no-any-return]  # nn.Module returns Any
