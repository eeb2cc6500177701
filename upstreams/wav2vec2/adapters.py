"""Adapters of single languages, which MMS keeps in files of their own beside a model that all languages share.

transformers has a file per language, such as adapter.fra.safetensors; fairseq has them all in the model's checkpoint.
Paper: Pratap et al. 2023, sec. 5.1.1, arXiv:2305.13516.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from speechssl.checkpoint import read_file
from speechssl.contextual import fairseq_names, transformers_format
from speechssl.errors import SpeechsslError, UnknownNameError
from speechssl.fairseq_format import PREFIXES

SUFFIXES = (".safetensors", ".bin")


def read_adapter(path: Path, language: str | None) -> dict[str, Tensor]:
    """Reads the adapter of one language; the head that comes with it is left out.

    Args:
        path: a file of one adapter, a folder with adapter.LANGUAGE.safetensors or .bin, or a checkpoint of fairseq.
        language: such as 'fra', where `path` holds several; None = it holds one.

    Returns:
        Weights by our names.

    Raises:
        UnknownNameError: no such language there.
        SpeechsslError: it holds no adapter.
    """
    if path.is_dir():
        path = _file_of(path, language)
    content = read_file(path)
    if isinstance(content, Mapping) and isinstance(content.get("adapter"), Mapping):
        return _from_fairseq(content["adapter"], language, path)
    if not isinstance(content, Mapping) or not all(isinstance(v, Tensor) for v in content.values()):
        raise SpeechsslError(f"{path} holds no adapter: name the adapter.LANGUAGE.safetensors of an MMS model.")
    return transformers_format.from_transformers(content, prefix="wav2vec2.", heads=("lm_head.",))


def _file_of(folder: Path, language: str | None) -> Path:
    files = {p.name.removeprefix("adapter.").removesuffix(s): p for s in SUFFIXES for p in folder.glob(f"adapter.*{s}")}
    return files[_choose(files, language, folder)]


def _choose(adapters: Mapping[str, Any], language: str | None, path: Path) -> str:
    if not adapters:
        raise SpeechsslError(f"{path} holds no adapter: name the adapter.LANGUAGE.safetensors of an MMS model.")
    if language is None:
        raise SpeechsslError(f"{path} has adapters by language: name one by `language`, such as '{min(adapters)}'.")
    if language not in adapters:
        raise UnknownNameError("language", language, adapters)
    return language


def _from_fairseq(adapters: Mapping[str, Any], language: str | None, path: Path) -> dict[str, Tensor]:
    weights: Mapping[str, Tensor] = adapters[_choose(adapters, language, path)]["model"]
    prefix = next((p for p in PREFIXES if any(k.startswith(p) for k in weights)), "")
    inside = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
    return fairseq_names.rename_weights({k: v for k, v in inside.items() if ".adapter_layer." in k}, heads=("proj.",))
