"""Upstreams in other formats, for other toolkits."""

import copy
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from speechssl.checkpoint import CONFIG_FILE, read_json, save_folder, save_upstream, with_half_weights, write_json
from speechssl.errors import SpeechsslError
from speechssl.formats import TransformersFolder
from speechssl.inference import is_run, load_adapted
from speechssl.loading import load_upstream
from speechssl.registry import family_module
from speechssl.upstream import Upstream

logger = logging.getLogger(__name__)

Format = Literal["speechssl", "safetensors", "transformers", "onnx", "torch-export"]
"""'speechssl' and 'safetensors' are the same: a folder of our own, with config.json and model.safetensors."""
OWN: tuple[Format, ...] = ("speechssl", "safetensors")
SUFFIXES = {"onnx": ".onnx", "torch-export": ".pt2"}
"""Of the formats that are one file."""


def export_upstream(
    name_or_folder: str | Path,
    out: str | Path,
    *,
    to: Format,
    layers: Sequence[int] | None = None,
    half: bool = False,
) -> Upstream:
    """Writes an upstream in another format, and returns it.

    Args:
        name_or_folder: as `load_upstream` takes it; or the folder of a run that adapted its upstream.
        out: the folder to write; for onnx and torch-export also the file, if it ends in .onnx or .pt2.
        to: the format. Programs (onnx, torch-export) are compared with the upstream before they are kept.
        layers: hidden states that a program puts out; None = all.
        half: whether the weights of our own format are stored as float16, in half the space; they load as float32,
            and buffers stay as they are.

    Raises:
        ConfigError: transformers has no such model.
        SpeechsslError: the family has no counterpart there, or can't be made a program.
    """
    if layers is not None and to not in SUFFIXES:
        raise SpeechsslError(f"`layers` chooses what {' and '.join(SUFFIXES)} put out: leave it out for '{to}'.")
    if half and to not in OWN:
        raise SpeechsslError(f"`half` is for speechssl's own format: leave it out for '{to}'.")
    upstream = load_adapted(name_or_folder) if is_run(name_or_folder) else load_upstream(name_or_folder)
    out = Path(out)
    if to in SUFFIXES:
        _write_program(upstream, program_path(out, to), layers, to)
    elif to == "transformers":
        made = _in_transformers(upstream)
        save_folder(made.description, made.state, out)
        write_json(out / "preprocessor_config.json", made.preprocessor)
    else:
        saved = with_half_weights(upstream) if half else copy.copy(upstream)
        saved.name = _own_name(name_or_folder)
        save_upstream(saved, out)
    return upstream


def _own_name(name_or_folder: str | Path) -> str:
    """What a folder of ours says that it holds, and not where it was; of other files, the file's name."""
    path = Path(name_or_folder).expanduser()
    if is_run(path):
        return "_".join(path.resolve().parts[-3:])  # task, upstream and seed
    if (path / CONFIG_FILE).is_file():
        return str(read_json(path / CONFIG_FILE).get("name", path.name))
    return path.name if path.exists() else str(name_or_folder)


def program_path(out: Path, to: Format) -> Path:
    """The file of a program: `out` itself, or 'model' with the format's suffix in the folder `out`."""
    suffix = SUFFIXES[to]
    return out if out.suffix == suffix and not out.is_dir() else out / f"model{suffix}"


def to_transformers(upstream: Upstream) -> Any:
    """Makes the model of transformers with the same weights, in evaluation mode.

    Returns:
        Such as a transformers.HubertModel, of the upstream's type and on its device, with weights of its own.

    Raises:
        ConfigError: transformers has no such model.
        SpeechsslError: the family has no counterpart there, or transformers is not installed.
    """
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise SpeechsslError("to_transformers needs transformers: pip install 'speechssl[hf]'.") from error
    made = _in_transformers(upstream)
    settings = dict(made.description)
    (architecture,) = settings["architectures"]
    config = transformers.AutoConfig.for_model(settings.pop("model_type"), **settings)
    with torch.random.fork_rng(devices=[]):  # its random weights are thrown away
        model = getattr(transformers, architecture)(config)
    some = next(iter(made.state.values()))
    model.load_state_dict(made.state)
    return model.to(device=some.device, dtype=some.dtype).eval()


def _in_transformers(upstream: Upstream) -> TransformersFolder:
    try:
        formats = family_module(upstream.family, "convert").FORMATS
    except ModuleNotFoundError as error:
        raise SpeechsslError(
            f"'{upstream.name}' can't be exported to transformers, which has no family '{upstream.family}'."
        ) from error
    return formats.write_transformers(upstream.config, upstream.state_dict())  # type: ignore[no-any-return]


def _write_program(upstream: Upstream, path: Path, layers: Sequence[int] | None, to: Format) -> None:
    from speechssl.serving.programs import export_onnx, export_program

    write = export_onnx if to == "onnx" else export_program
    deviation = write(upstream, path, layers=layers)
    logger.info("%s gives the upstream's numbers: the largest deviation is %.1e.", path, deviation)
