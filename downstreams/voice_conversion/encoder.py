"""From recordings to the frames that are matched, in memory that does not grow with their length.

T frames, D width of a layer, E width of what joins the layers.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import soundfile
import torch
from torch import Tensor

from downstreams.voice_conversion.recording import Recording
from downstreams.voice_conversion.voice import FrameSource
from speechssl.errors import AudioError
from speechssl.featurizer.interface import Interface
from speechssl.forward import Precision, evaluating, forward_batch
from speechssl.inference import LoadedRun
from speechssl.long_audio import extract_long
from speechssl.types import Utterance
from speechssl.upstream import Upstream

Join = Callable[[Sequence[Tensor]], Tensor]


class Encoder:
    """An upstream, which of its layers, and what joins them."""

    def __init__(
        self,
        upstream: Upstream,
        layers: Sequence[int],
        *,
        join: Join | None = None,
        joined: str | None = None,
        chunk: float | None,
        precision: Precision,
    ) -> None:
        """
        Args:
            join: layers (T, D) each -> (T, E); None = the one layer as it is.
            joined: what tells this join from others.
            chunk: seconds above which a recording is heard in windows; None = always as a whole.
        """
        self.upstream = upstream
        self.layers = tuple(layers)
        self.join = join
        self.joined = joined
        self.chunk = chunk
        self.precision = precision

    @cached_property
    def source(self) -> FrameSource:
        """What the frames are of."""
        return FrameSource(self.upstream.name, self.upstream.fingerprint(), self.layers, self.joined)

    def check(self, recording: Recording) -> None:
        """Sees that there is a frame at all.

        Raises:
            AudioError: the recording is shorter.
        """
        if int(self.upstream.output_lengths(torch.tensor([len(recording.waveform)]))) < 1:
            raise AudioError(
                f"{recording.path} is {recording.seconds:.3f} s long, shorter than one frame of "
                f"'{self.upstream.name}': give a longer one."
            )

    @torch.inference_mode()
    def pieces(self, recording: Recording) -> Iterator[Tensor]:
        """Yields the frames of a recording, (T of the piece, E) each."""
        if self.chunk is None or recording.seconds <= self.chunk:
            yield self._whole(recording)
        else:
            yield from self._windows(recording, self.chunk)

    def _whole(self, recording: Recording) -> Tensor:
        waveform, lengths = recording.waveform[None], torch.tensor([len(recording.waveform)])
        with evaluating(self.upstream):
            states, _ = forward_batch(self.upstream, waveform, lengths, self.layers, self.precision)
        return self._joined([states[layer][0].float() for layer in self.layers])

    def _windows(self, recording: Recording, chunk: float) -> Iterator[Tensor]:
        with TemporaryDirectory(prefix="speechssl-") as folder:  # of samples as they are, whatever the file's format
            path = Path(folder) / "speech.wav"
            soundfile.write(path, recording.waveform.numpy(), recording.sample_rate, subtype="FLOAT")
            utterance = Utterance("speech", str(path))
            for states in extract_long(
                self.upstream, utterance, chunk=chunk, layers=self.layers, precision=self.precision
            ):
                yield self._joined([states[layer] for layer in self.layers])

    def _joined(self, states: Sequence[Tensor]) -> Tensor:
        return states[0] if self.join is None else self.join(states).float()


def encoder_of_run(run: LoadedRun, *, chunk: float | None, precision: Precision) -> Encoder:
    """The encoder of a finished run, with the weights of layers that it learned."""
    features, plain = run.task.config.features, ("weighted_sum", "single")
    as_it_is = features.interface in plain and len(run.layers) == 1 and not features.normalize
    return Encoder(
        run.upstream,
        run.layers,
        join=None if as_it_is else run.join,
        joined=None if as_it_is else _digest(run.probe.featurizer),
        chunk=chunk,
        precision=precision,
    )


def _digest(featurizer: Interface) -> str:
    digest = hashlib.sha256(f"{type(featurizer).__qualname__} {featurizer.normalize}".encode())
    for key, tensor in sorted(featurizer.state_dict().items()):
        digest.update(f"{key} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
