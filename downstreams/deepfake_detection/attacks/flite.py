"""Text-to-speech by Flite: joined diphones ('kal16'), and statistical clusters of frames ('slt', 'rms', 'awb').

The Debian packages are unpacked, never installed.

Paper: Black and Lenzo 2001, "Flite: a small fast run-time synthesis engine"; Black 2006, "CLUSTERGEN".
"""

import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import soundfile
import torch
from torch import Tensor

from downstreams.deepfake_detection.attacks import Attack, Source, Synthesiser
from speechssl.data.packages import download_debian, unpack_debian
from speechssl.data.pypi import packages_folder
from speechssl.errors import SpeechsslError

PACKAGES = ("flite", "libflite1", "libasound2")
CLUSTERGEN = ("slt", "rms", "awb")
TIMEOUT = 60.0  # seconds for one utterance


def _load(voices: tuple[str, ...]) -> Synthesiser:
    root = _unpacked()
    program = root / "flite" / "usr" / "bin" / "flite"
    libraries = sorted({str(p.parent) for p in root.glob("*/usr/lib/**/*.so.*")})
    environment = {**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(libraries)}

    def run(source: Source) -> tuple[Tensor, int]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "speech.wav"
            command = [str(program), "-voice", voices[source.variant], "-t", source.text, "-o", str(path)]
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=TIMEOUT, check=False
            )
            if done.returncode != 0 or not path.exists():
                raise SpeechsslError(f"flite failed ({(done.stderr or 'no message').strip().splitlines()[-1]}).")
            samples, sample_rate = soundfile.read(path, dtype="float32")
        return torch.from_numpy(samples), int(sample_rate)

    # Shows at once whether the unpacked program runs on this machine.
    run(Source("test", "en", torch.zeros(0)))
    return run


def _run(command: Sequence[str], environment: Mapping[str, str]) -> None:
    try:
        subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT, check=True)
    except OSError as error:
        raise SpeechsslError(f"flite does not run on this machine ({error}).") from error
    except subprocess.TimeoutExpired as error:
        raise SpeechsslError(f"flite took over {TIMEOUT:.0f} s for one utterance.") from error
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip().splitlines() or ["no message"])[-1]
        raise SpeechsslError(f"flite failed ({reason}).") from error


def _unpacked() -> Path:
    """Fetches the packages, once, and returns the folder that holds each of them unpacked."""
    folder = packages_folder() / "debian"
    for archive in download_debian(PACKAGES, folder).values():
        if archive.name in PACKAGES:
            unpack_debian(archive, folder / archive.name, keep=r"usr/(bin|lib)/")
    (folder / "flite" / "usr" / "bin" / "flite").chmod(0o755)
    return folder


ENGLISH = frozenset({"en"})
ATTACKS = (
    Attack("flite_diphone", "diphone TTS", "tts", "flite", partial(_load, ("kal16",)), ENGLISH),
    Attack("flite_clustergen", "statistical TTS", "tts", "flite", partial(_load, CLUSTERGEN), ENGLISH, len(CLUSTERGEN)),
)
