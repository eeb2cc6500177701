"""Features as files: one per utterance, and an index; what is finished is never computed again.

<folder>/extract.json     upstream fingerprint, layers, format, precision: a folder holds features of one kind
        /index.jsonl      per utterance: id, path, audio, frames, frame_rate, layers, file, ...
        /bad.tsv          id and reason of what was left out
        /<id>.safetensors 'layer_<k>' (T, D) float32 each
        /<id>.npy         (K, T, D) float32, or (T, D) where one layer was asked for
"""

import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors.torch import save

from speechssl.audio import content_hash
from speechssl.errors import AudioError, SpeechsslError
from speechssl.extraction import Precision, extract, measure, resolve_items
from speechssl.files import naming, replacing
from speechssl.progress import progress
from speechssl.types import HiddenStates, Utterance
from speechssl.upstream import Upstream


@dataclass(frozen=True)
class Row:
    """One line of index.jsonl."""

    id: str
    path: str
    start: float
    duration: float | None
    audio: str
    """Hash of the audio file's bytes."""
    seconds: float
    """Of audio."""
    frames: int
    frame_rate: float
    layers: tuple[int, ...]
    file: str
    """Relative to the folder."""

    def is_of(self, utterance: Utterance) -> bool:
        """Whether it holds the features of this stretch of this audio."""
        if (self.start, self.duration) != (utterance.start, utterance.duration):
            return False
        try:
            return self.audio == content_hash(utterance.path)
        except AudioError:
            return False


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


class FeatureFolder:
    """A folder of features of one kind."""

    def __init__(
        self,
        root: Path,
        *,
        upstream: Upstream,
        layers: tuple[int, ...] | None,
        format: Literal["safetensors", "npy"],
        precision: Precision,
    ) -> None:
        """
        Raises:
            SpeechsslError: the folder holds features of another kind, or layers of different widths don't fit .npy.
        """
        self.root = root
        self.layers = tuple(sorted(upstream.resolve_layers(layers)))
        self.format = format
        self.precision: Precision = precision
        self.frame_rate = upstream.frame_rate
        self.index, self.bad = root / "index.jsonl", root / "bad.tsv"
        if format == "npy" and len({upstream.hidden_sizes[k] for k in self.layers}) > 1:
            raise SpeechsslError(f"The layers {list(self.layers)} differ in width: use --format safetensors.")
        kind: dict[str, object] = {
            "upstream": upstream.name,
            "weights": upstream.weights,
            "fingerprint": upstream.fingerprint(),
            "layers": list(self.layers),
            "format": format,
            "precision": precision,
        }
        self._claim(kind)
        self._drop_torn_line()

    def _drop_torn_line(self) -> None:
        """Cuts off what an interruption left of the last line, so that the next one does not join it."""
        if self.index.exists():
            whole = self.index.read_bytes()
            with self.index.open("r+b") as file:
                file.truncate(whole.rfind(b"\n") + 1)

    def rows(self) -> dict[str, Row]:
        """The finished utterances whose file is there, by id."""
        found: dict[str, Row] = {}
        if self.index.exists():
            for line in self.index.read_bytes().splitlines():
                try:
                    raw = json.loads(line)
                    row = Row(**{**raw, "layers": tuple(raw["layers"])})
                except (KeyError, TypeError, ValueError):
                    continue
                found[row.id] = row
        return {i: r for i, r in found.items() if (self.root / r.file).is_file()}

    def write(self, utterance: Utterance, features: HiddenStates, *, seconds: float) -> Row:
        """Writes the features of an utterance, whole or not at all, and then its line of the index."""
        name = _file_name(utterance.id, self.format)
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, sync=False) as partial:
            if self.format == "npy":
                array = torch.stack(list(features)).numpy()  # (K, T, D)
                with partial.open("wb") as file:
                    np.save(file, array[0] if len(array) == 1 else array, allow_pickle=False)
            else:
                tensors = {f"layer_{k}": features[k].contiguous() for k in features.layers}
                partial.write_bytes(save(tensors, {"frame_rate": str(self.frame_rate), "id": utterance.id}))
        frames = next(iter(features)).size(0)
        row = Row(
            utterance.id, utterance.path, utterance.start, utterance.duration, content_hash(utterance.path),
            seconds, frames, self.frame_rate, self.layers, name,
        )  # fmt: skip
        with naming(self.index), self.index.open("a", encoding="utf-8") as index:
            index.write(json.dumps(asdict(row), ensure_ascii=False) + "\n")
        return row

    def finish(self, rows: Iterable[Row], bad: dict[str, str]) -> None:
        """Rewrites the index in order, each utterance once, and lists what was left out."""
        with replacing(self.index) as partial:
            lines = [json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows]
            partial.write_text("".join(lines), encoding="utf-8")
        if bad:
            with replacing(self.bad) as partial:
                partial.write_text("id\treason\n" + "".join(f"{i}\t{r}\n" for i, r in bad.items()), encoding="utf-8")
        else:
            self.bad.unlink(missing_ok=True)

    def _claim(self, kind: dict[str, object]) -> None:
        path = self.root / "extract.json"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            held = json.loads(path.read_text(encoding="utf-8")) if path.exists() else kind
        except (FileExistsError, NotADirectoryError) as error:
            raise SpeechsslError(f"The output {self.root} is not a folder: choose another.") from error
        except ValueError as error:
            raise SpeechsslError(f"{path} can't be read: choose another folder, or remove this one.") from error
        if not isinstance(held, dict):
            raise SpeechsslError(f"{path} can't be read: choose another folder, or remove this one.")
        for key in ("fingerprint", "layers", "format", "precision"):
            if held.get(key) != kind[key]:
                raise SpeechsslError(
                    f"{self.root} holds features with {key} {held.get(key)}, not {kind[key]}: choose another folder."
                )
        with replacing(path) as partial:
            partial.write_text(json.dumps(kind, indent=1), encoding="utf-8")


