"""Telling the target of a hidden frame from those of other hidden frames of the utterance.

Only products of all hidden frames of an utterance with each other are made, (M, M), and the distractors' scores are
looked up in them: 100 distractors cost M rather than 100 products per frame as vectors, and no copy of vectors.
B batch, T frames, N hidden frames of the batch, M the most of an utterance, K distractors, E width, G codebooks.
Reference: fairseq `models/wav2vec/wav2vec2.py` (`sample_negatives`, `compute_preds`), `wav2vec_criterion.py`.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class HiddenFrames:
    """Where the hidden frames of a batch are."""

    index: Tensor
    """Of each in the flattened batch, (N,) int64, in order of utterance and time."""
    slot: Tensor
    """Of each in a flattened (B, M), (N,) int64."""
    counts: Tensor
    """Per utterance, (B,) int64."""
    most: int
    """M."""

    @classmethod
    def of(cls, mask: Tensor) -> "HiddenFrames":
        """Of a mask (B, T) bool, True = hidden."""
        index = mask.flatten().nonzero().squeeze(1)  # (N,)
        counts = mask.sum(dim=1)
        most = int(counts.max())
        rank = (mask.cumsum(dim=1) - 1).flatten()[index]
        return cls(index, index // mask.size(1) * most + rank, counts, most)

    def select(self, x: Tensor) -> Tensor:
        """(B, T, *) -> (N, *)."""
        return x.flatten(0, 1).index_select(0, self.index)

    def spread(self, x: Tensor) -> Tensor:
        """(N, *) -> (B, M, *), 0 where an utterance has fewer."""
        size = len(self.counts) * self.most
        if len(x) != size:
            x = x.new_zeros(size, *x.shape[1:]).index_copy(0, self.slot, x)
        return x.view(-1, self.most, *x.shape[1:])

    def gather(self, x: Tensor) -> Tensor:
        """(B, M, *) -> (N, *), the inverse of `spread`."""
        flat = x.flatten(0, 1)
        return flat if len(flat) == len(self.slot) else flat.index_select(0, self.slot)


def sample_distractors(frames: HiddenFrames, number: int, *, generator: torch.Generator) -> Tensor:
    """Draws other hidden frames of the same utterance, each uniformly, with replacement.

    Args:
        number: K.
        generator: on the CPU or the device of the frames.

    Returns:
        (N, K) int64, ranks within the utterance's hidden frames; where an utterance has but one, that one.

    Paper: Baevski et al. 2020, sec. 3.2, arXiv:2006.11477.
    """
    own = frames.slot % frames.most  # (N,)
    others = (frames.counts - 1).repeat_interleave(frames.counts, output_size=len(own))  # (N,)
    draw = torch.rand(len(own), number, generator=generator, device=generator.device).to(own.device)
    rank = torch.minimum((draw * others[:, None]).long(), (others[:, None] - 1).clamp(min=0))
    return torch.where((rank >= own[:, None]) & (others[:, None] > 0), rank + 1, rank)


def contrastive_loss(
    context: Tensor,
    targets: Tensor,
    codes: Tensor,
    frames: HiddenFrames,
    distractors: Tensor,
    *,
    temperature: float,
    clusters: Tensor | None = None,
    cluster_scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the target among the distractors, by cosine over temperature, in float32.

    Distractors whose codes are those of the target are left out, as fairseq leaves out those with equal vectors.

    Args:
        context: (N, E), what was predicted.
        targets: (N, E), what the frames are to be recognised by.
        codes: (N, G) int64, from which `targets` were made.
        distractors: (N, K) from `sample_distractors`.
        clusters: (N,) int64; the scores of distractors that share the target's are multiplied by `cluster_scale`.

    Returns:
        The sum over the N frames, and how many have the highest score at the target; scalar float32.

    Paper: Baevski et al. 2020, eq. 3, arXiv:2006.11477; for clusters Lodagala et al. 2022, arXiv:2210.02592.
    """
    with torch.autocast(context.device.type, enabled=False):
        left = frames.spread(F.normalize(context.float(), dim=1, eps=1e-8) / temperature)  # (B, M, E)
        right = frames.spread(F.normalize(targets.float(), dim=1, eps=1e-8))
        scores = left @ right.transpose(1, 2)  # (B, M, M)
    positive = frames.gather(scores.diagonal(dim1=1, dim2=2))  # (N,)
    rows = frames.gather(scores)  # (N, M)
    if clusters is not None:
        rows = torch.where(_equal(clusters[:, None], frames), cluster_scale * rows, rows)
    rows = rows.masked_fill(_equal(codes, frames), -torch.inf)
    negative = rows.gather(1, distractors)  # (N, K)
    logits = torch.cat((positive[:, None], negative), dim=1)
    loss = (logits.logsumexp(dim=1) - positive).sum()
    with torch.no_grad():
        # As fairseq: a frame whose scores are all alike is not recognised.
        correct = (positive >= negative.amax(dim=1)) & (positive > negative.amin(dim=1))
    return loss, correct.sum().float()


def _equal(codes: Tensor, frames: HiddenFrames) -> Tensor:
    """Which hidden frames of the same utterance have equal codes: (N, G) -> (N, M) bool."""
    spread = frames.spread(codes + 1)  # (B, M, G), 0 where there is no frame
    same = torch.ones((), dtype=torch.bool, device=codes.device)
    for group in spread.unbind(dim=2):
        same = same & (group[:, :, None] == group[:, None, :])  # (B, M, M)
    return frames.gather(same)


def diversity_loss(probability: Tensor, count: Tensor) -> Tensor:
    """How far the average choice is from using all entries: (G * V - perplexity) / (G * V), scalar float32 in [0, 1).

    Args:
        probability: (G, V), summed over frames.
        count: number of frames, scalar.

    Paper: Baevski et al. 2020, eq. 4, arXiv:2006.11477, by perplexities instead of entropies, as fairseq does.
    """
    average = probability.float() / count
    entropy = -(average * torch.log(average + 1e-7)).sum(dim=1)  # (G,)
    return (probability.numel() - entropy.exp().sum()) / probability.numel()
