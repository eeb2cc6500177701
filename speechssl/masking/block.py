"""Block masks that hide exactly a given fraction of each utterance.

Conventions: `mask` is (B, T) bool, True = the frame is hidden from the encoder. B batch, T frames.
Reference: fairseq `compute_block_mask_1d` with `require_same_masks`, which data2vec 2.0's data loading calls for every
utterance of its own length, once per clone.
"""

import torch
from torch import Tensor

from speechssl.errors import SpeechsslError


def sample_block_mask(
    lengths: Tensor,
    *,
    prob: float,
    block: int,
    adjust: float = 0.0,
    generator: torch.Generator,
    max_length: int | None = None,
) -> Tensor:
    """Hides blocks around random frames, and then exactly floor(prob * n) of the n frames of each utterance.

    The centres of floor(n * (prob + adjust) / block) blocks are drawn with replacement; blocks may overlap and end with
    the utterance. Of too many hidden frames some are uncovered at random, with too few others are hidden at random.

    Args:
        lengths: valid frames per utterance, (B,) int64, on the generator's device.
        prob: fraction of hidden frames.
        block: frames.
        adjust: added to `prob` for the number of blocks, since they overlap.
        max_length: T; None = lengths.max().

    Returns:
        (B, T) bool; frames at or beyond `lengths` are False.

    Paper: Baevski et al. 2022, sec. 3.3, arXiv:2212.07525; of images the blocks stay visible, of speech they hide.
    """
    if not 0 <= prob < 1 or block < 1 or prob + adjust < 0:
        raise SpeechsslError(
            f"Block masks need 0 <= prob < 1, block >= 1, prob + adjust >= 0, but got {prob}, {block}, {adjust}."
        )
    B, device = lengths.size(0), lengths.device
    size = int(lengths.max()) if max_length is None else max_length
    most = int(size * ((prob + adjust) / block))
    # In float64, as Python counts: 0.55 * 100 is a little more than 55 there.
    blocks = (lengths.double() * ((prob + adjust) / block)).long()  # (B,)
    draws = torch.rand(B, most, generator=generator, device=device)
    centres = (draws * lengths[:, None]).long().minimum(lengths[:, None] - 1)  # (B, most)
    drawn = (torch.arange(most, device=device) < blocks[:, None]).float()
    hits = torch.zeros(B, size, device=device).scatter_add_(1, centres, drawn)
    padded = torch.nn.functional.pad(hits, (block - 1 - block // 2, block // 2))
    covered = torch.nn.functional.max_pool1d(padded[:, None], block, stride=1)[:, 0] > 0  # (B, T)
    inside = torch.arange(size, device=device) < lengths[:, None]
    # The hidden frames come first, then the other ones, then the padding; at random among themselves.
    order = torch.rand(B, size, generator=generator, device=device) + (~covered).float() + 4.0 * (~inside).float()
    rank = torch.empty(B, size, dtype=torch.long, device=device)
    rank.scatter_(1, order.argsort(dim=1), torch.arange(size, device=device).expand(B, size))
    return (rank < hidden_frames(lengths, prob)[:, None]) & inside


def hidden_frames(lengths: Tensor, prob: float) -> Tensor:
    """How many of `lengths` frames are hidden, (B,) int64."""
    return (lengths.double() * prob).long()
