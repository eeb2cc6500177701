"""What models compute over a whole utterance, gathered stretch by stretch, for audio too long to be held.

Known are mean and variance of the waveform (`normalize`), the group norm after a convolutional frontend's first layer,
and the normalisation of stacked log-mel frames. Others, such as group norms further up, stay those of each window.
S samples, K samples of a kernel, C channels, N rows.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from speechssl.frontend.conv_waveform import ConvWaveform
from speechssl.frontend.spectral import SpectralUpstream
from speechssl.frontend.stacked_log_mel import StackedLogMel
from speechssl.moments import Moments
from speechssl.upstream import Upstream

STEP = 30.0
"""Seconds of audio that are looked at at once."""
Normalising = ConvWaveform | StackedLogMel
"""Modules that take statistics of the whole utterance, and take known ones in their place."""
Read = Callable[[int, int], Tensor]
"""Samples from one index to another, (S,)."""


@dataclass
class UtteranceStatistics:
    """Of one utterance for one upstream; `applied` lets the upstream take a stretch for a part of the utterance."""

    upstream: Upstream
    mean: float = 0.0
    """Of the waveform; 0 where it is left as it is."""
    scale: float = 1.0
    known: dict[Normalising, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def normalized(self, waveform: Tensor) -> Tensor:
        """The waveform as `Upstream.forward` would make it from the whole utterance."""
        return (waveform - self.mean) * self.scale if self.upstream.normalize else waveform

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The upstream's own statistics are put aside inside."""
        spectral = self.upstream if isinstance(self.upstream, SpectralUpstream) else None
        normalize, cmvn = self.upstream.normalize, spectral is not None and spectral.cmvn
        self._set(normalize=False, cmvn=False, known=True)
        try:
            yield
        finally:
            self._set(normalize=normalize, cmvn=cmvn, known=False)

    def _set(self, *, normalize: bool, cmvn: bool, known: bool) -> None:
        self.upstream.normalize = normalize
        if isinstance(self.upstream, SpectralUpstream):
            self.upstream.cmvn = cmvn
        for module, values in self.known.items():
            if isinstance(module, ConvWaveform):
                module.known_norm = values if known else None
            else:
                module.known_statistics = values if known else None


def gather_statistics(upstream: Upstream, read: Read, samples: int) -> UtteranceStatistics:
    """Goes over the waveform once for its mean and variance, and once for what depends on these, if anything does.

    Args:
        read: gives stretches of the utterance at the upstream's sample rate.
        samples: of the whole utterance.
    """
    found = UtteranceStatistics(upstream)
    if upstream.normalize:
        moments = Moments()
        for start, stop in _steps(upstream, samples):
            moments.add(read(start, stop)[:, None])
        found.mean, found.scale = float(moments.mean), float(torch.rsqrt(moments.variance() + 1e-5))
    gathering = {module: Moments() for module in _normalising(upstream)}
    if gathering:
        for start, stop in _steps(upstream, samples):
            reach = max(_grid(module)[0] for module in gathering) - 1
            waveform = found.normalized(read(start, min(stop + reach, samples)))
            for module, moments in gathering.items():
                _add(module, moments, waveform, start, stop)
    found.known = {module: _result(module, moments) for module, moments in gathering.items()}
    return found


def _steps(upstream: Upstream, samples: int) -> Iterator[tuple[int, int]]:
    step = round(STEP * upstream.sample_rate)
    for start in range(0, samples, step):
        yield start, min(start + step, samples)


def _normalising(upstream: Upstream) -> Iterator[Normalising]:
    for module in upstream.modules():
        if isinstance(module, StackedLogMel) or (isinstance(module, ConvWaveform) and module.norm == "group"):
            yield module


def _grid(module: Normalising) -> tuple[int, int]:
    """Samples per row, and from one row to the next."""
    if isinstance(module, StackedLogMel):
        return module.log_mel.options.window, module.log_mel.options.hop
    return module.layers[0]


def _add(module: Normalising, moments: Moments, waveform: Tensor, start: int, stop: int) -> None:
    """Adds the rows that begin at samples `start` to `stop`, as far as they lie within the utterance."""
    size, hop = _grid(module)
    part = waveform[-start % hop : stop - start + size - 1]
    if part.numel() < size:
        return
    if isinstance(module, StackedLogMel):
        with torch.inference_mode():
            moments.add(module.log_mel(part.to(module.log_mel.window.device)[None])[0].cpu())  # (N, C)
    else:
        moments.add(part.unfold(0, size, hop))  # (N, K)


def _result(module: Normalising, moments: Moments) -> tuple[Tensor, Tensor]:
    if isinstance(module, StackedLogMel):
        device = module.log_mel.window.device
        return moments.mean.float().to(device), moments.variance().sqrt().float().to(device)
    device = next(module.parameters()).device
    with torch.no_grad():
        return module.norm_of_windows(moments.mean.to(device)[None], moments.covariance().to(device)[None])
