"""A prepared corpus: a folder with `corpus.json`, Lhotse manifests and audio.

corpus.json                      name, source, licences, hours, fingerprint
manifests/<split>.jsonl.gz       Lhotse MonoCuts; paths relative to the folder
audio/<source>/<id>.flac         16 kHz mono
"""

import gzip
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

from speechssl.errors import ManifestError, nearest
from speechssl.files import split_member
from speechssl.types import Utterance

logger = logging.getLogger(__name__)

FORMAT = 1
Watch = Callable[[bytes, int], None]
"""Sees a line, and how far into its file that is, bytes."""
Line = tuple[str, Utterance]
"""'<path>, line <n>,' and what stands there."""


@dataclass(frozen=True)
class Corpus:
    """A corpus that `speechssl prepare` has written."""

    root: Path
    name: str
    source: str
    """'debian' (real speech) or 'synthetic'."""
    fingerprint: str
    """Hash over the manifests: equal corpora, equal fingerprint."""
    info: Mapping[str, Any]
    """The whole of corpus.json: among others `sources` with licence, hours and utterances of each."""
    left_out: frozenset[str] = frozenset()
    """Ids of utterances that no split hands out."""
    seen: set[str] | None = field(default=None, compare=False)
    """Splits whose audio was found to be there; None = nobody looks for it, see `needing_audio`."""

    def splits(self) -> list[str]:
        """The names of the manifests that exist."""
        return sorted(p.name.removesuffix(".jsonl.gz") for p in (self.root / "manifests").glob("*.jsonl.gz"))

    def utterances(self, split: str) -> list[Utterance]:
        """Reads one manifest.

        Raises:
            ManifestError: no such split, a file that can't be read, or missing audio, see `needing_audio`.
        """
        path = self.root / "manifests" / f"{split}.jsonl.gz"
        if not path.exists():
            raise ManifestError(
                f"The corpus {self.root} has no split '{split}' (manifests/{split}.jsonl.gz), but has "
                f"{', '.join(self.splits()) or 'none'}: prepare one with that split; docs/corpora.md says which corpus "
                f"has which.{nearest(split, self.splits())}"
            )
        lines = [line for line in iterate_manifest(path, root=self.root) if line[1].id not in self.left_out]
        if self.seen is not None and split not in self.seen:
            _check_audio(split, lines)
            self.seen.add(split)
        return [utterance for _, utterance in lines]

    def needing_audio(self) -> "Corpus":
        """The same, but a split that names an audio file which is not there is an error that names the line.

        So a task finds out while it prepares, by a look at each file's entry, and not when it comes to hear it. What
        is made of this corpus remembers which splits were looked at: heads, folds and seeds do not look again.
        """
        return self if self.seen is not None else replace(self, seen=set())

    def without(self, ids: Iterable[str]) -> "Corpus":
        """The corpus without some utterances; it has another fingerprint, since what is made from it differs."""
        left_out = self.left_out | frozenset(ids)
        if left_out == self.left_out:
            return self
        digest = hashlib.sha256("\n".join([self.fingerprint, *sorted(left_out)]).encode()).hexdigest()
        return replace(self, fingerprint=digest, left_out=left_out)


def _check_audio(split: str, lines: Sequence[Line]) -> None:
    members = {utterance.path: split_member(utterance.path) for _, utterance in lines}
    gone = {path for path, member in members.items() if not Path(path if member is None else member[0]).is_file()}
    missing = [(where, utterance.path) for where, utterance in lines if utterance.path in gone]
    if missing:
        where, first = missing[0]
        raise ManifestError(
            f"{where} names {first}, which does not exist, the first of {len(missing)} missing among the {len(lines)} "
            f"utterances of '{split}': fetch them, prepare the corpus again, or leave them out with `--skip-bad`."
        )


def where_is(root: Path, split: str, name: str) -> str:
    """'<manifest>, line <n>,' of an utterance of the corpus in `root`, for messages: it reads manifests again.

    Args:
        split: whose manifest is looked into first, as the corpus calls it.
        name: the id; of a piece of an utterance, '<id>#<n>'.
    """
    own = root / "manifests" / f"{split}.jsonl.gz"
    wanted = {name, name.rpartition("#")[0]}
    for path in dict.fromkeys((own, *sorted(own.parent.glob("*.jsonl.gz")))):
        if path.is_file():
            for where, utterance in iterate_manifest(path, root=root):
                if utterance.id in wanted:
                    return where
    return f"The corpus {root}"


def describe_utterance(root: Path, name: str) -> str:
    """'The utterance '<id>' of <corpus> (manifests/<split>.jsonl.gz, line <n>)', for messages, as `where_is`."""
    where = where_is(root, "", name)
    place = f" ({where.removeprefix(f'{root}/').removesuffix(',')})" if where.endswith(",") else ""
    return f"The utterance '{name}' of {root}{place}"


def open_corpus(root: str | Path) -> Corpus:
    """Opens a prepared corpus.

    Raises:
        ManifestError: the folder holds no corpus, or one of another format.
    """
    root = Path(root)
    path = root / "corpus.json"
    if not path.is_file():
        raise ManifestError(f"{root} is no corpus (it has no corpus.json): run `speechssl prepare demo {root}`.")
    try:
        info = json.loads(path.read_bytes())
        if info["format"] != FORMAT:
            raise ManifestError(f"The corpus {root} has format {info['format']}, not {FORMAT}: prepare it again.")
        return Corpus(root.resolve(), info["name"], info["source"], info["fingerprint"], info)
    except (KeyError, TypeError, ValueError) as error:
        raise ManifestError(f"{path} can't be read ({error}): prepare the corpus again.") from error


