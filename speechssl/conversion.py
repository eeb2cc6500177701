"""Voice conversion in three lines: `load_converter`, then `voice`, then `convert`.

Without arguments `load_converter` takes what comes with the package.

The task's own folder does it; what it promises is said here, so that this package need not know that folder.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from torch import Tensor

from speechssl.forward import Precision
from speechssl.registry import task_module
from speechssl.types import Utterance
from speechssl.upstream import Upstream

TASK = "voice_conversion"
CHUNK = 30.0
Speech = str | Path | Utterance | Sequence[str | Path | Utterance]
"""Audio files, folders, globs, lists or manifests, see `speechssl.inputs`."""
Loudness = Literal["source", "voice", "vocoder"] | float
"""How loud a conversion is: as its source, as the target's recordings, as the vocoder makes it, or a level in LUFS."""


@dataclass(frozen=True)
class Conversion:
    """Converted speech."""

    waveform: Tensor
    """(S,) float32 within [-1, 1]."""
    sample_rate: int
    """Hz."""
    path: Path | None
    """Where it was written."""
    loudness: float | None
    """LUFS; None where nothing is loud enough to be measured."""


class Voice(Protocol):
    """What is kept of a target, so that it is encoded once."""

    seconds: float
    """Of speech."""
    loudness: float
    """Of its recordings, LUFS."""

    def save(self, path: str | Path) -> None:
        """Writes it as a safetensors file, from which the same converter's `voice` reads it."""


class Converter(Protocol):
    """Says what one file says in the voice of others."""

    sample_rate: int
    """Of the vocoder, Hz."""

    def voice(self, speech: Speech) -> Voice:
        """Encodes a target's speech, or reads the file that `Voice.save` wrote.

        Args:
            speech: of the target alone, a second or more; half a minute says more.

        Raises:
            AudioError: a file that can't be read, is silent, or too little speech in all of them.
            SpeechsslError: a saved voice of another upstream or layer.
        """

    def convert(
        self,
        source: str | Path,
        voice: Any,
        *,
        out: str | Path | None = None,
        loudness: Loudness = "source",
        sample_rate: int | None = None,
    ) -> Conversion:
        """Converts a file of any length.

        Args:
            source: mono or stereo (which is mixed down) at any sampling rate.
            voice: what `voice` returned, or what it takes.
            out: .wav or .flac to write, with a tag that says that it is synthetic.
            loudness: see `Loudness`; peaks beyond -1 dB are turned down in any case.
            sample_rate: of the result, Hz; None = the vocoder's.

        Raises:
            AudioError: a source that can't be read, is silent, or is shorter than a frame.
            ConfigError: settings that are not possible.
        """


def load_converter(
    run_folder: str | Path | None = None,
    *,
    upstream: str | Path | Upstream | None = None,
    layer: int | None = None,
    match_layer: int | None = None,
    vocoder: str | Path | None = None,
    k: int | None = None,
    trim: bool | None = None,
    chunk: float | None = CHUNK,
    precision: Precision = "float32",
    device: str = "cpu",
) -> Converter:
    """Loads what converts voices: a finished run of the task, or kNN-VC without any training.

    Args:
        run_folder: what `speechssl run voice_conversion` wrote; None = kNN-VC with a vocoder that reads features.
        upstream: of a run, where its upstream is now, if it was moved; of kNN-VC, the upstream; None = the one that run
            or vocoder name.
        layer: of kNN-VC; None = the one that the vocoder reads.
        match_layer: of kNN-VC, the hidden state that is compared to find the nearest frames; None = as the vocoder
            says, or `layer`.
        vocoder: of kNN-VC, a folder of `speechssl vocoder`, or its 'prematch_g_02500000.pt' or 'g_02500000.pt'; of a
            run, another one than it was evaluated with; None = the one that comes with the package, of kNN-VC.
        k: nearest frames that are averaged; None = as in the run, or 4.
        trim: whether silence at both ends of a target's recordings is cut off first; None = as published for kNN-VC
            (yes), and as evaluated for a run (no).
        chunk: seconds above which a file is heard in windows of this length; None = always as a whole.
        precision: 'bf16' computes upstream and vocoder so, faster on processors that have it.

    Raises:
        ManifestError: no finished run there.
        ConfigError: what doesn't fit together.
        SpeechsslError: upstream or vocoder can't be loaded.
    """
    converter: Converter = task_module(TASK, "loading").make_converter(
        run_folder, upstream=upstream, layer=layer, match_layer=match_layer, vocoder=vocoder, k=k, trim=trim,
        chunk=chunk, precision=precision, device=device,
    )  # fmt: skip
    return converter
