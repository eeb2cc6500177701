"""The loss of connectionist temporal classification per unit, as S3PRL's tasks have it.

B batch, T frames, V classes; class 0 is the blank.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from speechssl.decode.ctc import BLANK
from speechssl.types import LossOutput

TOO_SHORT = "too short for its text"
"""Metric: utterances with fewer frames than their labels need, which have neither loss nor gradient."""


def mean_ctc_loss(log_probs: Tensor, frames: Tensor, labels: Sequence[Sequence[int]]) -> LossOutput:
    """Each utterance's negative log-probability per label, summed over utterances.

    Args:
        log_probs: (B, T, V).
        frames: valid ones, (B,) int64.
        labels: of each utterance, from 1 on.

    Returns:
        The sum, to be divided by the number of utterances: then it is torch's `CTCLoss` with reduction 'mean', which
        S3PRL uses (`downstream/asr/expert.py`, `downstream/ctc/expert.py`).

    Paper: Graves et al. 2006, sec. 3, doi:10.1145/1143844.1143891.
    """
    rows = [torch.tensor(row, dtype=torch.int64) for row in labels]
    sizes = torch.tensor([len(row) for row in labels])
    losses = F.ctc_loss(
        log_probs.transpose(0, 1),  # (T, B, V)
        pad_sequence(rows, batch_first=True).to(log_probs.device),
        frames,
        sizes.to(log_probs.device),
        blank=BLANK,
        reduction="none",
        zero_infinity=True,
    )
    total = (losses / sizes.clamp(min=1).to(losses)).sum()
    too_short = sum(fewest_frames(row) > n for row, n in zip(labels, frames.tolist(), strict=True))
    return LossOutput(total, torch.tensor(len(labels)), {TOO_SHORT: torch.tensor(too_short)})


def fewest_frames(labels: Sequence[int]) -> int:
    """Frames that labels need: one for each, and one for the blank between two equal ones."""
    return len(labels) + sum(a == b for a, b in pairwise(labels))
