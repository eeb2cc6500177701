"""Lhotse Shar: cuts.000000.jsonl.gz beside recording.000000.tar, in which each cut has its audio and that one's JSON.

Lhotse reads such archives in order only. Here the archives are listed once, so that any cut can be read by itself.
"""

import logging
import tarfile
from collections.abc import Iterator
from pathlib import Path

from speechssl.data.corpus import Line, Watch, json_lines, naming_line, of_cut
from speechssl.errors import ManifestError
from speechssl.files import member_path

logger = logging.getLogger(__name__)
CUTS = ("cuts.jsonl", "cuts.jsonl.gz", "cuts.*.jsonl", "cuts.*.jsonl.gz")


def is_shar(folder: Path) -> bool:
    """Whether a folder holds Shar archives."""
    return folder.is_dir() and next(folder.glob("recording*.tar"), None) is not None and bool(list_shards(folder))


def list_shards(folder: Path) -> list[Path]:
    """The manifests of a folder's archives, in order."""
    return sorted({path for pattern in CUTS for path in folder.glob(pattern)})


def archive_of(cuts: Path) -> Path:
    """The archive that belongs to a manifest.

    Raises:
        ManifestError: it is not there.
    """
    number = cuts.name.removesuffix(".gz").removesuffix(".jsonl").removeprefix("cuts")
    archive = cuts.with_name(f"recording{number}.tar")
    if not archive.is_file():
        raise ManifestError(f"The archive {archive} of {cuts} does not exist: copy the Shar folder again.")
    return archive


def iterate_shar(folder: Path, *, watch: Watch | None = None) -> Iterator[Line]:
    """Yields where each cut stands and its utterance, whose path is inside an archive.

    Raises:
        ManifestError: an archive that is missing, damaged, or not in the order of its manifest.
    """
    for cuts in list_shards(folder):
        members = _members(archive_of(cuts))
        for where, item in json_lines(cuts, watch):
            name, path = next(members, (None, ""))
            with naming_line(where):
                utterance = of_cut(item, path or "nothing")
            if name != utterance.id:
                found = "ends before it" if name is None else f"has '{name}' in its place"
                raise ManifestError(
                    f"{where} is the cut '{utterance.id}', but {archive_of(cuts)} {found}: write the Shar folder again."
                )
            if not path:
                raise ManifestError(
                    f"{where} is a cut without audio in {archive_of(cuts)}: write it with its recording."
                )
            yield where, utterance
        left = next(members, None)
        if left is not None:
            raise ManifestError(
                f"{archive_of(cuts)} holds '{left[0]}', which {cuts} lacks: write the Shar folder again."
            )


def _members(archive: Path) -> Iterator[tuple[str, str]]:
    """Yields the id and the path of each recording; the path is empty where a cut has none."""
    try:
        with tarfile.open(archive, "r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # or it would keep all of them
                name, _, kind = member.name.rpartition(".")
                if kind == "nodata":
                    yield name, ""
                elif kind not in ("json", "nometa"):
                    yield name, member_path(archive, member.offset_data, member.size)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ManifestError(f"The archive {archive} can't be read ({error}): copy the Shar folder again.") from error
