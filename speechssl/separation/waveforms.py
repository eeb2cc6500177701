"""Waveforms of mixtures and their sources, read in threads and kept in memory up to a budget.

B utterances, N sources, S samples. A training step needs N + 1 waveforms per utterance beside its features: read anew
from disk each time, they are decoded (and, where they are not at 16 kHz, resampled) once in every epoch.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from threading import Lock

import torch
from torch import Tensor
from torch.nn import functional as F

from speechssl.audio import read_audio
from speechssl.errors import ManifestError
from speechssl.types import Utterance

SAMPLE_RATE = 16_000  # Hz
TOLERANCE = 0.1  # seconds by which a source may be longer or shorter than its mixture
WORKERS = 4


@dataclass(frozen=True)
class Mixtures:
    """A batch."""

    mixture: Tensor
    """(B, S) float32, 0 beyond `lengths`."""
    sources: Tensor
    """(B, N, S)."""
    lengths: Tensor
    """Samples, (B,) int64."""

    def to(self, device: torch.device) -> "Mixtures":
        """The same on a device."""
        return Mixtures(self.mixture.to(device), self.sources.to(device), self.lengths.to(device))


class WaveformReader:
    """Reads mixtures with their sources, for several threads at once; what was read last stays in memory."""

    def __init__(self, sources_of: Callable[[Utterance], Sequence[str]], *, max_bytes: int) -> None:
        """
        Args:
            sources_of: the files of an utterance's sources.
            max_bytes: of samples held (4 bytes each); 0 = nothing is.
        """
        self.sources_of = sources_of
        self.max_bytes = max_bytes
        self.hits = 0
        self.misses = 0
        self._held: OrderedDict[str, Tensor] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()

    def batch(self, utterances: Sequence[Utterance]) -> Mixtures:
        """The waveforms of a batch, mixture first.

        Raises:
            AudioError: a file that can't be read.
            ManifestError: a source that is silent, or of another length than its mixture.
        """
        with self._lock:
            found = {u.id: self._held[u.id] for u in utterances if u.id in self._held}
            missing = [u for u in utterances if u.id not in found]
            self.hits += len(utterances) - len(missing)
            self.misses += len(missing)
        if missing:
            with ThreadPoolExecutor(min(WORKERS, len(missing))) as pool:
                found.update(
                    zip([u.id for u in missing], pool.map(partial(read, self.sources_of), missing), strict=True)
                )
        with self._lock:
            for utterance in utterances:
                self._keep(utterance.id, found[utterance.id])
        rows = [found[u.id] for u in utterances]
        lengths = torch.tensor([row.size(1) for row in rows])
        size = int(lengths.max())
        stacked = torch.stack([F.pad(row, (0, size - row.size(1))) for row in rows])  # (B, 1 + N, S)
        return Mixtures(stacked[:, 0], stacked[:, 1:], lengths)

    def _keep(self, name: str, waveforms: Tensor) -> None:
        """Holds one, and lets go of those that were used longest ago."""
        if name not in self._held:
            self._held[name] = waveforms
            self._bytes += waveforms.nbytes
        self._held.move_to_end(name)
        while self._bytes > self.max_bytes:
            self._bytes -= self._held.popitem(last=False)[1].nbytes


def read(sources_of: Callable[[Utterance], Sequence[str]], utterance: Utterance) -> Tensor:
    """Mixture and sources of an utterance at 16 kHz, (1 + N, S); S is the mixture's."""
    paths = [utterance.path, *sources_of(utterance)]
    waveforms = [
        read_audio(path, sample_rate=SAMPLE_RATE, start=utterance.start, duration=utterance.duration) for path in paths
    ]
    size = len(waveforms[0])
    for path, waveform in zip(paths[1:], waveforms[1:], strict=True):
        if abs(len(waveform) - size) > TOLERANCE * SAMPLE_RATE:
            raise ManifestError(
                f"{path} is {len(waveform) / SAMPLE_RATE:.2f} s long, but the mixture {utterance.path} of "
                f"'{utterance.id}' {size / SAMPLE_RATE:.2f} s: make the corpus again."
            )
        if not bool(waveform.any()):
            raise ManifestError(
                f"{path} is silent, so nothing can be said of its estimate: leave '{utterance.id}' out."
            )
    return torch.stack([F.pad(w, (0, max(0, size - len(w))))[:size] for w in waveforms])
