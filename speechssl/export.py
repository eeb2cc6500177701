"""Upstreams in other formats, for other toolkits."""

from pathlib import Path
from typing import Literal

from speechssl.checkpoint import save_folder, save_upstream, write_json
from speechssl.errors import SpeechsslError
from speechssl.loading import load_upstream
from speechssl.registry import family_module
from speechssl.upstream import Upstream


def export_upstream(
    name_or_folder: str | Path, folder: str | Path, *, to: Literal["speechssl", "transformers"]
) -> Upstream:
    """Writes an upstream as a folder of our own or of transformers' format, and returns it.

    Raises:
        ConfigError: transformers has no such model.
        SpeechsslError: the family has no counterpart there.
    """
    upstream = load_upstream(name_or_folder)
    if to == "speechssl":
        save_upstream(upstream, folder)
        return upstream
    try:
        formats = family_module(upstream.family, "convert").FORMATS
    except ModuleNotFoundError as error:
        raise SpeechsslError(
            f"'{name_or_folder}' can't be exported to transformers, which has no family '{upstream.family}'."
        ) from error
    folder = Path(folder)
    made = formats.write_transformers(upstream.config, upstream.state_dict())
    save_folder(made.description, made.state, folder)
    write_json(folder / "preprocessor_config.json", made.preprocessor)
    return upstream
