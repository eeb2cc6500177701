"""Log-mel energies brought to the range of a corpus by two fixed numbers.

B batch, S samples, T frames, M mel bands.
"""

from torch import Tensor, nn

from speechssl.frontend.log_mel import LogMel, LogMelConfig


class ScaledLogMel(nn.Module):
    """Kaldi's log-mel energies, minus a mean, divided by twice a deviation.

    Paper: Gong et al. 2021 (AST), sec. 2.1, arXiv:2104.01778: 0 mean and 0.5 deviation over the corpus.
    """

    def __init__(self, config: LogMelConfig, *, mean: float, deviation: float, gain: float = 1.0) -> None:
        """
        Args:
            mean: of the corpus's log energies.
            deviation: of the corpus's log energies.
            gain: of the waveform; 2 ** 15 where the statistics were taken of 16-bit integers.
        """
        super().__init__()
        self.log_mel = LogMel(config)
        self.mean, self.deviation, self.gain = mean, deviation, gain
        self.hop = config.hop
        self.width = config.num_mel_bins

    def output_lengths(self, lengths: Tensor) -> Tensor:
        """Valid frames for valid samples, both (B,) int64."""
        return self.log_mel.output_lengths(lengths)

    def forward(self, waveform: Tensor, lengths: Tensor) -> Tensor:  # noqa: ARG002  # no frame needs its utterance's end
        """(B, S) in [-1, 1] -> (B, T, M), float32."""
        energy: Tensor = self.log_mel(waveform * self.gain)
        return (energy - self.mean) / (2.0 * self.deviation)
