"""A target's voice, encoded once and kept in a file.

N frames, D width.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from speechssl.checkpoint import save_tensors
from speechssl.errors import SpeechsslError

FORMAT = 1
SUFFIX = ".voice"


@dataclass(frozen=True)
class FrameSource:
    """What frames are of: those of another upstream or layer can't be compared with them."""

    upstream: str
    """Name, for people."""
    fingerprint: str
    """Of its weights."""
    layers: tuple[int, ...]
    joined: str | None = None
    """A hash of what joins several layers; None = one layer as it is."""

    def difference(self, other: "FrameSource") -> str | None:
        """Says in words in what `other` differs from this; None = in nothing but its name."""
        if other.fingerprint != self.fingerprint:
            return (
                f"the upstream '{other.upstream}' (fingerprint {other.fingerprint}) and not '{self.upstream}' "
                f"({self.fingerprint})"
            )
        if other.layers != self.layers:
            return f"{_layers(other.layers)} of '{other.upstream}' and not {_layers(self.layers)}"
        if other.joined != self.joined:
            return f"{_layers(other.layers)} of '{other.upstream}' as another run joins them"
        return None


@dataclass(frozen=True)
class TargetVoice:
    """The frames of a target's speech."""

    frames: Tensor
    """(N, D) float32."""
    source: FrameSource
    sample_rate: int
    """At which it was heard, Hz."""
    seconds: float
    """Of speech."""
    loudness: float
    """Of its recordings, LUFS."""

    def save(self, path: str | Path) -> None:
        """Writes it, whole or not at all."""
        path = Path(path)
        about = {
            "format": FORMAT,
            "source": asdict(self.source),
            "sample_rate": self.sample_rate,
            "seconds": self.seconds,
            "loudness": self.loudness,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        save_tensors({"frames": self.frames}, path, metadata={"voice": json.dumps(about)})

    def check(self, source: FrameSource, *, name: str) -> None:
        """Sees that frames of `source` can be compared with it.

        Args:
            name: of this voice, for people.

        Raises:
            SpeechsslError: they can't; the sentence says in what they differ.
        """
        difference = source.difference(self.source)
        if difference is not None:
            raise SpeechsslError(f"{name} is of {difference}, which this converter hears: encode its speech again.")


def load_voice(path: str | Path) -> TargetVoice:
    """Reads what `TargetVoice.save` wrote.

    Raises:
        SpeechsslError: it is missing, damaged, something else, or of a newer version.
    """
    path = Path(path)
    if not path.is_file():
        raise SpeechsslError(f"The voice {path} does not exist: check the path, or make it with `--save-voice`.")
    try:
        with safe_open(path, framework="pt") as file:
            about: dict[str, Any] = json.loads((file.metadata() or {})["voice"])
            frames: Tensor = file.get_tensor("frames")
        if about["format"] != FORMAT:
            raise SpeechsslError(f"{path} is a voice of format {about['format']}, not {FORMAT}: encode it again.")
        source = FrameSource(**{**about["source"], "layers": tuple(about["source"]["layers"])})
        return TargetVoice(frames, source, int(about["sample_rate"]), about["seconds"], about["loudness"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise SpeechsslError(f"{path} is no voice that speechssl saved ({error}): encode its speech again.") from error


def is_voice(path: object) -> bool:
    """Whether this is the name of a saved voice."""
    return isinstance(path, str | Path) and Path(path).suffix == SUFFIX


def _layers(layers: tuple[int, ...]) -> str:
    return f"layer {layers[0]}" if len(layers) == 1 else f"layers {', '.join(map(str, layers))}"
