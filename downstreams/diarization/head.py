"""Heads that say for each frame who speaks.

B batch, T frames, D width, N speakers.
Paper: Yang et al. 2021 (SUPERB), table 1, arXiv:2105.01051; S3PRL `downstream/diarization/model.py`. Fujita et al. 2019
for the loss, sec. 3.3, arXiv:1909.05952.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechssl.head.recurrent import BidirectionalLSTM
from speechssl.lengths import lengths_to_padding_mask
from speechssl.loss.permutation import best_permutation

from .config import DiarizationConfig


class DiarizationHead(nn.Module):
    """Recurrent layers, if any, and a linear layer to N logits; keeps the decision that dev chose."""

    threshold: Tensor
    median: Tensor

    def __init__(self, size: int, *, frame_rate: float, config: DiarizationConfig) -> None:
        """
        Args:
            size: D.
            frame_rate: of the features and of the labels, Hz.
        """
        super().__init__()
        self.frame_rate = frame_rate
        self.ahead: nn.LSTM | None = None
        self.layers = nn.ModuleList()
        width = size
        if config.head == "lstm":
            self.ahead = nn.LSTM(size, config.hidden_size, config.num_layers, batch_first=True)
            width = config.hidden_size
        elif config.head == "blstm":
            for _ in range(config.num_layers):
                self.layers.append(BidirectionalLSTM(width, config.hidden_size))
                width = 2 * config.hidden_size
        self.output = nn.Linear(width, config.num_speakers)
        self.register_buffer("threshold", torch.tensor(0.5))
        self.register_buffer("median", torch.tensor(1))

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        """(B, T, D) and valid frames (B,) -> logits (B, T, N); beyond the valid frames they have no meaning."""
        if self.ahead is not None:
            features = self.ahead(features)[0]
        for layer in self.layers:
            features = layer(features, lengths)
        return self.output(features)  # type: ignore[no-any-return]  # nn.Module returns Any


def permutation_free_loss(logits: Tensor, labels: Tensor, lengths: Tensor) -> Tensor:
    """Binary cross-entropy in the order of speakers that suits each recording best.

    Args:
        logits: (B, T, N).
        labels: 0 or 1, (B, T, N).
        lengths: valid frames, (B,).

    Returns:
        per recording the sum over frames of the mean over speakers, (B,), as S3PRL's `pit_loss`.
    """
    padding = lengths_to_padding_mask(lengths, logits.size(1))[:, :, None]
    logits, labels = logits.float().masked_fill(padding, 0.0), labels.masked_fill(padding, 0.0)
    # -log sigma(x) for label 1 and -log sigma(-x) for 0 are softplus(x) - label x: only the product needs pairs.
    always = F.softplus(logits).masked_fill(padding, 0.0).sum(dim=1)  # (B, N)
    costs = always[:, :, None] - torch.einsum("btn,btm->bnm", logits, labels)  # (B, N outputs, N labels)
    return best_permutation(costs)[0] / logits.size(2)
