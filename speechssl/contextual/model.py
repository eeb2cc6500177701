"""How a frontend and a transformer are wired into wav2vec 2.0, HuBERT and their kin.

B batch, S samples, T frames, C channels of the frontend, D width, L blocks.
"""

from typing import Protocol

from torch import Tensor, nn
from torch import rand as uniform

from speechssl.contextual.config import ContextualConfig
from speechssl.encoder.dropout import Dropout
from speechssl.encoder.linear import Linear
from speechssl.encoder.transformer import EncoderConfig, TransformerEncoder
from speechssl.errors import ConfigError
from speechssl.frontend.conv_waveform import ConvWaveform
from speechssl.frontend.grad_multiply import multiply_gradient
from speechssl.frontend.stacked_log_mel import StackedLogMel
from speechssl.lengths import lengths_to_padding_mask
from speechssl.upstream import Upstream


class Frontend(Protocol):
    """The module that a `ContextualUpstream` hears with."""

    def output_lengths(self, lengths: Tensor) -> Tensor:
        """Valid frames for valid samples, both (B,) int64."""

    def __call__(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        """(B, S) and valid samples (B,) int64 -> (B, T, C)."""


class ContextualUpstream(Upstream):
    """Frontend, layer norm, projection, mask embedding and transformer encoder; families name it.

    Paper: Baevski et al. 2020, sec. 2, arXiv:2006.11477.
    """

    def __init__(self, config: ContextualConfig) -> None:
        frontend, hop, width = self.make_frontend(config)
        super().__init__(
            sample_rate=config.sample_rate,
            frame_rate=config.sample_rate / hop,
            hidden_sizes=(config.width,) * (config.depth + 1),
            normalize=config.normalize,
        )
        self.config = config
        self.frontend = frontend
        self.feature_width = width
        self.feature_norm = nn.LayerNorm(self.feature_width) if config.feature_norm else nn.Identity()
        self.projection = Linear(self.feature_width, config.width)
        self.input_dropout = Dropout(config.input_dropout)
        self.mask_embedding = nn.Parameter(uniform(config.width))
        self.encoder = self.make_encoder(config)

    @staticmethod
    def make_frontend(config: ContextualConfig) -> tuple[Frontend, int, int]:
        """Makes what stands in `frontend`; also returns its samples per frame and its channels."""
        if config.frontend == "conv_waveform":
            conv = ConvWaveform(
                config.conv_channels,
                kernels=config.conv_kernels,
                strides=config.conv_strides,
                norm=config.conv_norm,
                bias=config.conv_bias,
            )
            return conv, conv.hop, config.conv_channels
        if config.frontend == "log_mel":
            log_mel = StackedLogMel(config.num_mel_bins, stack=config.stack)
            return log_mel, log_mel.hop, log_mel.width
        raise ConfigError(f"`frontend` must be 'conv_waveform' or 'log_mel', but is '{config.frontend}'.")

    def make_encoder(self, config: ContextualConfig) -> nn.Module:
        """Makes what stands in `encoder`: called as a `TransformerEncoder` is, with its blocks in `blocks`."""
        return TransformerEncoder(
            EncoderConfig(
                width=config.width,
                depth=config.depth,
                heads=config.heads,
                ffn_width=config.ffn_width,
                pre_norm=config.pre_norm,
                pos_kernel=config.pos_kernel,
                pos_groups=config.pos_groups,
                pos_depth=config.pos_depth,
                alibi=config.alibi,
                relative_buckets=config.relative_buckets,
                relative_distance=config.relative_distance,
                relative_gate=config.relative_gate,
                adapter_width=config.adapter_width,
                dropout=config.dropout,
                attention_dropout=config.attention_dropout,
                activation_dropout=config.activation_dropout,
            )
        )

    def output_lengths(self, lengths: Tensor) -> Tensor:
        """Valid frames for valid samples, both (B,) int64."""
        return self.frontend.output_lengths(lengths)

    def extract_features(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Runs the frontend; its gradient is scaled by `feature_grad_mult`.

        Args:
            waveform: (B, S), already normalised if `normalize`, 0 beyond `lengths`.
            lengths: valid samples, (B,) int64.

        Returns:
            Features (B, T, C) before their layer norm, and the valid frames (B,) int64; T = frames.max().
        """
        frames = self.output_lengths(lengths)
        features = self.frontend(waveform, lengths)
        features = features[:, : int(frames.max())].to(self.projection.weight.dtype)
        if self.config.feature_grad_mult != 1.0 and features.requires_grad:
            features = multiply_gradient(features, self.config.feature_grad_mult)
        return features, frames

    def encode(
        self,
        features: Tensor,
        frames: Tensor,
        *,
        layers: frozenset[int],
        mask: Tensor | None = None,
        skipped_blocks: frozenset[int] = frozenset(),
    ) -> dict[int, Tensor]:
        """Normalises, projects, hides the masked frames and encodes.

        Args:
            features: (B, T, C) from `extract_features`.
            frames: valid frames, (B,) int64.
            layers: wanted hidden states, within 0..L.
            mask: (B, T) bool, True = replaced by the learned mask embedding.
            skipped_blocks: for layer drop, see `speechssl.encoder.transformer.sample_skipped_blocks`.

        Returns:
            layer -> (B, T, D).
        """
        padding_mask = self.padding_mask(frames, features.size(1))
        return self.encode_projected(
            self.project(features), padding_mask, layers=layers, mask=mask, skipped_blocks=skipped_blocks
        )

    def project(self, features: Tensor) -> Tensor:
        """Normalises and projects: (B, T, C) -> (B, T, D), before dropout."""
        return self.projection(self.feature_norm(features))  # type: ignore[no-any-return]  # nn.Module returns Any

    def padding_mask(self, frames: Tensor, size: int) -> Tensor | None:
        """(B, size) bool, for valid frames (B,) int64; None where no frame is padding, which is the fast path."""
        return lengths_to_padding_mask(frames, size) if int(frames.min()) < size else None

    def encode_projected(
        self,
        x: Tensor,
        padding_mask: Tensor | None,
        *,
        layers: frozenset[int],
        mask: Tensor | None = None,
        channel_mask: Tensor | None = None,
        skipped_blocks: frozenset[int] = frozenset(),
    ) -> dict[int, Tensor]:
        """Drops out, hides the masked frames and encodes what `project` made, (B, T, D); see `encode`.

        Args:
            channel_mask: (B, D) bool, True = 0 in all frames, the masked ones too.
        """
        x = self.input_dropout(x)
        if mask is not None:
            x = x.masked_fill(mask[:, :, None], 0.0) + mask[:, :, None] * self.mask_embedding.to(x.dtype)
        if channel_mask is not None:
            x = x.masked_fill(channel_mask[:, None, :], 0.0)
        return self.encoder(x, padding_mask, layers=layers, skipped_blocks=skipped_blocks)  # type: ignore[no-any-return]

    def compute(self, waveform: Tensor, lengths: Tensor, layers: frozenset[int]) -> dict[int, Tensor]:
        """See `Upstream.compute`."""
        features, frames = self.extract_features(waveform, lengths)
        return self.encode(features, frames, layers=layers)

    def fingerprint_config(self) -> str:
        """The whole config: its training-only fields don't change features, but neither do they change often."""
        return repr(self.config)
