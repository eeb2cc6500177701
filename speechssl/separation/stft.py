"""A short-time Fourier transform of padded batches with an exact inverse.

B batch (any leading dimensions), S samples, T frames, F bins.

Frame j is centred at sample j hop; zeros lie beyond both ends. There are ceil(S / hop) + 1 frames, so that the last
centre lies at or beyond the last sample: every sample is covered on both sides, and the inverse is exact to the end.
librosa and torch have floor(S / hop) + 1: where the hop is more than half a window, the end is then covered by no
frame, or hardly; S3PRL's `postprocess` silences the impulses that this leaves. Neither frames nor samples of an
utterance depend on what it is padded with.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from speechssl.errors import ConfigError
from speechssl.lengths import lengths_to_padding_mask

WIDEST_HOP = 0.75
"""Of the window: beyond, the squares of Hann windows leave gaps between them that amplify errors."""


def choose_hop(*, stride: float, win_length: int) -> int:
    """The hop that matches features which are `stride` samples apart.

    That is `stride`, as in S3PRL's `separation_stft2`; or, where the window is too short for it, the stride over the
    least whole number for which it is not.
    """
    parts = 1
    while stride / parts > WIDEST_HOP * win_length:
        parts += 1
    return max(1, round(stride / parts))


def check_window(*, n_fft: int, win_length: int, hop_length: int | None) -> None:
    """Raises a ConfigError where the transform would have no exact inverse."""
    widest = WIDEST_HOP * win_length
    if not 2 <= win_length <= n_fft or (hop_length is not None and not 1 <= hop_length <= widest):
        raise ConfigError(
            f"`n_fft` must be at least `win_length`, and `hop_length` at most {widest:g} samples (3/4 of the window), "
            f"but they are {n_fft}, {win_length} and {hop_length}."
        )


def count_frames(lengths: Tensor, hop: int) -> Tensor:
    """Frames of waveforms of `lengths` samples, (B,) int64."""
    return torch.div(lengths + hop - 1, hop, rounding_mode="floor") + 1


def stft(waveform: Tensor, lengths: Tensor, *, n_fft: int, win_length: int, hop: int) -> Tensor:
    """Transforms a batch with a periodic Hann window.

    Args:
        waveform: (B, ..., S); what lies beyond `lengths` is ignored.
        lengths: valid samples, (B,) int64.

    Returns:
        (B, ..., T, F) complex, 0 beyond `count_frames`.
    """
    frames = count_frames(lengths, hop)
    total = int(frames.max())
    padding = lengths_to_padding_mask(lengths, waveform.size(-1))
    waveform = waveform.masked_fill(_expand(padding, waveform.dim()), 0.0)
    room = (total - 1) * hop + n_fft - n_fft // 2
    flat = F.pad(waveform, (n_fft // 2, room - waveform.size(-1))).flatten(0, -2)  # (*, room + n_fft / 2)
    window = _window(win_length, n_fft, waveform)
    spectrum = torch.stft(flat, n_fft, hop, n_fft, window, center=False, return_complex=True).transpose(1, 2)
    spectrum = spectrum.view(*waveform.shape[:-1], *spectrum.shape[1:])  # (B, ..., T, F)
    beyond = lengths_to_padding_mask(frames, total)
    return spectrum.masked_fill(_expand(beyond, waveform.dim())[..., None], 0.0)


def istft(spectrum: Tensor, lengths: Tensor, *, n_fft: int, win_length: int, hop: int) -> Tensor:
    """The waveform whose transform is nearest to `spectrum` in the sense of least squares; the inverse of `stft`.

    Args:
        spectrum: (B, ..., T, F) complex; frames beyond `count_frames` are ignored.
        lengths: samples wanted, (B,) int64.

    Returns:
        (B, ..., S) with S = lengths.max(), 0 beyond `lengths`.

    Paper: Griffin and Lim 1984, "Signal estimation from modified short-time Fourier transform", eq. 6.
    """
    frames = count_frames(lengths, hop)
    total = int(frames.max())
    valid = ~lengths_to_padding_mask(frames, total)  # (B, T)
    window = _window(win_length, n_fft, spectrum.real)
    pieces = torch.fft.irfft(spectrum[..., :total, :], n=n_fft) * window  # (B, ..., T, n_fft)
    pieces = pieces * _expand(valid, pieces.dim() - 1)[..., None]
    squares = valid[:, :, None] * window.square()  # (B, T, n_fft)
    size = int(lengths.max())
    added, norm = _overlap_add(pieces, hop, n_fft, size), _overlap_add(squares, hop, n_fft, size)
    padding = lengths_to_padding_mask(lengths, size)
    norm = norm.masked_fill(padding, 1.0)
    return (added / _expand(norm, added.dim())).masked_fill(_expand(padding, added.dim()), 0.0)


def _overlap_add(pieces: Tensor, hop: int, n_fft: int, size: int) -> Tensor:
    """(B, ..., T, n_fft) -> (B, ..., size), from the first centre on."""
    total = pieces.size(-2)
    flat = pieces.flatten(0, -3).transpose(1, 2)  # (*, n_fft, T)
    added = F.fold(flat, (1, (total - 1) * hop + n_fft), (1, n_fft), stride=(1, hop))[:, 0, 0]
    return added[:, n_fft // 2 : n_fft // 2 + size].view(*pieces.shape[:-2], size)


def _window(win_length: int, n_fft: int, like: Tensor) -> Tensor:
    """(n_fft,), the Hann window in its middle."""
    left = (n_fft - win_length) // 2
    window = torch.hann_window(win_length, dtype=like.dtype, device=like.device)
    return F.pad(window, (left, n_fft - win_length - left))


def _expand(values: Tensor, dimensions: int) -> Tensor:
    """(B, X) -> (B, 1, ..., 1, X) of as many dimensions."""
    return values.view(len(values), *[1] * (dimensions - 2), values.size(1))
