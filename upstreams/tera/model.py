"""TERA: a transformer with sinusoidal positions over normalised log-mel frames.

B batch, S samples, T frames, C channels, D width, L blocks.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from speechssl.encoder.linear import Linear
from speechssl.encoder.sinusoidal import sinusoidal_positions
from speechssl.encoder.transformer import EncoderConfig, TransformerBlock
from speechssl.errors import ConfigError
from speechssl.frontend.normalized_mel import NormalizedCentredMel, NormalizedFbank
from speechssl.lengths import lengths_to_padding_mask
from speechssl.upstream import Upstream
from upstreams.tera.config import TeraConfig
from upstreams.tera.windows import cut_evenly


class TeraUpstream(Upstream):
    """A TERA, Mockingjay or Audio ALBERT model.

    Hidden state 0 is the projected frames with their positions, after the layer norm; k the output of block k.

    Paper: Liu et al. 2021, sec. III-A, arXiv:2007.06028.
    """

    name = "tera"
    family = "tera"

    def __init__(self, config: TeraConfig) -> None:
        frontend = _frontend(config)
        super().__init__(
            sample_rate=16_000,
            frame_rate=16_000 / frontend.hop,
            hidden_sizes=(config.width,) * (config.depth + 1),
        )
        self.config = config
        self.frontend = frontend
        self.encoder = TeraEncoder(frontend.width, config)

    def output_lengths(self, lengths: Tensor) -> Tensor:
        """Valid frames for valid samples, both (B,) int64."""
        return self.frontend.output_lengths(lengths)

    def extract_features(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S), 0 beyond `lengths` -> features (B, T, C) float32, 0 beyond the valid frames, and their number."""
        frames = self.output_lengths(lengths)
        return self.frontend(waveform, lengths)[:, : int(frames.max())], frames

    def compute(self, waveform: Tensor, lengths: Tensor, layers: frozenset[int]) -> dict[int, Tensor]:
        """See `Upstream.compute`."""
        return self.encoder(*self.extract_features(waveform, lengths), layers=layers)  # type: ignore[no-any-return]

    def fingerprint_config(self) -> str:
        """The whole config."""
        return repr(self.config)


class TeraEncoder(nn.Module):
    """Projection, positions, layer norm and blocks with the norm after.

    Set `checkpoint_activations` to trade time for memory while training.
    """

    def __init__(self, inputs: int, config: TeraConfig) -> None:
        super().__init__()
        self.checkpoint_activations = False
        self.max_frames = config.max_frames
        self.projection = Linear(inputs, config.width)
        self.norm = nn.LayerNorm(config.width)
        self.dropout = nn.Dropout(config.dropout)
        shape = EncoderConfig(
            width=config.width,
            depth=config.depth,
            heads=config.heads,
            ffn_width=config.ffn_width,
            dropout=config.dropout,
            attention_dropout=config.attention_dropout,
        )
        self.shared = TransformerBlock(shape) if config.share_blocks else None
        self.blocks = nn.ModuleList(
            TransformerBlock(shape) if self.shared is None else Repeated(self.shared) for _ in range(config.depth)
        )
        self.apply(lambda module: init_bert(module, eps=config.norm_eps))

    def forward(self, features: Tensor, frames: Tensor, *, layers: Iterable[int]) -> dict[int, Tensor]:
        """Encodes, and stops at the deepest layer asked for.

        Args:
            features: (B, T, C).
            frames: valid frames, (B,) int64, at least 1.
            layers: wanted hidden states, within 0..L.

        Returns:
            layer -> (B, T, D); frames of padding hold arbitrary finite numbers.
        """
        wanted = frozenset(layers)
        parts = cut_evenly(features.to(self.projection.weight.dtype), frames, self.max_frames)
        size, attended = parts.x.size(1), None
        if int(parts.lengths.min()) < size:
            attended = ~lengths_to_padding_mask(parts.lengths, size)[:, None, None, :]  # (N, 1, 1, K)
        positions = sinusoidal_positions(size, self.projection.out_features, device=features.device)
        x = self.projection(parts.x)
        x = self.dropout(self.norm(x + positions.to(x.dtype)))  # (N, K, D)
        states = {0: parts.join(x)} if 0 in wanted else {}
        for index, block in enumerate(self.blocks[: max(wanted)]):
            if self.checkpoint_activations and torch.is_grad_enabled():
                x = checkpoint(block, x, attended, use_reentrant=False)
            else:
                x = block(x, attended)
            if index + 1 in wanted:
                states[index + 1] = parts.join(x)
        return states


class Repeated(nn.Module):
    """A block whose weights belong to another place.

    Paper: Lan et al. 2020 (ALBERT), sec. 3.1, arXiv:1909.11942.
    """

    def __init__(self, block: TransformerBlock) -> None:
        super().__init__()
        self.block = (block,)  # in a tuple, since a module would count as this one's own

    def forward(self, x: Tensor, attended: Tensor | None) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        return self.block[0](x, attended)  # type: ignore[no-any-return]  # nn.Module returns Any


def init_bert(module: nn.Module, *, eps: float) -> None:
    """Linear weights N(0, 0.02), biases 0, and the epsilon of layer norms."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        module.eps = eps


def _frontend(config: TeraConfig) -> NormalizedCentredMel | NormalizedFbank:
    if config.width % 2:
        raise ConfigError(f"`width` must be even, but is {config.width}: positions are pairs of sine and cosine.")
    if config.frontend == "centred_mel":
        return NormalizedCentredMel(config.num_mel_bins, level=config.level)
    if config.frontend == "fbank":
        return NormalizedFbank(config.num_mel_bins)
    raise ConfigError(f"`frontend` must be 'centred_mel' or 'fbank', but is '{config.frontend}'.")


def build(config: TeraConfig) -> TeraUpstream:
    """Makes the model with random weights."""
    return TeraUpstream(config)
