"""Published weights from the Hugging Face hub: each file of one commit, asked for once and read from the cache after.

What huggingface_hub reads from the environment holds here too: HF_HUB_OFFLINE, HF_HUB_CACHE, HF_TOKEN, HF_ENDPOINT.
"""

import logging
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from speechssl.checkpoint import CONFIG_FILE, INDEX_SUFFIX, WEIGHTS_FILES, list_shards
from speechssl.errors import SpeechsslError, nearest
from speechssl.files import disk_full

logger = logging.getLogger(__name__)

PREPROCESSOR_FILE = "preprocessor_config.json"
TIMEOUT = 10.0
"""Seconds that the hub has to say what is in a repository."""
COMMIT = re.compile(r"[0-9a-f]{40}")


def split_revision(reference: str) -> tuple[str, str | None]:
    """Splits 'org/name@REVISION' into repository and revision; the latter is None where there is no '@'."""
    repository, _, revision = reference.partition("@")
    return repository, revision or None


def download(repository: str, *, revision: str | None = None) -> Path:
    """Fetches a model in transformers' format or ours, or finds it in the local cache.

    Args:
        repository: such as 'facebook/hubert-base-ls960'.
        revision: a branch, tag or whole commit; None = the newest. A whole commit that is in the cache asks for nothing
            over the network.

    Returns:
        The folder that holds config.json, the weights and, where there is one, preprocessor_config.json; it has the
        name of the commit.

    Raises:
        SpeechsslError: no such repository or revision, no leave to read it, or no connection and nothing in the cache.
    """
    from huggingface_hub import constants

    offline = bool(constants.HF_HUB_OFFLINE)
    cached = _cached(repository, revision) if offline or COMMIT.fullmatch(revision or "") else None
    if cached is not None:
        return cached
    if offline:
        raise SpeechsslError(_out_of_reach(repository, "HF_HUB_OFFLINE is set"))
    try:
        files = _list_files(repository, revision)
    except SpeechsslError:
        raise
    except Exception as error:  # whatever the HTTP library below says when there is no connection
        logger.debug("Asking for %s failed", repository, exc_info=error)
        cached = _cached(repository, revision)
        if cached is None:
            raise SpeechsslError(_out_of_reach(repository, type(error).__name__)) from error
        logger.info("The hub can't be reached: '%s' is the cached %s.", repository, cached.name)
        return cached
    return _fetch(repository, revision, files)


def download_file(repository: str, name: str, *, revision: str | None = None) -> Path:
    """Fetches one checkpoint of a repository, or finds it in the local cache.

    Args:
        repository: such as 's3prl/converted_ckpts'.
        name: of the file in it.
        revision: see `download`.

    Raises:
        SpeechsslError: as `download`, or the repository has no such file.
    """
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache

    cached = try_to_load_from_cache(repository, name, revision=revision)
    if isinstance(cached, str) and (constants.HF_HUB_OFFLINE or COMMIT.fullmatch(revision or "")):
        return Path(cached)
    if constants.HF_HUB_OFFLINE:
        raise SpeechsslError(_out_of_reach(f"{repository}/{name}", "HF_HUB_OFFLINE is set"))
    try:
        files = _list_files(repository, revision)
        if name not in files:
            raise SpeechsslError(f"'{repository}' has no file {name}: check its name.{nearest(name, files)}")
        return Path(hf_hub_download(repository, name, revision=revision))
    except SpeechsslError:
        raise
    except Exception as error:  # as in `download`
        if disk_full(error):
            raise
        logger.debug("Fetching %s of %s failed", name, repository, exc_info=error)
        if isinstance(cached, str):
            logger.info("The hub can't be reached: '%s/%s' is the cached one.", repository, name)
            return Path(cached)
        raise SpeechsslError(_out_of_reach(f"{repository}/{name}", type(error).__name__)) from error


