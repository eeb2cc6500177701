"""What every measure asks of the frames that it is given."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from speechssl.errors import SpeechsslError

Frames = Tensor | NDArray[np.float32] | NDArray[np.float64]
"""(N, D): one row per frame, segment or utterance."""


def as_rows(frames: Frames, name: str, *, width: int | None = None) -> Tensor:
    """(N, D) on the CPU, in float64 where it comes so and in float32 otherwise.

    Args:
        name: what errors call it.
        width: D that is asked for; None = any.

    Raises:
        SpeechsslError: another shape, or numbers that are not finite.
    """
    rows = torch.as_tensor(frames).detach().cpu()
    if rows.dim() != 2 or rows.size(1) < 1:
        raise SpeechsslError(f"`{name}` must be (frames, width), but has shape {tuple(rows.shape)}.")
    if width is not None and rows.size(1) != width:
        raise SpeechsslError(f"`{name}` must have {width} columns as before, but has {rows.size(1)}.")
    rows = rows if rows.dtype == torch.float64 else rows.float()
    if not bool(torch.isfinite(rows).all()):
        raise SpeechsslError(f"`{name}` holds numbers that are not finite: has the model diverged?")
    return rows
