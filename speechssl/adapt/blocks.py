"""The transformer blocks of an upstream, and what all kinds of them have in common.

Two kinds stand in all families: `TransformerBlock` and `ConformerBlock`.
"""

from dataclasses import dataclass

from torch import nn

from speechssl.encoder.attention import SelfAttention
from speechssl.encoder.conformer import ConformerBlock
from speechssl.encoder.relative_attention import RelativeAttention
from speechssl.encoder.transformer import TransformerBlock
from speechssl.errors import ConfigError
from speechssl.upstream import Upstream


@dataclass(frozen=True)
class Block:
    """A block, and the parts that adaptation changes."""

    module: nn.Module
    attention: SelfAttention | RelativeAttention
    feed_forward: nn.Module
    """Holds `fc2`, the layer that ends the (last) feed-forward."""

    @property
    def width(self) -> int:
        """D."""
        return self.attention.output.out_features


def find_blocks(upstream: Upstream) -> list[Block]:
    """The blocks of an upstream from the first to the last; none where it has no such blocks."""
    found: list[Block] = []
    for module in upstream.modules():
        if isinstance(module, TransformerBlock):
            found.append(Block(module, module.attention, module))
        elif isinstance(module, ConformerBlock):
            found.append(Block(module, module.attention, module.ffn2))
    return found


def choose_blocks(upstream: Upstream, *, top: int | None, method: str) -> list[Block]:
    """The blocks that a method adapts.

    Args:
        top: only the topmost so many; None = all.
        method: named in errors.

    Raises:
        ConfigError: the upstream has no such blocks, or fewer.
    """
    blocks = find_blocks(upstream)
    if not blocks:
        raise ConfigError(
            f"`adapt.method={method}` needs transformer blocks, which '{upstream.name}' ({type(upstream).__name__}) "
            "has not in a form that can be changed: choose `adapt.method=full` or `frozen`."
        )
    if top is not None and top > len(blocks):
        raise ConfigError(f"`adapt.top_layers` is {top}, but '{upstream.name}' has {len(blocks)} blocks.")
    return blocks if top is None else blocks[-top:]
