"""Libri2Mix: who speaks when (Cosentino et al. 2020, arXiv:2005.11262), for speaker diarization.

The source is what S3PRL takes (`downstream/diarization/dataset.py`): the Kaldi folders train, dev and test, with
wav.scp, segments and utt2spk, that `scripts/prepare_diarization.py` of its LibriMix fork makes of wav16k/max, out of
alignments of LibriSpeech. `segments` are [speaker, begin, end], seconds, ordered by begin; `speakers` are sorted.

Where the path in wav.scp is that of another machine, the file is looked for below the source, by the end of its path.
"""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from speechssl.data.corpora.base import Count, Item, NoSettings, Note, Reading, find_root, need_file, note
from speechssl.errors import ManifestError
from speechssl.text_files import read_lines

NAME = "Libri2Mix (diarization)"
HOMEPAGE = "https://github.com/s3prl/LibriMix"
LICENCE = "CC-BY-4.0 (LibriSpeech), CC-BY-NC-4.0 (the noise of WHAM!)"
LAYOUT = "train/, dev/ and test/, each with wav.scp, segments and utt2spk"
# Cosentino et al. 2020, table 1: train-100, dev, test.
EXPECTED = {"train": Count(13_900), "dev": Count(3000), "test": Count(3000)}
Segment = tuple[str, float, float]
"""Speaker, begin and end in seconds."""


def read(source: Path, config: NoSettings) -> Reading:
    """Lists the recordings."""
    del config
    marks = [f"{split}/wav.scp" for split in EXPECTED]
    root = find_root(source, marks, name=NAME, layout=LAYOUT)
    splits: dict[str, list[Item]] = {}
    notes: tuple[Note, ...] = ()
    for split in EXPECTED:
        if (root / split / "wav.scp").is_file():
            splits[split] = list(_read(root / split, root))
            silent = [item.id for item in splits[split] if not item.labels["segments"]]
            notes += note(f"{split}: recordings in which nobody speaks", silent)
    return Reading(splits, EXPECTED, notes)


def _read(folder: Path, root: Path) -> Iterator[Item]:
    segments = _read_segments(folder)
    for where, line in read_lines(folder / "wav.scp"):
        name, _, path = line.strip().partition(" ")
        if not path or path.endswith("|"):
            raise ManifestError(f"{where} must be an id and a file, but is '{line.strip()}'.")
        own = sorted(segments.pop(name, []), key=lambda segment: segment[1])
        labels = {
            "segments": [list(segment) for segment in own],
            "speakers": sorted({speaker for speaker, _, _ in own}),
            "language": "en",
        }
        yield Item(name, str(_locate(path.strip(), root)), labels)
    if segments:
        raise ManifestError(f"{folder / 'segments'} names the recording '{next(iter(segments))}', which wav.scp lacks.")


def _read_segments(folder: Path) -> dict[str, list[Segment]]:
    """Recording -> who speaks when."""
    why = "`scripts/prepare_diarization.py` writes it beside wav.scp"
    speakers: dict[str, str] = {}
    for where, line in read_lines(need_file(folder / "utt2spk", why)):
        values = line.split()
        if len(values) != 2:
            raise ManifestError(f"{where} must be a segment and a speaker, but is '{line.strip()}'.")
        speakers[values[0]] = values[1]
    found: dict[str, list[Segment]] = defaultdict(list)
    for where, line in read_lines(need_file(folder / "segments", why)):
        values = line.split()
        try:
            segment, recording, begin, end = values[0], values[1], float(values[2]), float(values[3])
        except (IndexError, ValueError) as error:
            raise ManifestError(
                f"{where} must be a segment, a recording, begin and end: make the file again."
            ) from error
        if not 0 <= begin < end:
            raise ManifestError(f"{where} must begin before it ends, but goes from {begin} s to {end} s.")
        if segment not in speakers:
            raise ManifestError(f"{where} names the segment '{segment}', whose speaker utt2spk does not have.")
        found[recording].append((speakers[segment], begin, end))
    return found


def _locate(path: str, root: Path) -> Path:
    """The path itself, or the same file below the source."""
    if Path(path).is_file():
        return Path(path)
    parts = PurePosixPath(path).parts
    ends = (root.joinpath(*parts[k:]) for k in range(1, len(parts)))
    return next((end for end in ends if end.is_file()), root / path)
