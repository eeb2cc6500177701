"""Vocoders: log-mel frames, or features of an upstream, to waveforms.

`load_vocoder("hifigan")` is a ready universal HiFi-GAN; "griffin_lim" needs no weights; "auto" takes the first where it
can be had and the second otherwise, and says so in the log. A path is a folder that `speechssl vocoder` wrote, or a
public checkpoint of HiFi-GAN or kNN-VC; the name of an upstream that comes with a vocoder on its features stands for
that. Each vocoder has a `name` and the `mel` recipe it reads, or the `source` of the
features that it reads instead.
"""

import logging
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor

from speechssl.errors import ConfigError, SpeechsslError
from speechssl.registry import shipped_vocoders
from speechssl.vocoder.folder import read_vocoder
from speechssl.vocoder.griffin_lim import GriffinLim
from speechssl.vocoder.hifigan import load_hifigan, read_generator
from speechssl.vocoder.inputs import FeatureSource
from speechssl.vocoder.mel import MelConfig, log_mel

__all__ = ["FeatureSource", "MelConfig", "Vocoder", "load_vocoder", "log_mel", "synthesise"]

logger = logging.getLogger(__name__)
Precision = Literal["float32", "bf16"]


class Vocoder(Protocol):
    """What turns frames (B, T, M) into a waveform (B, T * hop) in [-1, 1] at `mel.sample_rate`."""

    name: str
    mel: MelConfig
    source: FeatureSource | None
    """Which features the frames are; None = log-mel of the recipe `mel`."""

    def __call__(self, frames: Tensor, /) -> Tensor:
        """(B, T, M) -> (B, T * hop)."""


def load_vocoder(kind: str | Path, *, precision: Precision = "float32") -> Vocoder:
    """Loads a vocoder by name ('hifigan', 'griffin_lim', 'auto', or of an upstream with one), or from a path.

    Args:
        kind: a name, a folder of `speechssl vocoder`, or a file such as 'prematch_g_02500000.pt' or 'generator_v1'.
        precision: of the network; 'bf16' is 2 to 3 times faster on processors that have it, and sounds the same.

    Raises:
        ConfigError: an unknown name.
        SpeechsslError: 'hifigan' can't be had, or what is at the path can't be read.
    """
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    path, shipped = Path(kind), shipped_vocoders()
    if kind in shipped:
        return read_vocoder(shipped[str(kind)], name=str(kind)).to(dtype)
    if kind not in ("hifigan", "griffin_lim", "auto"):
        if not path.exists():
            names = ", ".join(f"'{name}'" for name in ("hifigan", "griffin_lim", *shipped))
            raise ConfigError(f"`vocoder` must be {names} or 'auto', or a folder or checkpoint, but is '{kind}'.")
        return (read_vocoder(path) if path.is_dir() else read_generator(path)).to(dtype)
    if kind != "griffin_lim":
        try:
            return load_hifigan().to(dtype)
        except SpeechsslError as error:
            if kind == "hifigan":
                raise
            logger.warning("Griffin-Lim stands in for HiFi-GAN: %s", error)
    return GriffinLim()


@torch.inference_mode()
def synthesise(vocoder: Vocoder, frames: Tensor) -> Tensor:
    """One utterance: (T, M) frames to (S,) samples at `vocoder.mel.sample_rate`."""
    return vocoder(frames[None])[0].clone()
