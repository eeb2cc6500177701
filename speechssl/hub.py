"""Published weights from the Hugging Face hub."""

import logging
from pathlib import Path

from speechssl.errors import SpeechsslError

logger = logging.getLogger(__name__)


def download(repository: str, *, revision: str | None = None) -> Path:
    """Fetches a model in transformers' format, or finds it in the local cache.

    Args:
        repository: such as 'facebook/hubert-base-ls960'.
        revision: a commit or tag; None = the newest.

    Returns:
        The folder that holds config.json, the weights and, where there is one, preprocessor_config.json.

    Raises:
        SpeechsslError: no such repository, or no connection and nothing in the cache.
    """
    from huggingface_hub import hf_hub_download, repo_exists, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    def fetch(name: str) -> Path:
        return Path(hf_hub_download(repository, name, revision=revision))

    try:
        if not isinstance(try_to_load_from_cache(repository, "config.json", revision=revision), str):
            # One quick question: hf_hub_download would retry for half a minute, with a line for each try.
            repo_exists(repository)
        folder = fetch("config.json").parent
        for optional, fallback in (("preprocessor_config.json", None), ("model.safetensors", "pytorch_model.bin")):
            try:
                fetch(optional)
            except LocalEntryNotFoundError:
                raise
            except EntryNotFoundError:
                if fallback:
                    fetch(fallback)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        logger.debug("Fetching %s failed", repository, exc_info=error)
        raise SpeechsslError(
            f"'{repository}' is no local folder, and can't be fetched from the Hugging Face hub "
            f"({type(error).__name__}): connect once, or name a folder with its config.json and "
            "model.safetensors, or ask for random weights."
        ) from error
    return folder
