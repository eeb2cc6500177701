"""The transformer encoder of wav2vec 2.0 and its descendants.

Conventions: `padding_mask` True = padding. Hidden state 0 enters the first block, hidden state L leaves the last, as
transformers numbers them; with `pre_norm` the last one, and only it, has been through the closing layer norm.
B batch, T frames, D width, L blocks.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from speechssl.encoder.alibi import LinearBias
from speechssl.encoder.attention import SelfAttention
from speechssl.encoder.dropout import Dropout
from speechssl.encoder.linear import Linear
from speechssl.encoder.positional import ConvPositionalEmbedding, StackedConvPositionalEmbedding
from speechssl.encoder.relative_bias import RelativePositionBias
from speechssl.encoder.subset import FrameSubset
from speechssl.errors import ConfigError


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
    pos_depth: int = 1
    """Positional convolutions; more than one have layer norms instead of weight norm."""
    alibi: bool = False
    """Whether attention fades with the distance, see `LinearBias`."""
    adapter_width: int | None = None
    """Of the adapter after each block; None = no adapters."""
    relative_buckets: int = 0
    """Of distances, for a learned relative position bias on attention; 0 = none."""
    relative_distance: int = 800
    """Frames from which on all distances share a bucket."""
    relative_gate: bool = True
    """Whether what is heard at a frame scales its relative position bias, see `PositionGate`."""
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
        self.attention = SelfAttention(
            config.width,
            heads=config.heads,
            dropout=config.attention_dropout,
            gated=config.relative_buckets > 0 and config.relative_gate,
        )
        self.attention_norm = nn.LayerNorm(config.width)
        self.fc1 = Linear(config.width, config.ffn_width)
        self.fc2 = Linear(config.ffn_width, config.width)
        self.ffn_norm = nn.LayerNorm(config.width)
        self.adapter = None if config.adapter_width is None else Adapter(config.width, inner=config.adapter_width)
        self.dropout = Dropout(config.dropout)
        self.activation_dropout = Dropout(config.activation_dropout)
        self.beside: nn.Module | None = None
        """From what the feed-forward hears to what is added to what it makes, see `speechssl.adapt.distill`."""

    def feed_forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D), before dropout."""
        hidden = self.activation_dropout(F.gelu(self.fc1(x)))  # (B, T, ffn_width)
        y: Tensor = self.fc2(hidden)
        return y if self.beside is None else y + self.beside(x)

    def forward(self, x: Tensor, attended: Tensor | None, positions: Tensor | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D); `attended` and `positions` are those of `SelfAttention`."""
        return self.forward_with_result(x, attended, positions)[0]

    def forward_with_result(
        self, x: Tensor, attended: Tensor | None, positions: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """As `forward`, and what the feed-forward made, before dropout and residual: data2vec's target."""
        if self.pre_norm:
            x = x + self.dropout(self.attention(self.attention_norm(x), attended, positions))
            result = self.feed_forward(self.ffn_norm(x))
            x = x + self.dropout(result)
        else:
            x = self.attention_norm(x + self.dropout(self.attention(x, attended, positions)))
            result = self.feed_forward(x)
            x = self.ffn_norm(x + self.dropout(result))
        return x if self.adapter is None else self.adapter(x), result


