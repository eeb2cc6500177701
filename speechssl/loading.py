"""From a name or a folder to a ready upstream."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from speechssl import hub
from speechssl.checkpoint import (
    CONFIG_FILE,
    FORMAT,
    load_weights,
    read_file,
    read_json,
    read_weights,
)
from speechssl.errors import SpeechsslError, UnknownNameError
from speechssl.fairseq_format import describe
from speechssl.formats import ForeignModel, Formats, TransformersFolder
from speechssl.registry import family_module, find_preset, list_families, list_shipped, list_upstreams, read_config
from speechssl.upstream import Upstream

logger = logging.getLogger(__name__)


def load_upstream(
    name_or_folder: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    random_weights: int | None = None,
    normalize: bool | None = None,
) -> Upstream:
    """Loads an upstream in evaluation mode.

    Args:
        name_or_folder: a preset ('hubert_base'), a folder that `save_upstream` or transformers wrote, a checkpoint of
            fairseq ('hubert_base_ls960.pt'), which is read without running anything that is in it, or a repository of
            transformers' format on the Hugging Face hub ('facebook/hubert-base-ls960'), of which a branch, tag or
            commit may be named ('facebook/hubert-base-ls960@main'), or a checkpoint in a repository there
            ('s3prl/converted_ckpts/wav2vec_large.pt').
        device: where its weights go.
        dtype: of its weights; hidden states come in the same type.
        random_weights: seed; None = the published or saved weights.
        normalize: whether waveforms are brought to mean 0 and variance 1 first; None = as the checkpoint says. (Copies
            of one model disagree: fairseq's and Microsoft's base models say no, some of their folders on the hub yes.)

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
    elif ":" in name:
        upstream = _from_adapter(name, random_weights)
    elif "/" in name:
        upstream = _from_repository(name, random_weights)
    else:
        upstream = _from_preset(name, random_weights)
    upstream.name = name
    if normalize is not None and normalize != upstream.normalize:
        _set_normalize(upstream, normalize)
    try:
        return upstream.to(device=device, dtype=dtype).eval()
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, AssertionError) as error:  # what torch says depends on how it was built
        first = str(error).splitlines()[0].removesuffix(".")
        raise SpeechsslError(f"The device '{device}' can't be used ({first}): choose another, such as cpu.") from error


def _set_normalize(upstream: Upstream, normalize: bool) -> None:
    if not hasattr(upstream.config, "normalize"):
        raise SpeechsslError(f"'{upstream.name}' hears no waveform that could be normalised: leave out `normalize`.")
    upstream.normalize = normalize
    upstream.config = replace(upstream.config, normalize=normalize)  # it decides the numbers, so it is saved with them


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
    if (folder := list_shipped().get(name)) is not None:
        return _from_folder(folder, random_weights)
    family, config = find_preset(name)
    repository = getattr(family_module(family, "config"), "REPOSITORIES", {}).get(name)
    if random_weights is None and repository is not None:
        return _from_repository(repository, None)
    upstream = build_upstream(family, config, seed=random_weights or 0)
    if random_weights is None and upstream.weights != "none":
        logger.warning(
            "'%s' has no weights to fetch, and starts with random ones (seed 0): name its checkpoint's file.", name
        )
    return upstream


def _from_adapter(name: str, random_weights: int | None) -> Upstream:
    """'transformers:REPO_OR_DIR' and the like: a family that wraps whatever another toolkit loads."""
    family, _, reference = name.partition(":")
    if family not in list_families() or not reference:
        raise UnknownNameError("upstream", name, list_upstreams())
    upstream: Upstream = family_module(family, "model").wrap(reference, random_weights=random_weights)
    return upstream


def _from_repository(reference: str, random_weights: int | None) -> Upstream:
    repository, revision = hub.split_revision(reference)
    path = Path(repository)
    if path.is_absolute() or path.parent.exists() or repository.startswith("."):
        raise SpeechsslError(f"The upstream folder {reference} does not exist: check the path.")
    if len(path.parts) > 2:
        return _from_file_of_repository(path, revision, random_weights)
    folder = hub.download(repository, revision=revision)
    upstream = _from_folder(folder, random_weights)
    if random_weights is None:
        # The hub's cache keeps each revision in a folder of its name.
        upstream.weights = f"{repository} at {folder.name}"
    return upstream


def _from_file_of_repository(path: Path, revision: str | None, random_weights: int | None) -> Upstream:
    """'org/name/file.pt': one checkpoint of a repository that holds many."""
    repository = "/".join(path.parts[:2])
    if not path.suffix:
        raise SpeechsslError(f"The upstream folder {path} does not exist: check the path.")
    file = hub.download_file(repository, "/".join(path.parts[2:]), revision=revision)
    upstream = _from_file(file, random_weights)
    if random_weights is None:
        upstream.weights = str(path)
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
    family, config = read_config(description, origin=str(folder / CONFIG_FILE))
    upstream = build_upstream(family, config, seed=random_weights or 0)
    if random_weights is None:
        load_weights(upstream, read_weights(folder), origin=str(folder))
        upstream.weights = str(description.get("weights", folder))
    return upstream


def _from_transformers_folder(folder: Path, description: dict[str, Any], random_weights: int | None) -> Upstream:
    known = {kind: (family, formats) for family, formats in _formats() for kind in formats.model_types}
    kind = str(description["model_type"])
    if kind not in known:
        raise UnknownNameError("model type", kind, known)
    family, formats = known[kind]
    preprocessor = folder / "preprocessor_config.json"
    content = TransformersFolder(
        description, {}, read_json(preprocessor) if preprocessor.is_file() else {}, origin=str(folder)
    )
    made = formats.read_transformers(content)  # before the weights, which may be large, and of no use
    if random_weights is None:
        made = formats.read_transformers(replace(content, state=read_weights(folder)))
    return _from_foreign(family, made, random_weights, origin=str(folder))


def _from_file(path: Path, random_weights: int | None) -> Upstream:
    """A checkpoint of another toolkit: whichever family finds its own in it."""
    origin = str(path)
    content = read_file(path)
    for family, formats in _formats():
        made = formats.read_file(content, origin=origin)
        if made is not None:
            return _from_foreign(family, made, random_weights, origin=origin)
    raise SpeechsslError(f"{origin} is no checkpoint of a known family: {describe(content, origin=origin)}")


def _from_foreign(family: str, made: ForeignModel, random_weights: int | None, *, origin: str) -> Upstream:
    upstream = build_upstream(family, made.config, seed=random_weights or 0)
    if random_weights is None:
        load_weights(upstream, made.state, origin=origin, optional=made.optional, their_name=made.their_name)
        upstream.weights = origin
    return upstream


def _formats() -> Iterator[tuple[str, Formats]]:
    """The families whose checkpoints come in other toolkits' formats, and those formats."""
    for family in list_families():
        try:
            yield family, family_module(family, "convert").FORMATS
        except ModuleNotFoundError as error:
            if not str(error.name).endswith(f"{family}.convert"):
                logger.warning("Upstream family '%s' can't be imported and is left out: %s", family, error)
        except Exception as error:
            logger.warning("Upstream family '%s' can't be imported and is left out: %s", family, error)
