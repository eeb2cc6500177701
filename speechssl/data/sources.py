"""Where the audio of pre-training comes from: a prepared corpus, a Lhotse manifest, or a folder of Lhotse Shar."""

import hashlib
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock

from speechssl.data.corpus import Line, Watch, iterate_manifest, open_corpus
from speechssl.data.indexed import FORMAT, JoinedIndex, ListedIndex, MappedIndex, UtteranceIndex, write_index
from speechssl.data.shar import archive_of, is_shar, iterate_shar, list_shards
from speechssl.errors import ManifestError, SpeechsslError
from speechssl.files import default_folder
from speechssl.progress import progress
from speechssl.types import Utterance

logger = logging.getLogger(__name__)
SMALL = 2e6
"""Bytes of a manifest up to which it is read anew each time, in a second or two, rather than indexed."""


@dataclass(frozen=True)
class Source:
    """Utterances to train on, and what identifies them."""

    path: Path
    name: str
    fingerprint: str
    """Hash of the manifest: equal content, equal fingerprint."""
    index: UtteranceIndex


def is_source(path: Path) -> bool:
    """Whether `open_source` takes it."""
    return path.name.endswith((".jsonl", ".jsonl.gz")) or (path / "corpus.json").is_file() or is_shar(path)


def open_source(path: str | Path, split: str, *, cache: Path | None = None) -> Source:
    """Opens a prepared corpus, a manifest (.jsonl, .jsonl.gz) of cuts or recordings, or a folder of Lhotse Shar.

    Args:
        split: of a prepared corpus; others are taken whole.
        cache: where a large manifest's index is kept; None = `default_folder()/manifests`.

    Raises:
        ManifestError: none of these, no such split, or a damaged file.
    """
    path = Path(path)
    cache = cache or default_folder() / "manifests"
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        if not path.is_file():
            raise ManifestError(f"The manifest {path} does not exist: check the path.")
        manifest = _Manifest([path], lambda watch: iterate_manifest(path.absolute(), watch=watch))
        return manifest.open(path, path.name.removesuffix(".gz").removesuffix(".jsonl"), cache)
    if (path / "corpus.json").is_file():
        corpus = open_corpus(path)
        file = corpus.root / "manifests" / f"{split}.jsonl.gz"
        if not file.is_file() or file.stat().st_size <= SMALL:
            return Source(path, corpus.name, corpus.fingerprint, ListedIndex(corpus.utterances(split)))
        manifest = _Manifest([file], lambda watch: iterate_manifest(file, root=corpus.root, watch=watch))
        found = manifest.open(path, corpus.name, cache)
        return Source(path, corpus.name, corpus.fingerprint, found.index)
    if is_shar(path):
        files = [p for cuts in list_shards(path) for p in (cuts, archive_of(cuts))]
        return _Manifest(files, partial(_of_shar, path.absolute())).open(path, path.name, cache)
    raise ManifestError(
        f"{path} is no corpus, manifest or Shar folder: give a folder of `speechssl prepare`, a .jsonl or .jsonl.gz "
        "file, or a folder with cuts.000000.jsonl.gz and recording.000000.tar."
    )


def open_sources(paths: Sequence[str | Path], split: str, *, cache: Path | None = None) -> Source:
    """Opens one or more as `open_source` does; of several, the name of each is the label 'corpus' and begins its ids.

    Raises:
        ManifestError: as `open_source`, or no path.
    """
    if not paths:
        raise ManifestError("There is no corpus: give one with `--corpus`.")
    sources = [open_source(path, split, cache=cache) for path in paths]
    if len(sources) == 1:
        return sources[0]
    parts: dict[str, UtteranceIndex] = {}
    for source in sources:
        twins = sum(name == source.name or name.startswith(f"{source.name}#") for name in parts)
        parts[f"{source.name}#{twins + 1}" if twins else source.name] = source.index
    digest = hashlib.sha256("\n".join(s.fingerprint for s in sources).encode()).hexdigest()
    return Source(sources[0].path, " + ".join(parts), digest, JoinedIndex(parts))


class TrainingCorpus:
    """One or more sources as clustering takes them: labels are of all together."""

    def __init__(self, paths: Sequence[str | Path], split: str) -> None:
        """
        Args:
            split: any that there is.
        """
        self._paths = list(paths)
        self.fingerprint = open_sources(paths, split).fingerprint
        """As of `Source`."""

    def utterances(self, split: str) -> Sequence[Utterance]:
        """Those of a split; a manifest or Shar folder has but one."""
        return open_sources(self._paths, split).index


def _of_shar(folder: Path, watch: Watch) -> Iterator[Line]:
    return iterate_shar(folder, watch=watch)


class _Manifest:
    """One or more files that are indexed together."""

    def __init__(self, files: Sequence[Path], iterate: Callable[[Watch], Iterator[Line]]) -> None:
        self.files = [f.absolute() for f in files]
        self.manifests = [f for f in self.files if f.suffix != ".tar"]
        self.iterate = iterate

    def open(self, path: Path, name: str, cache: Path) -> Source:
        """Reads it, or opens the index of it, which is made where there is none or the files have changed."""
        if sum(f.stat().st_size for f in self.manifests) <= SMALL:
            digest = hashlib.sha256()
            utterances = [u for _, u in self.iterate(lambda line, _: digest.update(line))]
            if not utterances:
                raise ManifestError(f"There is no utterance in {path}: check what wrote it.")
            return Source(path, name, digest.hexdigest(), ListedIndex(utterances))
        index = self._index(path, cache)
        return Source(path, name, index.meta["fingerprint"], index)

    def _index(self, path: Path, cache: Path) -> MappedIndex:
        stamp = self._stamp()
        own = hashlib.blake2b(str(self.files[0]).encode(), digest_size=8).hexdigest()
        folder = cache / f"{path.name.split('.')[0]}-{own}"
        with _writing(cache):
            cache.mkdir(parents=True, exist_ok=True)
            with FileLock(folder.with_suffix(".lock")):
                index = _open_if(folder, stamp)
                return index or self._build(folder, path, stamp)

    def _build(self, folder: Path, path: Path, stamp: str) -> MappedIndex:
        digest = hashlib.sha256()
        fresh = folder.with_suffix(".partial")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        with progress(
            f"Indexing {path.name}", sum(f.stat().st_size for f in self.manifests) / 1e6, unit="MB"
        ) as advance:
            last = 0

            def watch(line: bytes, position: int) -> None:
                nonlocal last
                digest.update(line)
                if position < last:
                    last = 0  # another file
                if position > last:
                    advance((position - last) / 1e6)
                    last = position

            def meta() -> dict[str, Any]:
                return {"manifest": str(path), "stamp": stamp, "fingerprint": digest.hexdigest()}

            write_index(fresh, self.iterate(watch), meta)
        shutil.rmtree(folder, ignore_errors=True)
        fresh.replace(folder)
        return MappedIndex(folder)

    def _stamp(self) -> str:
        """Changes when a file does."""
        stats = [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in self.files]
        return hashlib.blake2b(repr(stats).encode(), digest_size=16).hexdigest()


def _open_if(folder: Path, stamp: str) -> MappedIndex | None:
    try:
        index = MappedIndex(folder)
    except (OSError, ValueError, KeyError):
        return None
    return index if (index.meta["format"], index.meta["stamp"]) == (FORMAT, stamp) else None


@contextmanager
def _writing(cache: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SpeechsslError(
            f"The index of a manifest can't be written to {cache} ({error.strerror}): make room, or set "
            "SPEECHSSL_CACHE to a folder on another disk."
        ) from error
