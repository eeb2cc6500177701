"""What all quantizers with codebooks of vectors share; in float32, whatever autocast says.

N frames, D width, G codebooks, V entries per codebook.
"""

import torch
from torch import Tensor

from speechssl.errors import ConfigError, SpeechsslError
from speechssl.metric.tallies import usage
from speechssl.quantizer.base import QuantizerOutput
from speechssl.targets.kmeans import nearest
from speechssl.targets.lloyd import KMeansConfig, fit_kmeans


def nearest_codes(frames: Tensor, codebook: Tensor) -> Tensor:
    """The nearest entry of each frame by squared distance: (N, D) and (V, D) -> (N,) int64."""
    with torch.no_grad(), torch.autocast(frames.device.type, enabled=False):
        return nearest(frames.detach().float(), codebook.detach().float())[0]


def fitted_entries(frames: Tensor, entries: int, *, generator: torch.Generator) -> Tensor:
    """k-means centroids of frames: (N, D) with N >= V -> (V, D) float32; the generator is on the CPU."""
    with torch.autocast(frames.device.type, enabled=False):
        return fit_kmeans(frames.detach().float(), KMeansConfig(entries), generator=generator)[0].centroids


def straight_through(frames: Tensor, quantized: Tensor) -> Tensor:
    """The quantized vectors, bit for bit, whose gradient goes to the frames as if nothing had been done to them.

    Paper: Bengio et al. 2013, sec. 2.3, arXiv:1308.3432; van den Oord et al. 2017, sec. 3.2, arXiv:1711.00937.
    """
    return quantized.detach() + (frames - frames.detach())


def summed_error(left: Tensor, right: Tensor) -> Tensor:
    """Mean square over D, summed over the frames: two (N, D) -> scalar float32."""
    return (left.float() - right.float()).square().mean(dim=1).sum()


def output(quantized: Tensor, codes: Tensor, loss: Tensor | None, *, entries: int) -> QuantizerOutput:
    """What becomes of frames that were assigned to one entry each.

    Args:
        quantized: (N, D').
        codes: (N, G) int64.
        loss: scalar, None = 0.
        entries: V.
    """
    with torch.no_grad():
        counts = usage(codes, entries)  # (G, V)
    return QuantizerOutput(quantized, codes, counts.new_zeros(()) if loss is None else loss, counts, counts)


def check_frames(frames: Tensor, width: int) -> Tensor:
    """The frames in float32; they must be (N, D) with D = `width`."""
    if frames.dim() != 2 or frames.size(1) != width:
        raise SpeechsslError(f"The quantizer takes frames of shape (N, {width}), but was given {tuple(frames.shape)}.")
    return frames.float()


def check_codes(codes: Tensor, groups: int, entries: int) -> Tensor:
    """The codes; they must be (N, G) within 0..V-1."""
    if codes.dim() != 2 or codes.size(1) != groups:
        raise SpeechsslError(f"The quantizer takes codes of shape (N, {groups}), but was given {tuple(codes.shape)}.")
    if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < entries:
        raise SpeechsslError(f"Codes must lie in 0..{entries - 1}, but range {int(codes.min())}..{int(codes.max())}.")
    return codes


def check_positive(**settings: float) -> None:
    """Each setting must be above 0."""
    for name, value in settings.items():
        if not value > 0:
            raise ConfigError(f"`{name}` must be positive, but is {value}.")


def check_share(**settings: float) -> None:
    """Each setting must lie within 0..1."""
    for name, value in settings.items():
        if not 0 <= value <= 1:
            raise ConfigError(f"`{name}` must be >= 0 and <= 1, but is {value}.")