class Adapter(nn.Module):
    """A bottleneck with a residual, of which each task or language has its own.

    Paper: Houlsby et al. 2019, sec. 2.1, arXiv:1902.00751, with a layer norm before, as Pratap et al. 2023 (MMS),
    sec. 5.1.1, arXiv:2305.13516.
    """

    def __init__(self, width: int, *, inner: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.down = Linear(width, inner)
        self.up = Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        return x + self.up(F.relu(self.down(self.norm(x))))  # type: ignore[no-any-return]  # nn.Module returns Any


class TransformerEncoder(nn.Module):
    """Positional convolution and L transformer blocks.

    Set `checkpoint_activations` to trade time for memory while training, and `run_skipped_blocks` where every process
    must run every block, since its weights lie in all of them: what skipped ones make is thrown away.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.pre_norm = config.pre_norm
        self.checkpoint_activations = False
        self.run_skipped_blocks = False
        self.position = _position(config)
        self.norm = nn.LayerNorm(config.width)
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(TransformerBlock(config) for _ in range(config.depth))
        self.relative_bias = _relative_bias(config)
        self.apply(_init_bert)

    def forward(
        self,
        x: Tensor,
        padding_mask: Tensor | None,
        *,
        layers: Iterable[int],
        skipped_blocks: frozenset[int] = frozenset(),
        kept: FrameSubset | None = None,
        entered: int | None = None,
    ) -> dict[int, Tensor]:
        """Encodes, and stops at the deepest layer asked for.

        Args:
            x: (B, T, D).
            padding_mask: (B, T) bool; None = no frame is padding.
            layers: wanted hidden states, within 0..L.
            skipped_blocks: blocks to pass by, counted from 0, for layer drop; see `sample_skipped_blocks`.
            kept: what goes on after the positions, of V frames per row; None = all.
            entered: `x` is this hidden state, below L, and what made it is passed by; None = `x` is what comes in.

        Returns:
            layer -> (B, T, D), or (B, V, D); frames of padding hold arbitrary finite numbers.
        """
        wanted = frozenset(layers)
        begin = entered or 0
        x, attended, positions = self._enter(x, padding_mask, kept) if entered is None else self._go_on(x, padding_mask)
        states = {begin: x} if begin in wanted else {}
        for index, block in enumerate(self.blocks):
            if index >= max(wanted, default=0):
                break
            if index < begin:
                continue
            if index not in skipped_blocks:
                x = self._run(block, x, attended, positions)
            elif self.run_skipped_blocks:
                # The blocks that are not skipped draw the same dropout as if this one had not been run.
                with torch.random.fork_rng([x.device] if x.device.type == "cuda" else []):
                    unused = self._run(block, x, attended, positions)
                x = torch.where(x.new_zeros((), dtype=torch.bool), unused, x)
            if index + 1 in wanted:
                last = index + 1 == len(self.blocks)
                states[index + 1] = self.norm(x) if last and self.pre_norm else x
        return states

    def feed_forward_results(
        self, x: Tensor, padding_mask: Tensor | None, *, blocks: frozenset[int]
    ) -> Iterator[Tensor]:
        """What the feed-forward of each of some blocks makes, before dropout and residual; no norm follows.

        Args:
            x: (B, T, D).
            padding_mask: (B, T) bool; None = no frame is padding.
            blocks: counted from 0.

        Yields:
            (B, T, D) of each, from the first to the last, so that they need not be there all at once.
        """
        x, attended, positions = self._enter(x, padding_mask, None)
        for index, block in enumerate(self.blocks):
            if index > max(blocks):
                break
            x, result = cast(TransformerBlock, block).forward_with_result(x, attended, positions)
            if index in blocks:
                yield result

    def _enter(
        self, x: Tensor, padding_mask: Tensor | None, kept: FrameSubset | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """What enters the first block, and the `attended` and `positions` of all of them."""
        attended = None
        if padding_mask is not None:
            x = x.masked_fill(padding_mask[:, :, None], 0.0)
            attended = ~padding_mask[:, None, None, :]  # (B, 1, 1, T)
        x = x + self.position(x, padding_mask)
        if kept is not None:
            x = kept.take(x)  # (B, V, D)
            attended = None if kept.present is None else kept.present[:, None, None, :]
        x = self.dropout(x if self.pre_norm else self.norm(x))
        if kept is not None and self.relative_bias is not None:
            return x, self._bias_between(kept, x), None
        return x, attended, self._positions(x)

    def _go_on(self, x: Tensor, padding_mask: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """As `_enter`, for a hidden state."""
        return x, None if padding_mask is None else ~padding_mask[:, None, None, :], self._positions(x)

    def _positions(self, x: Tensor) -> Tensor | None:
        """For all blocks alike; None = there is no relative bias."""
        if self.relative_bias is None:
            return None
        positions: Tensor = self.relative_bias(x.size(1))
        # Contiguous once, since fused attention needs a mask that is no view.
        return positions if x.device.type == "cpu" else positions.contiguous()

    def _bias_between(self, kept: FrameSubset, x: Tensor) -> Tensor:
        if not isinstance(self.relative_bias, LinearBias):
            raise ConfigError(
                "Frames can't be left out with a relative position bias in buckets: set `relative_buckets` to 0."
            )
        bias = self.relative_bias.between(kept.frames, kept.present)
        # Once for all blocks, in the type of their products.
        kind = x.device.type
        return bias.to(torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype)

    def _run(self, block: nn.Module, x: Tensor, attended: Tensor | None, positions: Tensor | None) -> Tensor:
        if self.checkpoint_activations and torch.is_grad_enabled():
            return checkpoint(block, x, attended, positions, use_reentrant=False)  # type: ignore[no-any-return]  # untyped
        return block(x, attended, positions)  # type: ignore[no-any-return]  # nn.Module returns Any


def _position(config: EncoderConfig) -> ConvPositionalEmbedding | StackedConvPositionalEmbedding:
    kernel, groups = config.pos_kernel, config.pos_groups
    if config.pos_depth == 1:
        return ConvPositionalEmbedding(config.width, kernel=kernel, groups=groups)
    return StackedConvPositionalEmbedding(config.width, kernel=kernel, groups=groups, depth=config.pos_depth)


def _relative_bias(config: EncoderConfig) -> RelativePositionBias | LinearBias | None:
    if config.relative_buckets > 0:
        return RelativePositionBias(
            config.heads, num_buckets=config.relative_buckets, max_distance=config.relative_distance
        )
    return LinearBias(config.heads) if config.alibi else None


def sample_skipped_blocks(depth: int, prob: float, *, generator: torch.Generator) -> frozenset[int]:
    """Draws the blocks that layer drop passes by in one training step, each with probability `prob`.

    The draw is explicit so that it can be repeated after a resume and be the same on every rank.

    Paper: Fan et al. 2020, arXiv:1909.11556.
    """
    draws = torch.rand(depth, generator=generator)
    return frozenset(int(i) for i in torch.nonzero(draws < prob).flatten())


def draw_skipped_blocks(depth: int, prob: float, *, generator: torch.Generator) -> frozenset[int]:
    """`sample_skipped_blocks` with a generator that may be a GPU's."""
    if prob == 0.0:
        return frozenset()
    seed = int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
    return sample_skipped_blocks(depth, prob, generator=torch.Generator().manual_seed(seed))


def _init_bert(module: nn.Module) -> None:
    """Linear and embedded weights N(0, 0.02), biases 0, as fairseq's `init_bert_params`."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, mean=0.0, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