def _list_files(repository: str, revision: str | None) -> Collection[str]:
    """One quick question; `hf_hub_download` would ask again and again for half a minute.

    Raises:
        SpeechsslError: the hub has answered, with a refusal.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        info = HfApi().model_info(repository, revision=revision, timeout=TIMEOUT)
    except HFValidationError as error:
        raise SpeechsslError(f"'{repository}' is no name of a repository (org/name): check it.") from error
    except GatedRepoError as error:  # a kind of RepositoryNotFoundError
        raise SpeechsslError(_gated(repository)) from error
    except RepositoryNotFoundError as error:
        raise SpeechsslError(
            f"'{repository}' is no local folder, and on the Hugging Face hub it does not exist or is private: "
            "check its name, or give the token of someone who may read it (HF_TOKEN)."
        ) from error
    except RevisionNotFoundError as error:
        raise SpeechsslError(
            f"'{repository}' has no revision '{revision}': name a branch, a tag or a whole commit of it."
        ) from error
    except HfHubHTTPError as error:
        status = None if error.response is None else error.response.status_code
        if status in (401, 403):
            raise SpeechsslError(
                f"The Hugging Face hub refuses to show '{repository}' (status {status}), which may be private: "
                "give the token of someone who may read it (HF_TOKEN)."
            ) from error
        raise
    return {entry.rfilename for entry in info.siblings or ()}


def _fetch(repository: str, revision: str | None, files: Collection[str]) -> Path:
    """Fetches config and weights, all of the commit that `revision` is now."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import GatedRepoError

    if CONFIG_FILE not in files:
        raise SpeechsslError(f"'{repository}' has no {CONFIG_FILE}: download its checkpoint, and name that file.")
    weights = next((n for w in WEIGHTS_FILES for n in (w, w + INDEX_SUFFIX) if n in files), None)
    if weights is None:
        raise SpeechsslError(
            f"'{repository}' has neither {' nor '.join(WEIGHTS_FILES)}: name a repository with weights for torch."
        )
    name = CONFIG_FILE
    try:
        folder = Path(hf_hub_download(repository, name, revision=revision)).parent
        names = [*({PREPROCESSOR_FILE} & set(files)), weights]
        while names:
            name = names.pop(0)
            path = Path(hf_hub_download(repository, name, revision=folder.name))
            if name.endswith(INDEX_SUFFIX):
                names.extend(list_shards(path))
    except SpeechsslError:
        raise
    except GatedRepoError as error:
        raise SpeechsslError(_gated(repository)) from error
    except Exception as error:  # as in `download`
        if disk_full(error):
            raise
        logger.debug("Fetching %s of %s failed", name, repository, exc_info=error)
        raise SpeechsslError(
            f"The download of {name} of '{repository}' was cut off ({_first_line(error)}): "
            "try again, it goes on where it stopped."
        ) from error
    return folder


def _cached(repository: str, revision: str | None) -> Path | None:
    """The folder in the cache, or None where it is not there or not whole."""
    from huggingface_hub import hf_hub_download

    try:
        config: Any = hf_hub_download(repository, CONFIG_FILE, revision=revision, local_files_only=True)
    except Exception:  # not cached, or no name of a repository
        return None
    folder = Path(config).parent
    for name in WEIGHTS_FILES:
        if (folder / name).is_file():
            return folder
        index = folder / (name + INDEX_SUFFIX)
        if index.is_file():
            return folder if all((folder / shard).is_file() for shard in list_shards(index)) else None
    return None


def _gated(repository: str) -> str:
    return (
        f"'{repository}' is given to those who agreed to its terms: agree to them on its page on the Hugging Face hub, "
        "and give your token (HF_TOKEN)."
    )


def _out_of_reach(repository: str, reason: str) -> str:
    return (
        f"'{repository}' is no local folder, and can't be fetched from the Hugging Face hub ({reason}): connect once, "
        "or name a folder with its config.json and model.safetensors, or ask for random weights."
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].removesuffix(".")
