"""Frame labels brought to the frames of an upstream.

B batch, T frames.
"""

from torch import Tensor, arange


def align_codes(codes: Tensor, ratio: float, frames: int) -> Tensor:
    """Picks the label at the beginning of each frame, as fairseq's feat2tar_ratio.

    Args:
        codes: (B, T_label) at `ratio` labels per frame.
        ratio: label rate over frame rate, at least 1.
        frames: T.

    Returns:
        (B, T); the last label is held.
    """
    index = (arange(frames, device=codes.device) * ratio).long().clamp(max=codes.size(1) - 1)
    return codes[:, index]
