"""BEST-RQ: log-mel frames, a convolutional stem and a conformer.

B batch, T frames, S mel frames per frame, M mel bands, C channels, D width.
"""

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.contextual.config import ContextualConfig
from speechssl.contextual.model import ContextualUpstream
from speechssl.encoder.conformer import ConformerConfig, ConformerEncoder
from speechssl.encoder.linear import Linear
from speechssl.errors import ConfigError
from speechssl.frontend.log_mel import LogMel
from speechssl.frontend.stacked_log_mel import StackedLogMel
from upstreams.best_rq.config import BestRqConfig


class ConvStem(nn.Module):
    """Two convolutions over time and frequency, each of stride 2, with a layer norm over channels and leaky ReLU.

    SpeechBrain has batch norms, and mirrors the frames at both ends; here no statistics are shared between utterances,
    and a frame sees earlier mel frames and its own four, but none after them, so padding plays no part.
    """

    def __init__(self, num_mel_bins: int, *, channels: tuple[int, int], dropout: float) -> None:
        super().__init__()
        if num_mel_bins % 4:
            raise ConfigError(f"`num_mel_bins` must be a multiple of 4 for the conv stem, but is {num_mel_bins}.")
        self.num_mel_bins = num_mel_bins
        self.width = channels[1] * num_mel_bins // 4
        self.convs = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride=2) for before, after in zip((1, channels[0]), channels, strict=True)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(after) for after in channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Tensor) -> Tensor:
        """(B, T, 4 M) -> (B, T, C M / 4)."""
        B, T, _ = features.shape
        x = features.reshape(B, 1, 4 * T, self.num_mel_bins)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            y = conv(F.pad(x, (1, 0, 1, 0))).permute(0, 2, 3, 1)  # (B, T', M', C)
            x = self.dropout(F.leaky_relu(norm(y))).permute(0, 3, 1, 2)
        return x.permute(0, 2, 1, 3).reshape(B, T, self.width)


class BestRqUpstream(ContextualUpstream):
    """A BEST-RQ model; frames are hidden before the stem, so it has no mask embedding.

    Paper: Chiu et al. 2022, sec. 3, arXiv:2202.01855.
    """

    name = "best_rq"
    family = "best_rq"
    config: BestRqConfig

    def __init__(self, config: BestRqConfig) -> None:
        if config.frontend != "log_mel":
            raise ConfigError(f"`frontend` of a best_rq must be 'log_mel', but is '{config.frontend}': leave it out.")
        if config.stem not in ("conv", "linear") or config.blocks not in ("conformer", "transformer"):
            raise ConfigError(
                "`stem` must be 'conv' or 'linear' and `blocks` 'conformer' or 'transformer', but they are "
                f"'{config.stem}' and '{config.blocks}'."
            )
        super().__init__(config)
        del self.mask_embedding
        if config.stem == "conv":
            if config.stack != 4:
                raise ConfigError(f"`stack` must be 4 for the conv stem, but is {config.stack}.")
            self.stem = ConvStem(config.num_mel_bins, channels=config.stem_channels, dropout=config.stem_dropout)
            self.projection = Linear(self.stem.width, config.width)

    def make_encoder(self, config: ContextualConfig) -> nn.Module:
        """See `ContextualUpstream.make_encoder`."""
        if not isinstance(config, BestRqConfig) or config.blocks == "transformer":
            return super().make_encoder(config)
        return ConformerEncoder(
            ConformerConfig(
                width=config.width,
                depth=config.depth,
                heads=config.heads,
                ffn_width=config.ffn_width,
                kernel=config.block_kernel,
                conv_norm="layer",
                dropout=config.dropout,
                attention_dropout=config.attention_dropout,
                activation_dropout=config.activation_dropout,
                conv_dropout=config.conv_dropout,
            )
        )

    @property
    def log_mel(self) -> LogMel:
        """Makes mel frames of waveforms, before they are normalised."""
        return cast(StackedLogMel, self.frontend).log_mel

    def project(self, features: Tensor) -> Tensor:
        """(B, T, S M), normalised and maybe with noise at hidden frames -> (B, T, D), before dropout."""
        return super().project(features) if self.config.stem == "linear" else self.projection(self.stem(features))


def build(config: BestRqConfig) -> BestRqUpstream:
    """Makes the model with random weights."""
    return BestRqUpstream(config)