def write_features(
    upstream: Upstream,
    inputs: Iterable[str],
    folder: FeatureFolder,
    *,
    batch_seconds: float,
    workers: int,
    skip_bad: bool,
) -> Summary:
    """Extracts what `folder` does not hold yet, with a progress bar.

    Raises:
        AudioError: a bad file, unless `skip_bad`; what was finished is kept.
    """
    utterances = resolve_items(inputs)
    summary = Summary()
    rows = folder.rows()
    known = {u.id: rows[u.id] for u in utterances if u.id in rows and rows[u.id].is_of(u)}
    for row in known.values():
        summary.kept.add(row)
    todo = [u for u in utterances if u.id not in known]
    durations = measure(todo, workers=workers, skip_bad=skip_bad, bad=summary.bad)
    begin = time.perf_counter()
    features = extract(
        upstream,
        [u for u in todo if u.id in durations],
        layers=folder.layers,
        batch_seconds=batch_seconds,
        workers=workers,
        precision=folder.precision,
        skip_bad=skip_bad,
        bad=summary.bad,
    )
    with progress("Extracting features", sum(durations.values()), unit="s of audio") as advance:
        for utterance, states in features:
            rows[utterance.id] = folder.write(utterance, states, seconds=durations[utterance.id])
            summary.computed.add(rows[utterance.id])
            advance(durations[utterance.id])
    summary.audio_rate = summary.computed.seconds / (time.perf_counter() - begin)
    order = {u.id: None for u in utterances} | dict.fromkeys(rows)
    folder.finish([rows[i] for i in order if i in rows and i not in summary.bad], summary.bad)
    return summary


def _file_name(utterance_id: str, suffix: str) -> str:
    parts = [p for p in utterance_id.replace("\\", "/").split("/") if p not in ("", ".", "..")]
    return "/".join(parts or ["utterance"]) + f".{suffix}"
