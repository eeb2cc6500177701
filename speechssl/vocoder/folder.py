"""Vocoder folders: `config.json` and `model.safetensors`, and nothing else is needed to synthesise.

config.json: {"format": 1, "kind": "hifigan", "weights": where they came from, "source": which features, "config": ...}.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from speechssl.checkpoint import CONFIG_FILE, load_weights, read_json, read_weights, save_folder, with_half_weights
from speechssl.config import from_dict, to_dict
from speechssl.errors import SpeechsslError, UnknownNameError
from speechssl.vocoder.hifigan import HifiGan, HifiGanConfig
from speechssl.vocoder.inputs import FeatureSource
from speechssl.vocoder.istft import IstftConfig, IstftVocoder

FORMAT = 1
Generator: TypeAlias = HifiGan | IstftVocoder
GeneratorConfig: TypeAlias = HifiGanConfig | IstftConfig
DEFAULTS: dict[str, GeneratorConfig] = {"hifigan": HifiGanConfig(), "istft": IstftConfig()}


def build_generator(config: GeneratorConfig, *, name: str, source: FeatureSource | None = None) -> Generator:
    """The network of a config, with new weights."""
    if isinstance(config, HifiGanConfig):
        return HifiGan(config, name=name, source=source)
    return IstftVocoder(config, name=name, source=source)


def folded_state(module: nn.Module) -> dict[str, Tensor]:
    """A state dict in which each weight under a normalisation is the one tensor that it stands for."""
    state = {k: v for k, v in module.state_dict().items() if ".parametrizations." not in k}
    for name, part in module.named_modules():
        if torch.nn.utils.parametrize.is_parametrized(part, "weight"):
            state[f"{name}.weight"] = part.weight.detach()
    return state


def save_vocoder(generator: Generator, folder: str | Path, *, weights: str) -> None:
    """Writes a vocoder as a folder that `load_vocoder` reads.

    Args:
        weights: where they came from, for people.
    """
    description = {
        "format": FORMAT,
        "kind": "hifigan" if isinstance(generator, HifiGan) else "istft",
        "weights": weights,
        "source": None if generator.source is None else to_dict(generator.source),
        "config": to_dict(generator.config),
    }
    save_folder(description, folded_state(generator), folder)


def is_vocoder(folder: str | Path) -> bool:
    """Whether a folder says that it holds a vocoder."""
    path = Path(folder) / CONFIG_FILE
    return path.is_file() and "kind" in read_json(path)


def export_vocoder(folder: str | Path, out: str | Path, *, half: bool = False) -> Generator:
    """Copies a vocoder without what its training left beside it, and returns it.

    Args:
        half: whether its weights are stored as float16, in half the space; they load as float32.
    """
    vocoder = read_vocoder(Path(folder))
    told = str(read_json(Path(folder) / CONFIG_FILE).get("weights", ""))
    save_vocoder(with_half_weights(vocoder) if half else vocoder, out, weights=told)
    return vocoder


def read_vocoder(folder: Path, *, name: str | None = None) -> Generator:
    """Reads what `save_vocoder` wrote, frozen.

    Args:
        name: of these weights, for people; None = the folder's.

    Raises:
        SpeechsslError: it is no such folder, is of a newer version, or its weights don't fit.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise SpeechsslError(f"{folder} is no vocoder folder (it has no {path.name}): check the path.")
    description = read_json(path)
    if description.get("format") != FORMAT or "kind" not in description:
        raise SpeechsslError(f"{path} is not of a vocoder of format {FORMAT}: give a folder of `speechssl vocoder`.")
    kind = description["kind"]
    if kind not in DEFAULTS:
        raise UnknownNameError("kind of vocoder", str(kind), DEFAULTS)
    config = from_dict(DEFAULTS[kind], _mapping(description, "config", path), origin=str(path))
    source = None
    if description.get("source") is not None:
        told = _mapping(description, "source", path)
        source = from_dict(FeatureSource(upstream="", layer=0), told, origin=str(path))
    vocoder = build_generator(config, name=f"{kind} ({name or folder.name})", source=source)
    load_weights(vocoder, read_weights(folder), origin=str(folder))
    return vocoder.eval().requires_grad_(False)


def _mapping(description: Mapping[str, Any], key: str, path: Path) -> dict[str, Any]:
    found = description.get(key)
    if not isinstance(found, dict):
        raise SpeechsslError(f"'{key}' in {path} must be a mapping, but is {found!r}: write the folder again.")
    return found
