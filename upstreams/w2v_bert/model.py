"""w2v-BERT: log-mel frames and a conformer.

B batch, S samples, T frames, M mel bands, D width.
"""

import torch
from torch import Tensor, nn

from speechssl.encoder.conformer import ConformerConfig, ConformerEncoder
from speechssl.encoder.linear import Linear
from speechssl.frontend.log_mel import LogMel, LogMelConfig
from speechssl.lengths import lengths_to_padding_mask
from speechssl.upstream import Upstream
from upstreams.w2v_bert.config import W2vBertConfig

GAIN = 2.0**15
"""The filterbank was computed on 16-bit integers, which decides where its floor lies."""
EPS = 1e-7
"""Added to the variance of each mel band."""


class StandardisedLogMel(nn.Module):
    """Log-mel energies, each band brought to zero mean and unit variance over the utterance, several frames in one.

    As transformers' SeamlessM4TFeatureExtractor and fairseq2's WaveformToFbankConverter do, with statistics in float64,
    where rounding does not show in a band that hardly varies. Frames left over at the end are dropped, once they have
    been counted in the statistics.
    """

    def __init__(self, num_mel_bins: int, *, stack: int) -> None:
        super().__init__()
        self.stack = stack
        self.width = num_mel_bins * stack
        self.log_mel = LogMel(LogMelConfig(num_mel_bins=num_mel_bins, double=True))
        self.hop = self.log_mel.options.hop * stack  # samples from one frame to the next

    def output_lengths(self, lengths: Tensor) -> Tensor:
        """Valid frames for valid samples, both (B,) int64."""
        return torch.div(self.log_mel.output_lengths(lengths), self.stack, rounding_mode="floor")

    def forward(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        """(B, S) in [-1, 1] -> (B, T, stack M), float32; frames beyond `output_lengths(lengths)` are arbitrary."""
        energy = self.log_mel(waveform * GAIN).double()  # (B, stack T, M)
        count = self.log_mel.output_lengths(lengths)
        padding = lengths_to_padding_mask(count, energy.size(1))[:, :, None]  # (B, stack T, 1)
        mean = energy.masked_fill(padding, 0.0).sum(dim=1, keepdim=True) / count[:, None, None]
        centred = (energy - mean).masked_fill(padding, 0.0)
        variance = centred.square().sum(dim=1, keepdim=True) / (count - 1).clamp(min=1)[:, None, None]
        features: Tensor = (centred * torch.rsqrt(variance + EPS)).float()
        frames = features.size(1) // self.stack
        return features[:, : frames * self.stack].reshape(features.size(0), frames, self.width)


class W2vBertUpstream(Upstream):
    """A w2v-BERT model.

    Paper: Chung et al. 2021, sec. 3, arXiv:2108.06209.
    """

    name = "w2v_bert"
    family = "w2v_bert"

    def __init__(self, config: W2vBertConfig) -> None:
        frontend = StandardisedLogMel(config.num_mel_bins, stack=config.stack)
        super().__init__(
            sample_rate=config.sample_rate,
            frame_rate=config.sample_rate / frontend.hop,
            hidden_sizes=(config.width,) * (config.depth + 1),
        )
        self.config = config
        self.frontend = frontend
        self.feature_norm = nn.LayerNorm(frontend.width)
        self.projection = Linear(frontend.width, config.width)
        self.input_dropout = nn.Dropout(config.input_dropout)
        self.mask_embedding = nn.Parameter(torch.rand(config.width))
        self.encoder = ConformerEncoder(
            ConformerConfig(
                width=config.width,
                depth=config.depth,
                heads=config.heads,
                ffn_width=config.ffn_width,
                positions=config.positions,
                limits=(config.left_limit, config.right_limit),
                kernel=config.block_kernel,
                causal=config.causal,
                conv_norm=config.block_norm,
                closing_norm=False,
                dropout=config.dropout,
                attention_dropout=config.attention_dropout,
                activation_dropout=config.activation_dropout,
                conv_dropout=config.conv_dropout,
            )
        )

    def output_lengths(self, lengths: Tensor) -> Tensor:
        """Valid frames for valid samples, both (B,) int64."""
        return self.frontend.output_lengths(lengths)

    def extract_features(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Runs the frontend: (B, S) and (B,) -> features (B, T, stack M) and valid frames (B,), T = frames.max()."""
        frames = self.output_lengths(lengths)
        features = self.frontend(waveform, lengths)[:, : int(frames.max())]
        return features.to(self.mask_embedding.dtype), frames

    def encode(
        self,
        features: Tensor,
        frames: Tensor,
        *,
        layers: frozenset[int],
        mask: Tensor | None = None,
        skipped_blocks: frozenset[int] = frozenset(),
    ) -> dict[int, Tensor]:
        """Normalises, projects, hides the masked frames and encodes; see `ContextualUpstream.encode`."""
        x = self.input_dropout(self.projection(self.feature_norm(features)))  # (B, T, D)
        if mask is not None:
            x = torch.where(mask[:, :, None], self.mask_embedding.to(x.dtype), x)
        padded = int(frames.min()) < features.size(1)
        padding_mask = lengths_to_padding_mask(frames, features.size(1)) if padded else None
        return self.encoder(x, padding_mask, layers=layers, skipped_blocks=skipped_blocks)  # type: ignore[no-any-return]

    def compute(self, waveform: Tensor, lengths: Tensor, layers: frozenset[int]) -> dict[int, Tensor]:
        """See `Upstream.compute`."""
        features, frames = self.extract_features(waveform, lengths)
        return self.encode(features, frames, layers=layers)

    def fingerprint_config(self) -> str:
        """The whole config: its training-only fields don't change features, but neither do they change often."""
        return repr(self.config)


def build(config: W2vBertConfig) -> W2vBertUpstream:
    """Makes the model with random weights."""
    return W2vBertUpstream(config)
