"""Normalisation over the valid frames of each utterance, so that what it is padded with does not matter.

B batch, T frames, C channels.
"""

import torch
from torch import Tensor, nn


def group_norm(x: Tensor, lengths: Tensor, norm: nn.GroupNorm) -> Tensor:
    """Applies a group norm whose statistics are taken over the channels of a group and over the valid frames.

    In float32 whatever the type of `x`; torch's own takes them over the padding too.

    Args:
        x: (B, C, T); finite.
        lengths: valid frames, (B,) int64, at least 1.
        norm: its groups, gain, bias and epsilon.

    Returns:
        (B, C, T) in the type of `x`; frames beyond `lengths` hold arbitrary finite numbers.

    Paper: Wu and He 2018, sec. 3, arXiv:1803.08494.
    """
    B, C, T = x.shape
    grouped = x.float().view(B, norm.num_groups, C // norm.num_groups, T)
    padding = (torch.arange(T, device=x.device)[None, :] >= lengths[:, None])[:, None, None, :]  # (B, 1, 1, T)
    count = (lengths * (C // norm.num_groups))[:, None, None, None]  # (B, 1, 1, 1)
    mean = grouped.masked_fill(padding, 0.0).sum(dim=(2, 3), keepdim=True) / count
    centred = (grouped - mean).masked_fill(padding, 0.0)
    variance = centred.square().sum(dim=(2, 3), keepdim=True) / count
    scale = torch.rsqrt(variance + norm.eps).view(B, -1, 1)  # (B, groups, 1)
    if not norm.affine:
        return (centred.view(B, norm.num_groups, -1) * scale).view(B, C, T).to(x.dtype)
    # Gain and deviation make one factor, and it and the bias one pass.
    scale = scale.repeat_interleave(C // norm.num_groups, dim=1) * norm.weight.float()[:, None]  # (B, C, 1)
    return torch.addcmul(norm.bias.float()[:, None], centred.view(B, C, T), scale).to(x.dtype)
