"""Features as files, with an index: what is finished is never computed again, and nothing half done counts.

<folder>/extract.json     upstream fingerprint, layers, format, precision: a folder holds features of one kind
        /index.jsonl      per utterance: id, path, audio, frames, frame_rate, layers, file, ...
        /bad.tsv          id and reason of what was left out
        and the features, as `speechssl.feature_formats` has them.

A file of features is written under another name, renamed when it is whole, and then named in the index; so a line of
the index always means features that are there. Where utterances share a file, it counts if the lines of the index
account for each of its bytes; any other is removed by the next run.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout

from speechssl.audio import content_hash
from speechssl.errors import AudioError, SpeechsslError
from speechssl.feature_formats import FORMATS, FeatureFormat, FormatName, Spans
from speechssl.feature_writer import OpenFiles
from speechssl.files import naming, replacing
from speechssl.forward import Precision
from speechssl.long_audio import check_chunks
from speechssl.types import HiddenStates, Utterance
from speechssl.upstream import Upstream

SHARD_BYTES = 256 << 20
"""Of features, at which a file that utterances share is closed; an interruption by force loses less than one."""


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
    """Relative to the folder; '{layer}' in it stands for each layer, which has a file of its own."""
    spans: Spans = ()
    """Where several utterances share a file, first byte and bytes of this one in it, or in the file of each layer."""

    def is_of(self, utterance: Utterance) -> bool:
        """Whether it holds the features of this stretch of this audio."""
        if (self.start, self.duration) != (utterance.start, utterance.duration):
            return False
        try:
            return self.audio == content_hash(utterance.path)
        except AudioError:
            return False


class FeatureFolder:
    """A folder of features of one kind; as a context it is held, so that no other process writes to it."""

    def __init__(
        self,
        root: Path,
        *,
        upstream: Upstream,
        layers: tuple[int, ...] | None,
        format: FormatName,
        precision: Precision,
        chunk: float | None = None,
        context: float = 0.0,
        shard_bytes: int = SHARD_BYTES,
    ) -> None:
        """
        Args:
            layers, precision, chunk, context: see `speechssl.extraction.extract`.
            shard_bytes: at which a file that utterances share is closed.

        Raises:
            SpeechsslError: the folder holds features of another kind, layers of different widths don't fit .npy, or the
                upstream can't be computed in such chunks.
        """
        if chunk is not None:
            check_chunks(upstream, chunk, context)
        self.root = root
        self.layers = tuple(sorted(upstream.resolve_layers(layers)))
        self.precision: Precision = precision
        self.chunk, self.context = chunk, context
        self.shard_bytes = shard_bytes
        widths = {k: upstream.hidden_sizes[k] for k in self.layers}
        self.format: FeatureFormat = FORMATS[format](widths, frame_rate=upstream.frame_rate)
        self.index, self.bad = root / "index.jsonl", root / "bad.tsv"
        self._lock = FileLock(root / ".lock")
        self._open: OpenFiles | None = None
        self._pending: list[Row] = []
        kind: dict[str, object] = {
            "upstream": upstream.name,
            "weights": upstream.weights,
            "fingerprint": upstream.fingerprint(),
            "layers": list(self.layers),
            "format": format,
            "precision": precision,
            "chunk": chunk,
            "context": None if chunk is None else context,
        }
        self._claim(kind)

    def __enter__(self) -> "FeatureFolder":
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise SpeechsslError(
                f"Another process is writing to {self.root}: wait for it, or choose another folder."
            ) from error
        self._drop_torn_line()
        for partial in self.root.rglob(".*.partial"):
            partial.unlink(missing_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.flush()
        finally:
            self._lock.release()

    def rows(self) -> dict[str, Row]:
        """The finished utterances whose features are there, by id."""
        lines = self._lines()
        whole = self._whole_shards(lines) if self.format.sharded else None
        found: dict[str, Row] = {}
        for row in lines:
            there = (self.root / row.file).is_file() if whole is None else row.file in whole
            if there:
                found[row.id] = row
        return found

    def tidy(self, rows: dict[str, Row], stale: Iterable[str]) -> None:
        """Takes what is stale or not in the index out of the files that utterances share, and out of `rows`."""
        for name in stale:
            rows.pop(name, None)
        if not self.format.sharded:
            return
        live: dict[str, list[Row]] = {}
        for row in rows.values():
            live.setdefault(row.file, []).append(row)
        in_index: dict[str, set[Spans]] = {}
        for row in self._lines():
            in_index.setdefault(row.file, set()).add(row.spans)
        for file in self._shards():
            own = live.get(file, [])
            if len(own) < len(in_index.get(file, ())) or not own:
                moved = self._move(own)
                rows.update((row.id, row) for row in moved)
                for path in self._paths(file):
                    path.unlink(missing_ok=True)

    def write(self, utterance: Utterance, frames: int, pieces: Iterable[HiddenStates], *, seconds: float) -> Row:
        """Writes the features of an utterance, whole or not at all; `flush` completes what shares a file with others.

        Args:
            frames: of all pieces together.
            pieces: the features, or consecutive parts of them.
            seconds: of audio.
        """
        files = self._files(utterance)
        try:
            spans = files.append(utterance, frames, pieces)
        except BaseException:
            if not self.format.sharded:
                files.discard()
            raise
        row = Row(
            utterance.id, utterance.path, utterance.start, utterance.duration, content_hash(utterance.path),
            seconds, frames, self.format.frame_rate, self.layers, files.file, spans if self.format.sharded else (),
        )  # fmt: skip
        self._pending.append(row)
        if not self.format.sharded:
            files.commit()
            self._index()
        elif files.size >= self.shard_bytes:
            self.flush()
        return row

    def flush(self) -> None:
        """Completes the file that utterances share, and names them in the index."""
        files, self._open = self._open, None
        if files is None:
            return
        if not self._pending:
            files.discard()
            return
        try:
            files.commit()
        except BaseException:
            self._pending.clear()
            raise
        self._index()

    def finish(self, rows: Sequence[Row], bad: dict[str, str]) -> None:
        """Rewrites the index in order, each utterance once, and lists what was left out."""
        with replacing(self.index) as partial:
            partial.write_text("".join(_line(row) for row in rows), encoding="utf-8")
        for name, text in self.format.finish(self.root, [(r.id, r.file, r.spans) for r in rows]).items():
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            with replacing(self.root / name) as partial:
                partial.write_text(text, encoding="utf-8")
        if bad:
            with replacing(self.bad) as partial:
                partial.write_text("id\treason\n" + "".join(f"{i}\t{r}\n" for i, r in bad.items()), encoding="utf-8")
        else:
            self.bad.unlink(missing_ok=True)

    def _files(self, utterance: Utterance) -> OpenFiles:
        """What the utterance goes into."""
        if not self.format.sharded:
            return OpenFiles(self.root, self.format, self.format.file(self.format.name(utterance.id)))
        if self._open is None:
            used = set(self._shards())
            names = (self.format.file(f"{n:06d}") for n in range(len(used) + 1))
            self._open = OpenFiles(self.root, self.format, next(name for name in names if name not in used))
        return self._open

    def _move(self, rows: list[Row]) -> list[Row]:
        """Copies utterances into a file of their own."""
        moved = []
        for row in rows:
            files = self._files(Utterance(row.id, row.path))
            moved.append(replace(row, file=files.file, spans=files.copy(self._paths(row.file), row.spans)))
        self._pending.extend(moved)
        self.flush()
        return moved

    def _index(self) -> None:
        """Adds what is pending to the index."""
        with naming(self.index), self.index.open("a", encoding="utf-8") as index:
            index.write("".join(_line(row) for row in self._pending))
        self._pending.clear()

    def _lines(self) -> list[Row]:
        found: list[Row] = []
        if self.index.exists():
            for line in self.index.read_bytes().splitlines():
                try:
                    raw = json.loads(line)
                    spans = tuple((int(first), int(size)) for first, size in raw.get("spans", ()))
                    found.append(Row(**{**raw, "layers": tuple(raw["layers"]), "spans": spans}))
                except (AttributeError, KeyError, TypeError, ValueError):
                    continue
        return found

    def _paths(self, file: str) -> list[Path]:
        return [self.root / name for name in self.format.files(file)]

    def _shards(self) -> list[str]:
        """The files that utterances share, as rows name them, as far as any layer's is there."""
        pattern = self.format.file("*")
        before, _, after = pattern.partition("*")
        found = set()
        for part in self.format.files(pattern):
            for path in self.root.glob(part):
                name = path.name.removeprefix(before.rpartition("/")[2]).removesuffix(after)
                found.add(self.format.file(name))
        return sorted(found)

    def _whole_shards(self, lines: Sequence[Row]) -> set[str]:
        """Those of which every byte belongs to a line of the index."""
        spans: dict[str, set[Spans]] = {}
        for row in lines:
            spans.setdefault(row.file, set()).add(row.spans)
        end = len(self.format.end)
        whole = set()
        for file, own in spans.items():
            paths = self._paths(file)
            sizes = [sum(s[i][1] for s in own if len(s) == len(paths)) + end for i in range(len(paths))]
            if all(p.is_file() and p.stat().st_size == size for p, size in zip(paths, sizes, strict=True)):
                whole.add(file)
        return whole

    def _drop_torn_line(self) -> None:
        """Cuts off what an interruption left of the last line, so that the next one does not join it."""
        if self.index.exists():
            whole = self.index.read_bytes()
            with self.index.open("r+b") as file:
                file.truncate(whole.rfind(b"\n") + 1)

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
        for key in ("fingerprint", "layers", "format", "precision", "chunk", "context"):
            if held.get(key) != kind[key]:
                raise SpeechsslError(
                    f"{self.root} holds features with {key} {held.get(key)}, not {kind[key]}: choose another folder."
                )
        with replacing(path) as partial:
            partial.write_text(json.dumps(kind, indent=1), encoding="utf-8")


def _line(row: Row) -> str:
    return json.dumps(asdict(row), ensure_ascii=False) + "\n"
