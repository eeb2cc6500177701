"""Telling frames of the same utterance from those of other utterances of the batch.

Products of all frames with each other are made, (N, N), and the scores of the sampled ones are looked up in them: one
matrix product, where a copy of 100 vectors per frame would be made and multiplied one by one.
N frames, K others per frame, E width.
Reference: UniSpeech's `unispeech_sat.py` (`sample_instances`, `compute_pred_spk`). There a frame may be drawn as its
own other, since what is shifted is not the frame's index in the batch; here it never is. There all utterances must
hide equally many frames; here any number.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class UtteranceContrast:
    """How well utterances are told apart; sums over the frames, scalars float32."""

    loss_sum: Tensor
    """Of each frame's mean binary cross-entropy over its 1 + K scores."""
    accuracy: Tensor
    """Of each frame's share of scores on the right side of 0."""
    same: Tensor
    """Of each frame's share of scores that are of its own utterance."""


def utterance_contrast(
    context: Tensor,
    targets: Tensor,
    owner: Tensor,
    *,
    number: int,
    temperature: float,
    generator: torch.Generator,
) -> UtteranceContrast:
    """Scores each frame against its own target and those of `number` others, drawn from all frames of the batch.

    Args:
        context: (N, E).
        targets: (N, E).
        owner: the utterance of each frame, (N,) int64.
        number: K, with replacement.
        temperature: divides the cosines, in float32 whatever autocast says.
        generator: on the CPU or the device of the frames.

    Paper: Chen et al. 2022, sec. 3.1, arXiv:2110.05752.
    """
    N = len(owner)
    with torch.autocast(context.device.type, enabled=False):
        left = F.normalize(context.float(), dim=1, eps=1e-8) / temperature
        scores = left @ F.normalize(targets.float(), dim=1, eps=1e-8).T  # (N, N)
    own = torch.arange(N, device=owner.device)
    draw = torch.randint(max(N - 1, 1), (N, number), generator=generator, device=generator.device).to(owner.device)
    other = (draw + (draw >= own[:, None])).clamp(max=N - 1)  # (N, K), never the frame itself
    chosen = torch.cat((own[:, None], other), dim=1)  # (N, 1 + K)
    logits = scores.gather(1, chosen)
    same = (owner[chosen] == owner[:, None]).float()
    loss = F.binary_cross_entropy_with_logits(logits, same, reduction="none").mean(dim=1)
    right = ((logits.detach() >= 0) == (same > 0)).float().mean(dim=1)
    return UtteranceContrast(loss.sum(), right.sum(), same.mean(dim=1).sum())
