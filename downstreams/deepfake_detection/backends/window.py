"""Utterances of one length, as the protocols of ASVspoof systems have them: what is short is repeated, the rest is cut.

B batch, T frames, D width.
"""

import torch
from torch import Tensor

from speechssl.errors import ConfigError


def window_frames(seconds: float | None, frame_rate: float) -> int | None:
    """Whole frames of a window.

    Args:
        seconds: None = no window.
        frame_rate: Hz.

    Raises:
        ConfigError: it is shorter than a frame.
    """
    if seconds is None:
        return None
    frames = int(seconds * frame_rate)
    if frames < 1:
        raise ConfigError(
            f"`head.window` must hold a frame ({1 / frame_rate:g} s), but is {seconds} s: give more, or null for none."
        )
    return frames


def fit_frames(features: Tensor, lengths: Tensor, *, least: int, window: int | None = None) -> tuple[Tensor, Tensor]:
    """Repeats short utterances from their beginning, and cuts all to the window where there is one.

    Args:
        features: (B, T, D).
        lengths: valid frames, (B,) int64, 1 or more.
        least: frames that every utterance is given.
        window: frames that every utterance has; None = those that it has, but `least`.

    Returns:
        (B, T', D), 0 beyond the new lengths, and these.
    """
    wanted = lengths.clamp(min=least) if window is None else torch.full_like(lengths, max(window, least))
    if torch.equal(wanted, lengths):
        return features, lengths
    at = torch.arange(int(wanted.max()), device=features.device)[None]  # (1, T')
    source = (at % lengths[:, None])[:, :, None].expand(-1, -1, features.size(2))  # (B, T', D)
    inside = (at < wanted[:, None])[:, :, None]
    return features.gather(1, source) * inside, wanted
