"""Extracts into a folder of features: what is not there yet, with a progress bar, and long files piece by piece."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from speechssl.errors import AudioError
from speechssl.extraction import extract, leave_out, measure, resolve_items
from speechssl.feature_files import FeatureFolder, Row
from speechssl.feature_formats import check_names
from speechssl.long_audio import count_frames, extract_long
from speechssl.progress import Advance, progress
from speechssl.types import HiddenStates, Utterance
from speechssl.upstream import Upstream


@dataclass
class Count:
    """Utterances and their size."""

    utterances: int = 0
    seconds: float = 0.0
    frames: int = 0

    def add(self, row: Row) -> None:
        """Counts an utterance."""
        self.utterances += 1
        self.seconds += row.seconds
        self.frames += row.frames


@dataclass
class Summary:
    """What an extraction did."""

    computed: Count = field(default_factory=Count)
    kept: Count = field(default_factory=Count)
    bad: dict[str, str] = field(default_factory=dict)
    """Utterance id -> reason."""
    audio_rate: float = 0.0
    """Seconds of audio computed per second."""


def write_features(
    upstream: Upstream,
    inputs: Iterable[str],
    folder: FeatureFolder,
    *,
    batch_seconds: float,
    workers: int,
    skip_bad: bool,
    devices: Sequence[torch.device] = (),
) -> Summary:
    """Extracts what `folder` does not hold yet.

    Args:
        devices: where copies of the upstream compute side by side, see `extract`; files longer than a chunk are
            computed on the first one.

    Raises:
        AudioError: a bad file, unless `skip_bad`; what was finished is kept.
        ManifestError: inputs that can't be read, or ids that come to one name in the folder's format.
    """
    utterances = resolve_items(inputs)
    summary = Summary()
    with folder:
        rows = folder.rows()
        check_names(folder.format, [*(u.id for u in utterances), *rows])
        known = {u.id for u in utterances if u.id in rows and rows[u.id].is_of(u)}
        for name in known:
            summary.kept.add(rows[name])
        todo = [u for u in utterances if u.id not in known]
        folder.tidy(rows, [u.id for u in todo])
        durations = measure(todo, workers=workers, skip_bad=skip_bad, bad=summary.bad)
        todo = [u for u in todo if u.id in durations]
        begin = time.perf_counter()
        with progress("Extracting features", sum(durations.values()), unit="s of audio") as advance:
            work = _Work(upstream, folder, durations, summary, advance, skip_bad, devices)
            for row in work.run(todo, batch_seconds=batch_seconds, workers=workers):
                rows[row.id] = row
                summary.computed.add(row)
        folder.flush()
        summary.audio_rate = summary.computed.seconds / (time.perf_counter() - begin)
        order = {u.id: None for u in utterances} | dict.fromkeys(rows)
        folder.finish([rows[i] for i in order if i in rows and i not in summary.bad], summary.bad)
    return summary


@dataclass
class _Work:
    upstream: Upstream
    folder: FeatureFolder
    durations: dict[str, float]
    summary: Summary
    advance: Advance
    skip_bad: bool
    devices: Sequence[torch.device]

    def run(self, todo: list[Utterance], *, batch_seconds: float, workers: int) -> Iterator[Row]:
        """Yields what is written: first the files longer than a chunk, then the others in batches."""
        chunk = self.folder.chunk
        long = [u for u in todo if chunk is not None and self.durations[u.id] > chunk]
        for utterance in long:
            try:
                yield self._write_long(utterance)
            except AudioError as error:
                leave_out(utterance, error, self.skip_bad, self.summary.bad)
        left_out = {u.id for u in long}
        features = extract(
            self.upstream,
            [u for u in todo if u.id not in left_out],
            layers=self.folder.layers,
            batch_seconds=batch_seconds,
            workers=workers,
            precision=self.folder.precision,
            skip_bad=self.skip_bad,
            bad=self.summary.bad,
            devices=self.devices,
        )
        for utterance, states in features:
            seconds = self.durations[utterance.id]
            yield self.folder.write(utterance, next(iter(states)).size(0), [states], seconds=seconds)
            self.advance(seconds)

    def _write_long(self, utterance: Utterance) -> Row:
        frames = count_frames(self.upstream, utterance)
        return self.folder.write(utterance, frames, self._pieces(utterance), seconds=self.durations[utterance.id])

    def _pieces(self, utterance: Utterance) -> Iterator[HiddenStates]:
        folder = self.folder
        pieces = extract_long(
            self.upstream,
            utterance,
            chunk=folder.chunk or 0.0,
            context=folder.context,
            layers=folder.layers,
            precision=folder.precision,
        )
        for piece in pieces:
            yield piece
            self.advance(next(iter(piece)).size(0) / self.upstream.frame_rate)
