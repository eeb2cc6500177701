"""APC: recurrent layers over normalised log-mel frames.

B batch, S samples, T frames, M mel bands, D width, L layers.
"""

from torch import Tensor

from speechssl.encoder.gru import GruEncoder
from speechssl.frontend.stacked_log_mel import StackedLogMel
from speechssl.upstream import Upstream
from upstreams.apc.config import ApcConfig


class ApcUpstream(Upstream):
    """An APC or VQ-APC model.

    Hidden state 0 is the normalised log-mel frames, k the output of layer k.

    Paper: Chung et al. 2019, sec. 2, arXiv:1904.03240.
    """

    name = "apc"
    family = "apc"

    def __init__(self, config: ApcConfig) -> None:
        frontend = StackedLogMel(config.num_mel_bins, stack=1, window_type="hamming", correction=1)
        super().__init__(
            sample_rate=16_000,
            frame_rate=16_000 / frontend.hop,
            hidden_sizes=(config.num_mel_bins,) + (config.width,) * config.depth,
        )
        self.config = config
        self.frontend = frontend
        self.encoder = GruEncoder(
            config.num_mel_bins, config.width, depth=config.depth, dropout=config.dropout, residual=config.residual
        )

    def output_lengths(self, lengths: Tensor) -> Tensor:
        """Valid frames for valid samples, both (B,) int64."""
        return self.frontend.output_lengths(lengths)

    def extract_features(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S) -> features (B, T, M) float32, 0 beyond the valid frames, and the number of these, (B,) int64."""
        frames = self.output_lengths(lengths)
        return self.frontend(waveform, lengths)[:, : int(frames.max())], frames

    def encode(self, features: Tensor, *, layers: frozenset[int]) -> dict[int, Tensor]:
        """(B, T, M) -> layer -> (B, T, M or D)."""
        return self.encoder(features.to(next(self.encoder.parameters()).dtype), layers=layers)  # type: ignore[no-any-return]

    def compute(self, waveform: Tensor, lengths: Tensor, layers: frozenset[int]) -> dict[int, Tensor]:
        """See `Upstream.compute`."""
        features, _frames = self.extract_features(waveform, lengths)
        return self.encode(features, layers=layers)

    def fingerprint_config(self) -> str:
        """The whole config."""
        return repr(self.config)


def build(config: ApcConfig) -> ApcUpstream:
    """Makes the model with random weights."""
    return ApcUpstream(config)
