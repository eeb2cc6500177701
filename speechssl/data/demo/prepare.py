"""The one entry: which corpus is asked for, and whether it is already there."""

import json
import logging
from pathlib import Path
from typing import Any, Literal

from speechssl.config import load_config, to_dict
from speechssl.data.demo.build import build_from_packages
from speechssl.data.demo.config import FULL, DemoConfig
from speechssl.data.manifests import REVISION, fingerprint_of_folder
from speechssl.data.synthetic import SyntheticConfig, build_synthetic
from speechssl.errors import SpeechsslError

logger = logging.getLogger(__name__)


def prepare_demo(
    folder: str | Path,
    *,
    config: str | Path | None = None,
    full: bool = False,
    source: Literal["debian", "synthetic"] = "debian",
    keep_packages: bool = False,
    skip_bad: bool = False,
    workers: int = 2,
) -> dict[str, Any]:
    """Prepares the demo corpus in `folder` and returns what its corpus.json holds; a finished one is left as it is.

    Args:
        config: YAML file with the differences from `DemoConfig` (or `SyntheticConfig`).
        full: every source without limit of hours.
        source: 'debian' = real speech from packages, 'synthetic' = espeak-ng.

    Raises:
        SpeechsslError: packages that can't be had, or a file that can't be decoded.
    """
    root = Path(folder)
    default = SyntheticConfig() if source == "synthetic" else FULL if full else DemoConfig()
    settings = load_config(default, yaml=config)
    done = _finished(root, source, json.loads(json.dumps(to_dict(settings))))
    if done is not None:
        logger.info("The corpus %s is already there, made with the same config", root)
        return done
    (root / "corpus.json").unlink(missing_ok=True)
    if isinstance(settings, SyntheticConfig):
        return build_synthetic(root, settings, workers=workers)
    return build_from_packages(root, settings, workers=workers, skip_bad=skip_bad, keep_packages=keep_packages)


def _finished(root: Path, source: str, config: dict[str, Any]) -> dict[str, Any] | None:
    """What corpus.json holds, if the corpus is complete and was made with this config."""
    try:
        info: dict[str, Any] = json.loads((root / "corpus.json").read_text(encoding="utf-8"))
        if (info["source"], info["config"], info["revision"]) != (source, config, REVISION):
            return None
        return info if fingerprint_of_folder(root) == info["fingerprint"] else None
    except (OSError, ValueError, KeyError, SpeechsslError):
        return None
