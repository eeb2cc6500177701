"""From a name or a folder to a ready upstream."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch

from speechssl import hub
from speechssl.checkpoint import (
    CONFIG_FILE,
    FORMAT,
    load_weights,
    read_json,
    read_weights,
    save_folder,
    save_upstream,
    write_json,
)
from speechssl.config import from_dict
from speechssl.errors import SpeechsslError, UnknownNameError
from speechssl.fairseq_format import open_fairseq
from speechssl.pickled import read_pickled
from speechssl.registry import family_module, find_preset, list_families
from speechssl.upstream import Upstream

logger = logging.getLogger(__name__)


def load_upstream(
    name_or_folder: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    random_weights: int | None = None,
) -> Upstream:
    """Loads an upstream in evaluation mode.

    Args:
        name_or_folder: a preset ('hubert_base'), a folder that `save_upstream` or transformers wrote, a checkpoint of
            fairseq ('hubert_base_ls960.pt'), which is read without running anything that is in it, or a repository of
            transformers' format on the Hugging Face hub ('facebook/hubert-base-ls960').
        device: where its weights go.
        dtype: of its weights; hidden states come in the same type.
        random_weights: seed; None = the published or saved weights.

    Raises:
        UnknownNameError: no such preset, folder or repository.
        SpeechsslError: weights that can't be fetched or don't fit, or a device that is not there.
    """
    name = str(name_or_folder)
    folder = Path(name_or_folder).expanduser()
    if name and folder.is_dir():
        upstream = _from_folder(folder, random_weights)
    elif name and folder.is_file():
        upstream = _from_file(folder, random_weights)
    elif "/" in name:
        upstream = _from_repository(name, random_weights)
    else:
        upstream = _from_preset(name, random_weights)
    upstream.name = name
    try:
        return upstream.to(device=device, dtype=dtype).eval()
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, AssertionError) as error:  # what torch says depends on how it was built
        first = str(error).splitlines()[0].removesuffix(".")
        raise SpeechsslError(f"The device '{device}' can't be used ({first}): choose another, such as cpu.") from error


def build_upstream(family: str, config: Any, *, seed: int) -> Upstream:
    """Makes an upstream with random weights, the same for the same seed; no global random state is touched.

    Args:
        family: the family's folder, such as 'hubert'.
        config: the family's config.
        seed: of the weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        upstream: Upstream = family_module(family, "model").build(config)
    if upstream.state_dict():
        upstream.weights = f"random (seed {seed})"
    return upstream


def _from_preset(name: str, random_weights: int | None) -> Upstream:
    family, config = find_preset(name)
    repository = getattr(family_module(family, "config"), "REPOSITORIES", {}).get(name)
    if random_weights is None and repository is not None:
        return _from_repository(repository, None)
    upstream = build_upstream(family, config, seed=random_weights or 0)
    if random_weights is None and upstream.weights != "none":
        logger.warning("'%s' has no published weights: it starts with random ones (seed 0); pre-train it first.", name)
    return upstream


def _from_repository(repository: str, random_weights: int | None) -> Upstream:
    path = Path(repository)
    if path.is_absolute() or len(path.parts) != 2 or path.parent.exists() or repository.startswith("."):
        raise SpeechsslError(f"The upstream folder {repository} does not exist: check the path.")
    folder = hub.download(repository)
    upstream = _from_folder(folder, random_weights)
    if random_weights is None:
        # The hub's cache keeps each revision in a folder of its name.
        upstream.weights = f"{repository} at {folder.name}"
    return upstream


def _from_folder(folder: Path, random_weights: int | None) -> Upstream:
    description = read_json(folder / CONFIG_FILE)
    if "family" in description:
        return _from_our_folder(folder, description, random_weights)
    if "model_type" in description:
        return _from_transformers_folder(folder, description, random_weights)
    raise SpeechsslError(f"{folder / CONFIG_FILE} has neither 'family' nor 'model_type': it is no upstream folder.")


def _from_our_folder(folder: Path, description: dict[str, Any], random_weights: int | None) -> Upstream:
    if description.get("format") != FORMAT:
        raise SpeechsslError(
            f"{folder / CONFIG_FILE} has format {description.get('format')!r}, but this version reads {FORMAT}: "
            "install the version that wrote it."
        )
    family = str(description["family"])
    presets = family_module(family, "config").PRESETS
    default = type(next(iter(presets.values())))()
    settings = description.get("config", {})
    if not isinstance(settings, dict):
        raise SpeechsslError(
            f"'config' in {folder / CONFIG_FILE} must be a mapping: write or download the folder again."
        )
    config = from_dict(default, settings, origin=str(folder / CONFIG_FILE))
    upstream = build_upstream(family, config, seed=random_weights or 0)
    if random_weights is None:
        load_weights(upstream, read_weights(folder), origin=str(folder))
        upstream.weights = str(description.get("weights", folder))
    return upstream


def _from_transformers_folder(folder: Path, description: dict[str, Any], random_weights: int | None) -> Upstream:
    family = str(description["model_type"]).replace("-", "_")
    if family not in list_families():
        raise UnknownNameError("model type", family, list_families())
    formats = family_module(family, "convert").FORMATS
    normalize = description.get("feat_extract_norm") == "layer"
    preprocessor = folder / "preprocessor_config.json"
    if preprocessor.is_file():
        normalize = bool(read_json(preprocessor).get("do_normalize", normalize))
    config = formats.config_from_transformers(description, normalize=normalize)
    upstream = build_upstream(family, config, seed=random_weights or 0)
    if random_weights is None:
        state = formats.from_transformers(read_weights(folder))
        load_weights(upstream, state, origin=str(folder), optional=formats.optional)
        upstream.weights = str(folder)
    return upstream


def _from_file(path: Path, random_weights: int | None) -> Upstream:
    """A checkpoint of fairseq, or of S3PRL's converter."""
    origin = str(path)
    checkpoint = open_fairseq(read_pickled(path), origin=origin)
    known = {name: (family, formats) for family, formats in _formats() for name in formats.fairseq_names}
    if checkpoint.architecture not in known:
        raise UnknownNameError(f"architecture in {path}:", checkpoint.architecture, known)
    family, formats = known[checkpoint.architecture]
    config = formats.config_from_fairseq(checkpoint, origin=origin)
    upstream = build_upstream(family, config, seed=random_weights or 0)
    if random_weights is None:
        load_weights(upstream, formats.from_fairseq(checkpoint.state), origin=origin, optional=formats.optional)
        upstream.weights = origin
    return upstream


def _formats() -> Iterator[tuple[str, Any]]:
    """The families whose checkpoints come in other toolkits' formats, and those formats."""
    for family in list_families():
        try:
            yield family, family_module(family, "convert").FORMATS
        except ModuleNotFoundError:
            continue


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
    description = formats.config_to_transformers(upstream.config)
    preprocessor = {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "do_normalize": upstream.normalize,
        "feature_size": 1,
        "padding_value": 0.0,
        "return_attention_mask": upstream.config.conv_norm == "layer",
        "sampling_rate": upstream.sample_rate,
    }
    save_folder(description, formats.to_transformers(upstream.state_dict()), folder)
    write_json(Path(folder) / "preprocessor_config.json", preprocessor)
    return upstream
