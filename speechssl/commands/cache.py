"""`speechssl cache`: what the feature cache holds, and trimming it."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    folder: Annotated[
        Path | None, typer.Option(help="Cache folder; by default $SPEECHSSL_CACHE or ~/.cache/speechssl.")
    ] = None,
    trim: Annotated[
        float | None, typer.Option(metavar="GB", min=0.0, help="Evict what was used longest ago until this is left.")
    ] = None,
) -> None:
    """Show or trim the feature cache.

    Example: speechssl cache --trim 10
    """
    from datetime import datetime

    from rich.console import Console
    from rich.table import Table

    from speechssl.cache import FeatureCache
    from speechssl.errors import SpeechsslError
    from speechssl.files import default_folder

    folder = folder or default_folder()
    if folder.exists() and not folder.is_dir():
        raise SpeechsslError(f"The feature cache {folder} is a file, but must be a folder: choose another.")
    if trim is not None and not folder.is_dir():
        raise SpeechsslError(f"The feature cache {folder} does not exist: there is nothing to trim.")
    cache = FeatureCache(folder)
    freed = cache.trim(trim) if trim is not None else 0
    entries = cache.entries()
    table = Table("upstream", "weights", "fingerprint", "packs", "GB", "last used", "in use", title=str(folder))
    for entry in entries:
        used = f"{datetime.fromtimestamp(entry.last_used).astimezone():%Y-%m-%d %H:%M}"
        size = f"{entry.gigabytes:.3f}"
        in_use = "yes" if entry.in_use else ""
        table.add_row(entry.name, entry.weights, entry.fingerprint, str(entry.packs), size, used, in_use)
    console = Console()
    console.print(table)
    summary = f"{sum(e.gigabytes for e in entries):.3f} GB of {len(entries)} upstreams"
    console.print(summary + (f"; {freed / 1e9:.3f} GB evicted" if trim is not None else ""))
