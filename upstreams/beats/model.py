"""BEATs: patches of a spectrogram in a transformer with a gated relative position bias and deep norms.

B batch, S samples, T frames, M mel bands, C columns, R rows, E embedding width, D width, L blocks.
"""

from torch import Tensor, nn

from speechssl.encoder.attention import SelfAttention
from speechssl.encoder.linear import Linear
from speechssl.encoder.transformer import EncoderConfig, TransformerBlock, TransformerEncoder
from speechssl.frontend.log_mel import LogMelConfig
from speechssl.frontend.patch_embedding import PatchEmbedding, patch_rows
from speechssl.frontend.scaled_log_mel import ScaledLogMel
from speechssl.lengths import lengths_to_padding_mask
from speechssl.patches.model import join_rows
from speechssl.upstream import Upstream
from upstreams.beats.config import BeatsConfig

INTEGERS = 2.0**15
"""Scale of 16-bit integers, at which the statistics of the energies were taken."""


class DeepNormBlock(TransformerBlock):
    """A block with the norm after, whose residuals are scaled up; the gate of its position bias hears the queries.

    Paper: Wang et al. 2022 (DeepNet), fig. 2, arXiv:2203.00555; Chen et al. 2022 (BEATs), sec. 3.2, arXiv:2212.09058.
    """

    def __init__(self, config: EncoderConfig, *, deep_norm: bool) -> None:
        super().__init__(config)
        self.attention = SelfAttention(
            config.width,
            heads=config.heads,
            dropout=config.attention_dropout,
            gated=config.relative_buckets > 0 and config.relative_gate,
            gate_hears_query=True,
        )
        self.scale = (2 * config.depth) ** 0.25 if deep_norm else 1.0
        self._initialise(gain=(8 * config.depth) ** -0.25 if deep_norm else 1.0)

    def _initialise(self, *, gain: float) -> None:
        query, key, value = self.attention.qkv.weight.chunk(3)
        for weight, its_gain in ((query, 1.0), (key, 1.0), (value, gain), (self.attention.output.weight, gain)):
            nn.init.xavier_normal_(weight, gain=its_gain)
        for layer in (self.fc1, self.fc2):
            nn.init.xavier_normal_(layer.weight, gain=gain)
        for layer in (self.attention.qkv, self.attention.output, self.fc1, self.fc2):
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, attended: Tensor | None, positions: Tensor | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D); `attended` and `positions` are those of `SelfAttention`."""
        x = self.attention_norm(self.scale * x + self.dropout(self.attention(x, attended, positions)))
        return self.ffn_norm(self.scale * x + self.feed_forward(x))  # type: ignore[no-any-return]  # nn.Module


class BeatsUpstream(Upstream):
    """A BEATs model.

    A hidden state is a sequence of frames, one for each column of patches: the patches of a column side by side, or
    their mean. Patches are read column by column, low frequencies first, as one sequence, along which positions count.

    Paper: Chen et al. 2022, sec. 3.2, arXiv:2212.09058.
    """

    name = "beats"
    family = "beats"

    def __init__(self, config: BeatsConfig) -> None:
        rows = patch_rows(config.num_mel_bins, patch=config.patch_size, stride=config.patch_size)
        spectrum = LogMelConfig(sample_rate=config.sample_rate, num_mel_bins=config.num_mel_bins)
        super().__init__(
            sample_rate=config.sample_rate,
            frame_rate=config.sample_rate / (spectrum.hop * config.patch_size),
            hidden_sizes=(config.width * (rows if config.frequency == "join" else 1),) * (config.depth + 1),
        )
        self.config = config
        self.rows = rows
        self.spectrogram = ScaledLogMel(spectrum, mean=config.mean, deviation=config.deviation, gain=INTEGERS)
        patch = (config.patch_size, config.patch_size)
        self.patches = PatchEmbedding(config.embed_width, patch=patch, bias=config.patch_bias)
        self.feature_norm = nn.LayerNorm(config.embed_width)
        # Where the widths agree, the authors have no projection.
        projected = config.embed_width != config.width
        self.projection = Linear(config.embed_width, config.width) if projected else nn.Identity()
        shape = EncoderConfig(
            width=config.width,
            depth=config.depth,
            heads=config.heads,
            ffn_width=config.ffn_width,
            pos_kernel=config.pos_kernel,
            pos_groups=config.pos_groups,
            relative_buckets=config.relative_buckets,
            relative_distance=config.relative_distance,
            relative_gate=config.relative_gate,
            dropout=config.dropout,
            attention_dropout=config.attention_dropout,
            activation_dropout=config.activation_dropout,
        )
        self.encoder = TransformerEncoder(shape)
        self.encoder.blocks = nn.ModuleList(
            DeepNormBlock(shape, deep_norm=config.deep_norm) for _ in range(config.depth)
        )

    def output_lengths(self, lengths: Tensor) -> Tensor:
        """Valid columns for valid samples, both (B,) int64."""
        return self.patches.output_lengths(self.spectrogram.output_lengths(lengths))

    def compute(self, waveform: Tensor, lengths: Tensor, layers: frozenset[int]) -> dict[int, Tensor]:
        """See `Upstream.compute`; each (B, C, R D) or (B, C, D)."""
        features = self.spectrogram(waveform, lengths).to(self.feature_norm.weight.dtype)  # (B, T, M)
        columns = self.output_lengths(lengths)
        grid = self.patches(features)[:, : int(columns.max())]  # (B, C, R, E)
        x = self.projection(self.feature_norm(grid.flatten(1, 2)))  # (B, C R, D)
        padding_mask = None
        if int(columns.min()) < grid.size(1):
            padding_mask = lengths_to_padding_mask(self.rows * columns, x.size(1))  # (B, C R)
        states = self.encoder(x, padding_mask, layers=layers)
        return {layer: join_rows(state, self.rows, self.config.frequency) for layer, state in states.items()}

    def fingerprint_config(self) -> str:
        """The whole config."""
        return repr(self.config)


def build(config: BeatsConfig) -> BeatsUpstream:
    """Makes the model with random weights."""
    return BeatsUpstream(config)
