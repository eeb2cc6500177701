"""Vocoders as the task takes them: by name or path, on log-mel or on features."""

import hashlib
import logging
from pathlib import Path
from typing import cast

from torch import nn

from speechssl.errors import ConfigError, SpeechsslError
from speechssl.upstream import Upstream
from speechssl.vocoder import FeatureSource, Vocoder, load_vocoder
from speechssl.vocoder.folder import folded_state

logger = logging.getLogger(__name__)
NAMED = ("hifigan", "griffin_lim", "auto")
"""All of these read the recipe of `MelConfig()`."""


def resolve_vocoder(vocoder: str) -> str:
    """A path from the root where it is one, since a run is used from anywhere."""
    return vocoder if vocoder in NAMED else resolve_path(vocoder)


def resolve_path(vocoder: str | Path) -> str:
    """The same, even where what is there is named as a vocoder is."""
    path = Path(vocoder).expanduser()
    return str(path.resolve()) if path.exists() else str(vocoder)


def load_for_run(vocoder: str, *, precision: str) -> Vocoder:
    """Loads the vocoder of a config.

    Raises:
        ConfigError: there is none of this name or path.
    """
    found = load_vocoder(vocoder, precision="bf16" if precision == "bf16" else "float32")
    if found.source is not None:
        told = found.source
        logger.info("%s reads layer %d of '%s': other features make no speech.", found.name, told.layer, told.upstream)
    return found


def check_features(vocoder: Vocoder, *, layer: int, width: int, frame_rate: float) -> None:
    """Sees that a vocoder on features can read those of an upstream.

    Raises:
        ConfigError: they are of another layer, width or rate.
    """
    source = cast(FeatureSource, vocoder.source)
    if layer != source.layer:
        raise ConfigError(f"The vocoder {vocoder.name} reads layer {source.layer} of '{source.upstream}', not {layer}.")
    expected = getattr(getattr(vocoder, "config", None), "features", width)
    if width != expected:
        raise ConfigError(
            f"The vocoder {vocoder.name} reads features {expected} wide, but those of layer {layer} are {width} wide: "
            f"give the upstream that it was trained on ('{source.upstream}')."
        )
    if abs(frame_rate * vocoder.mel.hop - vocoder.mel.sample_rate) > 1e-3 * vocoder.mel.sample_rate:
        raise ConfigError(
            f"The vocoder {vocoder.name} reads {vocoder.mel.frame_rate:g} frames per second, but the upstream gives "
            f"{frame_rate:g}: give the one that it was trained on ('{source.upstream}')."
        )


def check_upstream(vocoder: Vocoder, upstream: Upstream) -> None:
    """Sees that features come from the upstream that a vocoder on features was trained on.

    kNN-VC gives WavLM-Large the waveform as it is, though the model was trained on normalised ones; its public
    vocoders, which name no fingerprint, know features of no other kind.

    Raises:
        SpeechsslError: they are of other weights, or of normalised waveforms.
    """
    source = cast(FeatureSource, vocoder.source)
    if source.fingerprint is None:
        if upstream.normalize:
            raise SpeechsslError(
                f"'{upstream.name}' normalises its input, which the vocoder {vocoder.name} does not expect: name it "
                f"'{upstream.name}:raw', or set `upstream.normalize = False`."
            )
    elif upstream.fingerprint() != source.fingerprint:
        raise SpeechsslError(
            f"The vocoder was trained on another upstream than '{upstream.name}': give the one that was used "
            f"('{source.upstream}', fingerprint {source.fingerprint}) with `--upstream`."
        )


def vocoder_key(kind: str, vocoder: Vocoder) -> str:
    """What tells vocoders apart in the names of folders: equal weights, equal key."""
    name = vocoder.name.split()[0].lower()
    if kind in NAMED or not isinstance(vocoder, nn.Module):
        return name
    digest = hashlib.sha256(repr(vocoder.mel).encode())
    for key, tensor in sorted(folded_state(vocoder).items()):
        digest.update(f"{key} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return f"{name}-{digest.hexdigest()[:12]}"
