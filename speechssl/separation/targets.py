"""What masks are trained towards, how the frames of an upstream meet those of the transform, and the loss.

B batch, N sources, T frames of the transform, T' of the upstream, F bins, D width.
Paper: Kolbaek et al. 2017, sec. II and III, arXiv:1703.06284; S3PRL `downstream/separation_stft2/loss.py`.
"""

from typing import Literal

import torch
from torch import Tensor

from speechssl.lengths import lengths_to_padding_mask
from speechssl.loss.permutation import best_permutation

Target = Literal["am", "psm", "npsm"]
"""Of each source: 'am' its magnitude; 'psm' its part in phase with the mixture; 'npsm' the same where it is not
negative, else 0."""
Compression = Literal["none", "log1p"]
Distance = Literal["mse", "l1"]


def align_frames(
    features: Tensor, lengths: Tensor, *, frame_rate: float, hop: int, sample_rate: int, frames: Tensor
) -> Tensor:
    """Gives each frame of the transform the upstream's frame within whose stride its centre lies.

    Frame j is centred at j hop samples, frame i of the upstream reaches from i to i + 1 strides. With a hop of one
    stride that is the frame of the same number, as in S3PRL's `separation_stft2`, with half a stride each frame twice,
    as in its `enhancement_stft2`; any other rates work alike. Where the upstream has no frame left, its last one is
    taken (S3PRL: zeros).

    Args:
        features: (B, T', D).
        lengths: valid frames of the upstream, (B,).
        frame_rate: of the upstream, Hz.
        frames: valid frames of the transform, (B,).

    Returns:
        (B, T, D) with T = frames.max(), 0 beyond `frames`.
    """
    total = int(frames.max())
    times = torch.arange(total, dtype=torch.float64) * (hop * frame_rate / sample_rate)
    wanted = torch.floor(times + 1e-6).long().to(features.device)[None, :]  # (1, T)
    index = torch.minimum(wanted, lengths[:, None] - 1)  # (B, T)
    aligned = features.gather(1, index[:, :, None].expand(-1, -1, features.size(2)))
    return aligned.masked_fill(lengths_to_padding_mask(frames, total)[:, :, None], 0.0)


def target_magnitudes(sources: Tensor, mixture: Tensor, kind: Target) -> Tensor:
    """What each source contributes to the magnitude of the mixture.

    Args:
        sources: (B, N, T, F) complex.
        mixture: (B, T, F) complex; where it is 0, its phase is.

    Returns:
        (B, N, T, F).
    """
    if kind == "am":
        return sources.abs()
    magnitude = mixture.abs()
    phase = torch.where(magnitude > 0, mixture / magnitude.clamp(min=1e-20), 1.0)
    # |s| cos(angle between s and x) is the real part of s times the conjugate of x's phase.
    inside = (sources * phase.conj()[:, None]).real
    return inside if kind == "psm" else inside.clamp(min=0.0)


def compress(magnitudes: Tensor, kind: Compression) -> Tensor:
    """The scale on which masks are multiplied and compared."""
    return torch.log1p(magnitudes) if kind == "log1p" else magnitudes


def expand(magnitudes: Tensor, kind: Compression) -> Tensor:
    """The inverse of `compress`."""
    return torch.expm1(magnitudes) if kind == "log1p" else magnitudes


def apply_masks(masks: Tensor, mixture: Tensor, compression: Compression) -> Tensor:
    """(B, N, T, F) masks of a mixture (B, T, F) complex -> sources (B, N, T, F) complex, with the mixture's phase."""
    magnitude = mixture.abs()
    phase = mixture / magnitude.clamp(min=1e-20)
    return expand(masks * compress(magnitude, compression)[:, None], compression) * phase[:, None]


def mask_loss(masks: Tensor, mixture: Tensor, targets: Tensor, frames: Tensor, *, distance: Distance) -> Tensor:
    """The distance between masked mixture and targets, in the order that suits each utterance best.

    Args:
        masks: (B, N, T, F).
        mixture: compressed magnitudes, (B, T, F).
        targets: compressed magnitudes, (B, N, T, F).
        frames: valid frames, (B,).

    Returns:
        per utterance the sum over bins, per frame and source, (B,).
    """
    padding = lengths_to_padding_mask(frames, masks.size(2))[:, None, :, None]
    estimates = (masks.float() * mixture[:, None]).masked_fill(padding, 0.0)
    targets = targets.masked_fill(padding, 0.0)
    costs = torch.stack([_distances(one, targets, distance) for one in estimates.unbind(1)], dim=1)  # (B, N, N)
    return best_permutation(costs)[0] / (frames * masks.size(1))


def _distances(estimate: Tensor, targets: Tensor, distance: Distance) -> Tensor:
    """(B, T, F) and (B, N, T, F) -> (B, N)."""
    difference = estimate[:, None] - targets
    return (difference.square() if distance == "mse" else difference.abs()).sum(dim=(2, 3))
