"""Telling the target of a hidden frame from those of all frames of the utterance, hidden or not.

B batch, T frames, N hidden frames of the batch, M the most of an utterance, K distractors, D width, G codebooks.
Reference: `compute_preds` and `sample_negatives` of the official wav2vec2_s1.py with `--negatives-from-everywhere`.
There a distractor's place in time is compared with the target's place among the hidden frames, so that it may be the
target's own frame, and it may be a frame of the padding; here it is neither.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from speechssl.loss.contrastive import HiddenFrames


def contrast_everywhere(
    context: Tensor,
    targets: Tensor,
    target_codes: Tensor,
    candidates: Tensor,
    codes: Tensor,
    *,
    hidden: HiddenFrames,
    distractors: Tensor,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the target among the distractors, by cosine over temperature, in float32.

    All products of an utterance's hidden frames with its candidates are made, and the distractors' looked up in them.
    Distractors whose codes are those of the target are left out.

    Args:
        context: (N, D), what was predicted.
        targets: (N, D), what the hidden frames are to be recognised by.
        target_codes: (N, G) int64, from which `targets` were made.
        candidates: (B, T, D), what all frames are recognised by.
        codes: (B, T, G) int64, from which they were made.
        distractors: (N, K) int64, frames of the same utterance.

    Returns:
        The sum over the N frames, and how many have the highest score at the target; scalar float32.

    Paper: Wang et al. 2021, eq. 2, arXiv:2101.07597.
    """
    with torch.autocast(context.device.type, enabled=False):
        left = F.normalize(context.float(), dim=1, eps=1e-8) / temperature  # (N, D)
        positive = (left * F.normalize(targets.float(), dim=1, eps=1e-8)).sum(dim=1)  # (N,)
        right = F.normalize(candidates.float(), dim=2, eps=1e-8)
        rows = hidden.gather(hidden.spread(left) @ right.transpose(1, 2))  # (N, T)
    same = torch.ones((), dtype=torch.bool, device=codes.device)
    for wanted, group in zip(hidden.spread(target_codes).unbind(dim=2), codes.unbind(dim=2), strict=True):
        same = same & (wanted[:, :, None] == group[:, None, :])  # (B, M, T)
    negative = rows.masked_fill(hidden.gather(same), -torch.inf).gather(1, distractors)  # (N, K)
    logits = torch.cat((positive[:, None], negative), dim=1)
    loss = (logits.logsumexp(dim=1) - positive).sum()
    with torch.no_grad():
        # As fairseq: a frame whose scores are all alike is not recognised.
        correct = (positive >= negative.amax(dim=1)) & (positive > negative.amin(dim=1))
    return loss, correct.sum().float()
