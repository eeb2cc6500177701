"""NPC: convolution blocks over normalised log-mel frames, and a masked view of them.

B batch, S samples, T frames, M mel bands, D width, L convolution blocks.
"""

from torch import Tensor

from speechssl.encoder.masked_conv import MaskedConvConfig, MaskedConvEncoder
from speechssl.frontend.stacked_log_mel import StackedLogMel
from speechssl.lengths import lengths_to_padding_mask
from speechssl.upstream import Upstream
from upstreams.npc.config import NpcConfig


class NpcUpstream(Upstream):
    """An NPC model.

    Hidden state 0 is the normalised log-mel frames, 1 to L the outputs of the convolution blocks, and L + 1 the sum of
    what the masked convolutions see of them, from which the frame is predicted.

    Paper: Liu et al. 2021, sec. 2, arXiv:2011.00406.
    """

    name = "npc"
    family = "npc"

    def __init__(self, config: NpcConfig) -> None:
        frontend = StackedLogMel(config.num_mel_bins, stack=1, window_type="hamming", correction=1)
        super().__init__(
            sample_rate=16_000,
            frame_rate=16_000 / frontend.hop,
            hidden_sizes=(config.num_mel_bins,) + (config.width,) * (config.depth + 1),
        )
        self.config = config
        self.frontend = frontend
        self.encoder = MaskedConvEncoder(
            config.num_mel_bins,
            MaskedConvConfig(
                width=config.width,
                depth=config.depth,
                kernel=config.kernel,
                mask_size=config.mask_size,
                dropout=config.dropout,
                residual=config.residual,
                batch_norm=config.batch_norm,
                activation=config.activation,
                cross_layer=config.cross_layer,
            ),
        )

    def output_lengths(self, lengths: Tensor) -> Tensor:
        """Valid frames for valid samples, both (B,) int64."""
        return self.frontend.output_lengths(lengths)

    def extract_features(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S) -> features (B, T, M) float32, 0 beyond the valid frames, and the number of these, (B,) int64."""
        frames = self.output_lengths(lengths)
        return self.frontend(waveform, lengths)[:, : int(frames.max())], frames

    def encode(self, features: Tensor, frames: Tensor, *, layers: frozenset[int]) -> dict[int, Tensor]:
        """(B, T, M), 0 beyond the valid `frames` (B,) -> layer -> (B, T, M or D)."""
        padding_mask = None
        if int(frames.min()) < features.size(1):
            padding_mask = lengths_to_padding_mask(frames, features.size(1))  # (B, T)
        dtype = next(self.encoder.parameters()).dtype
        return self.encoder(features.to(dtype), padding_mask, layers=layers)  # type: ignore[no-any-return]

    def compute(self, waveform: Tensor, lengths: Tensor, layers: frozenset[int]) -> dict[int, Tensor]:
        """See `Upstream.compute`."""
        return self.encode(*self.extract_features(waveform, lengths), layers=layers)

    def fingerprint_config(self) -> str:
        """The whole config."""
        return repr(self.config)


def build(config: NpcConfig) -> NpcUpstream:
    """Makes the model with random weights."""
    return NpcUpstream(config)