def read_manifest(path: Path, *, root: Path | None = None) -> list[Utterance]:
    """Reads a Lhotse manifest (.jsonl or .jsonl.gz) into utterances: one per cut, or of recordings one per recording.

    Where a manifest of supervisions stands beside that of the recordings ('recordings' in its name, 'supervisions' in
    theirs), there is one utterance per supervision instead. The first supervision of a cut gives `text`, `speaker`,
    `language`; its `custom` fields give the rest.

    Args:
        root: folder that relative audio paths start from; None = the folder of the manifest.

    Raises:
        ManifestError: missing or malformed; the message names the file, the line and what is wrong.
    """
    return [utterance for _, utterance in iterate_manifest(path, root=root)]


def iterate_manifest(path: Path, *, root: Path | None = None, watch: Watch | None = None) -> Iterator[Line]:
    """What `read_manifest` returns, one utterance after the other, each after where it stands.

    Args:
        watch: sees each line as it is read, and how far into the file that is.
    """
    base = str(path.parent if root is None else root)
    supervisions = _supervisions_beside(path)
    without = 0
    for where, item in json_lines(path, watch):
        with naming_line(where):
            if "sources" not in item:
                yield where, of_cut(item, _source(item["recording"], base) if "recording" in item else "")
            elif supervisions is None:
                yield where, Utterance(item["id"], _source(item, base), 0.0, float(item["duration"]))
            else:
                own = supervisions.pop(item["id"], [])
                without += not own
                for supervision in own:
                    yield where, _of_supervision(supervision, _source(item, base))
    for recording, left in (supervisions or {}).items():
        raise ManifestError(f"{path} lacks the recording '{recording}' of the supervision '{left[0]['id']}': add it.")
    if without:
        logger.info("%d recordings of %s have no supervision, and are left out.", without, path)


def locate(source: str, base: Path) -> Path:
    """A path as a list names it: relative to the list's folder, or, where nothing is there, to the working folder."""
    return Path(_locate(source, str(base)))


def _locate(source: str, base: str) -> str:
    beside = os.path.join(base, source)  # noqa: PTH118  # a million times: pathlib takes ten times as long
    if os.path.isabs(source) or os.path.exists(beside):  # noqa: PTH110, PTH117  # as above
        return beside
    return source if os.path.exists(source) else beside  # noqa: PTH110  # as above


def json_lines(path: Path, watch: Watch | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields ('<path>, line <n>,', object) for each line of a .jsonl or .jsonl.gz file.

    Raises:
        ManifestError: missing, empty, or a line that is no JSON object; the message names it.
    """
    if not path.is_file():
        raise ManifestError(f"The manifest {path} does not exist: check the path.")
    if not path.stat().st_size:
        raise ManifestError(f"The manifest {path} is an empty file of 0 bytes: prepare it again.")
    with path.open("rb") as file:
        lines = iter(gzip.GzipFile(fileobj=file) if path.name.endswith(".gz") else file)
        for number in count(1):
            with naming_line(f"{path}, line {number},"):
                line = next(lines, None)
                if line is None:
                    return
                item = json.loads(line)
                if not isinstance(item, dict):
                    raise TypeError("it is no JSON object")
            if watch is not None:
                watch(line, file.tell())
            yield f"{path}, line {number},", item


@contextmanager
def naming_line(where: str) -> Iterator[None]:
    """Lets what is wrong with a line be a ManifestError that says where."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, OSError, EOFError) as error:
        raise ManifestError(
            f"{where} is not of a whole Lhotse manifest ({_reason(error)}): mend it, or prepare it again."
        ) from error


def _reason(error: Exception) -> str:
    """One clause; a bare KeyError would be nothing but the key."""
    return f"it lacks {error}" if isinstance(error, KeyError) else str(error).removesuffix(".")


def _supervisions_beside(path: Path) -> dict[str, list[dict[str, Any]]] | None:
    """Recording -> its supervisions, from the manifest that belongs to one of recordings; None = there is none."""
    beside = path.with_name(path.name.replace("recordings", "supervisions"))
    if beside == path or not beside.is_file():
        return None
    found: dict[str, list[dict[str, Any]]] = {}
    for where, item in json_lines(beside):
        with naming_line(where):
            _of_supervision(item, "")
            found.setdefault(item["recording_id"], []).append(item)
    return found


def of_cut(cut: Mapping[str, Any], path: str) -> Utterance:
    """The utterance that a Lhotse cut is, in the audio file `path`."""
    if "recording_id" in cut:
        raise ValueError("it holds supervisions, which have no audio: name the manifest of recordings or of cuts")
    if "tracks" in cut:
        raise ValueError("it holds a mixed cut: name cuts of single recordings")
    supervision = (cut.get("supervisions") or [{}])[0]
    if not path:
        raise KeyError("recording")
    return Utterance(cut["id"], path, float(cut["start"]), float(cut["duration"]), _labels(supervision))


def _of_supervision(supervision: Mapping[str, Any], path: str) -> Utterance:
    start, duration = float(supervision["start"]), float(supervision["duration"])
    return Utterance(supervision["id"], path, start, duration, _labels(supervision))


def _labels(supervision: Mapping[str, Any]) -> dict[str, Any]:
    labels = {k: supervision[k] for k in ("text", "speaker", "language", "gender") if supervision.get(k) is not None}
    labels.update(supervision.get("custom") or {})
    return labels


def _source(recording: Mapping[str, Any], base: str) -> str:
    source = recording["sources"][0]
    kind = source.get("type", "file")
    if kind != "file":
        raise ValueError(f"its audio is of type '{kind}', and only files are read")
    return _locate(source["source"], base)
