"""Vocoders as the task takes them: by name or path, and on log-mel."""

import hashlib
from pathlib import Path

from torch import nn

from speechssl.errors import ConfigError
from speechssl.vocoder import Vocoder, load_vocoder
from speechssl.vocoder.folder import folded_state

NAMED = ("hifigan", "griffin_lim", "auto")
"""All of these read the recipe of `MelConfig()`."""


def resolve_vocoder(vocoder: str) -> str:
    """A path from the root where it is one, since a run is used from anywhere."""
    path = Path(vocoder).expanduser()
    return str(path.resolve()) if vocoder not in NAMED and path.exists() else vocoder


def load_mel_vocoder(vocoder: str, *, precision: str) -> Vocoder:
    """Loads a vocoder for a head to log-mel.

    Raises:
        ConfigError: there is none, or it reads features, where nothing is left to train.
    """
    found = load_vocoder(vocoder, precision="bf16" if precision == "bf16" else "float32")
    if found.source is not None:
        raise ConfigError(
            f"The vocoder {vocoder} reads layer {found.source.layer} of '{found.source.upstream}', so that nothing is "
            "left to train: convert with it directly (`speechssl infer voice_conversion --vocoder ...`), or give the "
            "run one on log-mel."
        )
    return found


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
