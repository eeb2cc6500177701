"""The recurrent CTC head of SUPERB.

B batch, T frames, D width, V classes.
Paper: Yang et al. 2021 (SUPERB), arXiv:2105.01051, table 1; S3PRL `downstream/asr/{model,expert}.py`, module `RNNs`.
"""

from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from speechssl.featurizer.stack import stack_factor, stack_frames

from .config import AsrConfig


class RecurrentHead(nn.Module):
    """Projection, bidirectional LSTM layers with dropout after each, and a linear layer to the classes."""

    def __init__(self, size: int, num_classes: int, *, frame_rate: float, config: AsrConfig) -> None:
        """
        Args:
            size: D of the features.
            num_classes: V, the blank included.
            frame_rate: of the features, Hz; with `config.label_rate` it decides how many frames are stacked.
        """
        super().__init__()
        self.frame_rate = frame_rate
        self.factor = 1 if config.label_rate is None else stack_factor(frame_rate, config.label_rate)
        self.project = nn.Linear(size * self.factor, config.project_size)
        widths = [config.project_size] + [2 * config.hidden_size] * config.num_layers
        self.layers = nn.ModuleList(
            nn.LSTM(width, config.hidden_size, bidirectional=True, batch_first=True) for width in widths[:-1]
        )
        self.dropout = nn.Dropout(config.dropout)
        self.output = nn.Linear(widths[-1], num_classes)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Scores each frame.

        Args:
            features: (B, T, D), 0 beyond `lengths`.
            lengths: valid frames, (B,) int64.

        Returns:
            log-probabilities (B, T', V) and their lengths (B,), T' = ceil(T / factor).
        """
        features, lengths = stack_frames(features, lengths, self.factor)  # (B, T', factor * D)
        states = self.project(features)
        for layer in self.layers:
            packed = pack_padded_sequence(states, lengths.cpu(), batch_first=True, enforce_sorted=False)
            states, _ = pad_packed_sequence(layer(packed)[0], batch_first=True, total_length=states.size(1))
            states = self.dropout(states)
        return self.output(states).float().log_softmax(dim=-1), lengths
