"""Fetches Debian packages for the files inside, without installing them and without root.

`apt-get download` checks each archive against the signed index of the distribution. Where the system's package lists
are empty, lists of our own are fetched into the work folder; the system is never touched. An archive is read here
(`ar` around a tar), so that dpkg isn't needed; only for compressions that Python lacks is `dpkg-deb` asked.
"""

import gzip
import io
import json
import logging
import lzma
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import unquote

from speechssl.errors import SpeechsslError

logger = logging.getLogger(__name__)
TIMEOUT = 900.0  # seconds for one call of apt-get
_OPENERS: dict[str, Callable[[IO[bytes]], IO[bytes]]] = {".xz": lzma.open, ".gz": gzip.open}  # type: ignore[dict-item]  # both give binary streams
RECORD = ".unpacked.json"
REMEDY = "run `apt-get update` and check the network, or make a corpus without packages: --source synthetic"


@dataclass(frozen=True)
class Archive:
    """A downloaded package."""

    name: str
    version: str
    path: Path


def download_debian(names: Sequence[str], folder: Path) -> dict[str, Archive]:
    """Downloads packages into `folder`; those that are already there are kept.

    Raises:
        SpeechsslError: no apt-get, or packages that can't be had; the message names them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    have = _archives(folder)
    missing = [name for name in names if name not in have]
    if missing:
        if shutil.which("apt-get") is None:
            raise SpeechsslError(
                f"There is no apt-get to fetch {', '.join(missing)}: use a Debian system or --source synthetic."
            )
        logger.info("Downloading %d Debian packages", len(missing))
        problem = _apt_download(missing, folder, environment=None)
        if problem:
            logger.info("The system's package lists don't do (%s): fetching lists of our own", problem)
            problem = _download_with_own_lists(missing, folder)
        have = _archives(folder)
        missing = [name for name in names if name not in have]
        if missing:
            raise SpeechsslError(f"These Debian packages can't be had: {', '.join(missing)} ({problem}); {REMEDY}.")
    return {name: have[name] for name in names}


def _archives(folder: Path) -> dict[str, Archive]:
    found = {}
    for path in sorted(folder.glob("*.deb")):
        name, version, _ = path.name.split("_", 2)
        found[name] = Archive(name, unquote(version), path)
    return found


def _apt_download(names: Sequence[str], folder: Path, *, environment: dict[str, str] | None) -> str:
    """Returns '' or what apt-get complains about. Downloads into a scratch folder, so that `folder` has whole files."""
    scratch = folder / "partial"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    problem = _apt(["download", *names], folder=scratch, environment=environment)
    for path in scratch.glob("*.deb"):
        path.replace(folder / path.name)
    shutil.rmtree(scratch, ignore_errors=True)
    return problem


def _apt(arguments: Sequence[str], *, folder: Path, environment: dict[str, str] | None) -> str:
    command = ["apt-get", "-q", "-o", "APT::Sandbox::User=root", *arguments]
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, "LC_ALL": "C", **(environment or {})},
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"apt-get {arguments[0]} took over {TIMEOUT:.0f} s"
    if done.returncode == 0:
        return ""
    errors = [line.strip() for line in done.stderr.splitlines() if line.startswith("E:")]
    return (errors or [f"apt-get ended with status {done.returncode}"])[0].rstrip(".")


def _download_with_own_lists(names: Sequence[str], folder: Path) -> str:
    own = folder.resolve() / "apt"
    (own / "lists" / "partial").mkdir(parents=True, exist_ok=True)
    (own / "cache" / "archives" / "partial").mkdir(parents=True, exist_ok=True)
    config = own / "apt.conf"
    config.write_text(f'Dir::State::Lists "{own}/lists";\nDir::Cache "{own}/cache";\n', encoding="utf-8")
    environment = {"APT_CONFIG": str(config)}
    problem = _apt(["update"], folder=own, environment=environment)
    return problem or _apt_download(names, folder, environment=environment)


def unpack_debian(archive: Archive, target: Path, *, keep: str = "") -> Path:
    """Unpacks the files whose path matches the regular expression `keep`, once, and returns `target`.

    Raises:
        SpeechsslError: a damaged archive.
    """
    record = {"package": archive.name, "version": archive.version, "keep": keep}
    try:
        if json.loads((target / RECORD).read_text(encoding="utf-8")) == record:
            return target
    except (OSError, ValueError):
        pass
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    pattern = re.compile(keep)
    try:
        with _data(archive.path) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
            for member in tar:
                if (member.isfile() or member.issym()) and pattern.search(member.name):
                    tar.extract(member, target, filter="data")
    except (tarfile.TarError, lzma.LZMAError, EOFError, ValueError) as error:
        raise SpeechsslError(
            f"The package file {archive.path} is damaged ({error}): delete it and try again."
        ) from error
    (target / RECORD).write_text(json.dumps(record), encoding="utf-8")
    return target


@contextmanager
def _data(path: Path) -> Iterator[IO[bytes]]:
    """The decompressed data.tar of a package."""
    with path.open("rb") as file:
        name = _seek_data(file)
        opener = _OPENERS.get(Path(name).suffix)
        with opener(file) if opener else io.BytesIO(_dpkg_tar(path)) as stream:
            yield stream


def _seek_data(file: IO[bytes]) -> str:
    """Moves to the content of the member data.tar.* and returns the member's name."""
    if file.read(8) != b"!<arch>\n":
        raise ValueError("it is no ar archive")
    while len(header := file.read(60)) == 60:
        name, size = header[:16].decode().strip().rstrip("/"), int(header[48:58])
        if name.startswith("data.tar"):
            return name
        file.seek(size + size % 2, os.SEEK_CUR)
    raise ValueError("it has no data.tar")


def _dpkg_tar(path: Path) -> bytes:
    if shutil.which("dpkg-deb") is None:
        raise SpeechsslError(f"{path.name} is compressed in a way that needs dpkg-deb: install dpkg.")
    return subprocess.run(["dpkg-deb", "--fsys-tarfile", str(path)], capture_output=True, check=True).stdout
