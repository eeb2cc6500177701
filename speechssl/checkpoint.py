"""Upstream folders: `config.json` and `model.safetensors`, written so that a crash never leaves a broken one.

`config.json` is written last and names everything but the weights: {"format": 1, "family": "hubert",
"name": "hubert_base", "weights": where they came from, "config": the family's config}.
"""

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from speechssl.config import to_dict
from speechssl.errors import SpeechsslError, nearest
from speechssl.files import replacing
from speechssl.pickled import read_pickled
from speechssl.upstream import Upstream

Module = TypeVar("Module", bound=nn.Module)
FORMAT = 1
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
WEIGHTS_FILES = (WEIGHTS_FILE, "pytorch_model.bin")
"""In a folder of transformers' format, the one to be preferred first; each may be cut into shards with an index."""
INDEX_SUFFIX = ".index.json"
"""Of the file beside shards that says which weights are in which."""
MOST_NAMES = 8
"""Of missing or unexpected weights that an error lists."""


def save_upstream(upstream: Upstream, folder: str | Path) -> None:
    """Writes an upstream as a folder that `load_upstream` reads.

    Args:
        upstream: any upstream; its weights are stored in their own type.
        folder: made if it is not there; files of an upstream in it are replaced.
    """
    description = {
        "format": FORMAT,
        "family": upstream.family,
        "name": upstream.name,
        "weights": upstream.weights,
        "config": to_dict(upstream.config),
    }
    save_folder(description, upstream.state_dict(), folder)


def save_folder(description: Mapping[str, Any], state: Mapping[str, Tensor], folder: str | Path) -> None:
    """Writes config.json and model.safetensors, each at once or not at all."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(state, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    write_json(folder / CONFIG_FILE, description)


def with_half_weights(module: Module) -> Module:
    """A copy whose weights are float16, in half the space: `load_weights` gives them to a module in its own type.

    Raises:
        SpeechsslError: a weight is too large for that.
    """
    halved = copy.deepcopy(module)
    for name, weight in halved.named_parameters():
        weight.data = weight.detach().to(torch.float16)
        if not weight.isfinite().all():
            raise SpeechsslError(f"'{name}' has values beyond float16: export without `half`.")
    return halved


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a mapping as a JSON file, at once or not at all."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def save_tensors(tensors: Mapping[str, Tensor], path: Path, *, metadata: Mapping[str, str] | None = None) -> None:
    """Writes a safetensors file, at once or not at all.

    Args:
        tensors: on any device; they need not be contiguous.
    """
    ready = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    with replacing(path) as partial:
        save_file(ready, partial, metadata=None if metadata is None else dict(metadata))


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON file that holds a mapping.

    Raises:
        SpeechsslError: the file is missing or something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        where = path.parent
        raise SpeechsslError(f"{where} is no upstream folder (it has no {path.name}): check the path.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SpeechsslError(f"{path} is not valid JSON ({error}): write or download the folder again.") from error
    if not isinstance(content, dict):
        raise SpeechsslError(f"{path} must hold a mapping: write or download the folder again.")
    return content


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Reads the weights of a folder: one of WEIGHTS_FILES, or the shards that an index beside them lists.

    Raises:
        SpeechsslError: none is there, or it can't be read, is cut off, or holds more than weights.
    """
    for name in WEIGHTS_FILES:
        if (folder / name).is_file():
            return _read_weights_file(folder / name)
        index = folder / (name + INDEX_SUFFIX)
        if index.is_file():
            return _read_shards(index)
    raise SpeechsslError(f"{folder} holds neither {' nor '.join(WEIGHTS_FILES)}: write or download it again.")


def list_shards(index: Path) -> dict[str, list[str]]:
    """Reads the index of weights in several files, such as model.safetensors.index.json.

    Returns:
        File name -> the weights in it.

    Raises:
        SpeechsslError: it is no such index, or names a file elsewhere.
    """
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise SpeechsslError(f"{index} must hold 'weight_map', weight by weight its file: download it again.")
    shards: dict[str, list[str]] = {}
    for weight, name in places.items():
        if not isinstance(name, str) or Path(name).name != name:
            raise SpeechsslError(f"{index} must name files beside it, but '{weight}' is in {name!r}: don't trust it.")
        shards.setdefault(name, []).append(weight)
    return shards


def _read_shards(index: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for name, weights in list_shards(index).items():
        path = index.parent / name
        if not path.is_file():
            raise SpeechsslError(f"{index.parent} lacks {name}, which {index.name} lists: download it again.")
        shard = _read_weights_file(path)
        if absent := sorted(set(weights) - shard.keys()):
            raise SpeechsslError(f"{path} lacks '{absent[0]}', which {index.name} places in it: download it again.")
        state.update(shard)
    return state


def _read_weights_file(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise SpeechsslError(f"{path} is damaged ({error}): write or download it again.") from error
    content = read_pickled(path)
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise SpeechsslError(f"{path} must hold weights by their names and nothing else: save its weights alone.")
    return content


def read_file(path: Path) -> Any:
    """Reads a checkpoint that is one file: safetensors, or whatever torch pickled, read without running it.

    Raises:
        SpeechsslError: it is neither, or damaged, or holds more than weights and settings.
    """
    try:
        return load_file(path)
    except (SafetensorError, OSError):
        return read_pickled(path)


def load_weights(
    module: nn.Module,
    state: Mapping[str, Tensor],
    *,
    origin: str,
    optional: frozenset[str] = frozenset(),
    their_name: Callable[[str], str] = str,
) -> None:
    """Copies weights into a module, all of them or none.

    Args:
        module: receives them, in its own type and place.
        state: name -> weights.
        origin: named in errors.
        optional: names that may be missing.
        their_name: from a name in the module to that in the file, where it is of another format.

    Raises:
        SpeechsslError: names or shapes differ (they are listed as the file has them, with near names), or a weight is
            no finite number.
    """
    expected = module.state_dict()
    missing = sorted(map(their_name, expected.keys() - state.keys() - optional))
    unexpected = sorted(map(their_name, state.keys() - expected.keys()))
    if missing or unexpected:
        problems = _listing("lack", missing, unexpected) + _listing("unexpectedly hold", unexpected, missing)
        raise SpeechsslError(f"The weights of {origin} don't fit its config:{problems} Is the config another model's?")
    for key, value in state.items():
        name, shape = their_name(key), tuple(expected[key].shape)
        if value.shape != shape:
            raise SpeechsslError(
                f"The weights of {origin} don't fit its config: '{name}' must have shape {shape}, "
                f"but has {tuple(value.shape)}. Is the config another model's?"
            )
        _check_numbers(name, value, expected[key], origin=origin)
    module.load_state_dict(dict(state), strict=False)


def _check_numbers(key: str, value: Tensor, expected: Tensor, *, origin: str) -> None:
    if not expected.is_floating_point():
        return
    if not value.is_floating_point():
        raise SpeechsslError(
            f"'{key}' of {origin} must hold floating-point numbers, but is {str(value.dtype).removeprefix('torch.')}: "
            "quantised weights are not supported."
        )
    # Types of one byte have no test of their own.
    if not bool(torch.isfinite(value if value.element_size() > 1 else value.float()).all()):
        what = "NaN" if bool(value.float().isnan().any()) else "infinite numbers"
        raise SpeechsslError(f"'{key}' of {origin} holds {what}: its training failed, or the file is damaged.")


def _listing(verb: str, names: list[str], others: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    near = nearest(names[0], others)
    return f" they {verb} " + ", ".join(f"'{name}'" for name in names[:MOST_NAMES]) + more + "." + near
