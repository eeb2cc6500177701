"""Connectionist temporal classification of padded batches.

B batch, T frames, U tokens, V entries of the vocabulary, of which 0 is the blank.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

BLANK = 0


def ctc_loss(logits: Tensor, frames: Tensor, tokens: Tensor, token_lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Sums the negative logarithm of the transcripts' probabilities, in float32 whatever autocast says.

    Args:
        logits: (B, T, V).
        frames: valid ones, (B,) int64.
        tokens: (B, U) int64 from 1 on; what stands beyond `token_lengths` does not matter.
        token_lengths: (B,) int64.

    Returns:
        The sum over the utterances, and how many have too few frames for their transcript, which add neither loss nor
        gradient; scalar float32.

    Paper: Graves et al. 2006, sec. 3, doi:10.1145/1143844.1143891.
    """
    with torch.autocast(logits.device.type, enabled=False):
        probability = logits.float().log_softmax(dim=2).transpose(0, 1)  # (T, B, V)
        loss = F.ctc_loss(probability, tokens, frames, token_lengths, blank=BLANK, reduction="sum", zero_infinity=True)
    return loss, (frames < fewest_frames(tokens, token_lengths)).sum().float()


def fewest_frames(tokens: Tensor, token_lengths: Tensor) -> Tensor:
    """Frames that transcripts need: one for each token, and one for the blank between equal neighbours, (B,) int64."""
    second = torch.arange(1, tokens.size(1), device=tokens.device)
    repeated = (tokens[:, 1:] == tokens[:, :-1]) & (second < token_lengths[:, None])
    return token_lengths + repeated.sum(dim=1)
