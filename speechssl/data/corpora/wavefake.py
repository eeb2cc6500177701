"""WaveFake: vocoders that speak the mel spectrograms of LJSpeech and JSUT again (Frank and Schönherr 2021,
arXiv:2111.02813).

A folder per vocoder holds <recording>_gen.wav for each recording of LJSpeech or of JSUT's basic5000; the folder of the
text-to-speech system, which says prompts of Common Voice, holds gen_<number>.wav, and a copy of all in generated/. The
attack is the folder's name without the speaker, its family the same. The bona fide speech is LJSpeech-1.1/wavs/ and
jsut_ver1.1/basic5000/wav/, in SOURCE or in SOURCE/real_audio.

There is no official list of splits. Here a recording and all that is made of it are in one split: a tenth of the
recordings, by a hash of their names, is `test`, a tenth `dev`.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from speechssl.data.corpora.base import Count, Item, Note, Reading, audio_stems, find_root, note, subfolders
from speechssl.data.corpora.spoofing import BONA_FIDE, COUNTED, SPOOF
from speechssl.errors import ConfigError, ManifestError, nearest

NAME = "WaveFake"
HOMEPAGE = "https://zenodo.org/records/5642694"
LICENCE = "CC-BY-SA-4.0"
LAYOUT = "ljspeech_*/ and jsut_*/ (or generated_audio/ with them), LJSpeech-1.1/wavs/ and jsut_ver1.1/basic5000/wav/"
EXPECTED: dict[str, Count] = {}
"""The splits are ours."""
CONFORMER = "common_voices_prompts_from_conformer_fastspeech2_pwg_ljspeech"
VOCODERS = (
    *("ljspeech_full_band_melgan", "ljspeech_hifiGAN", "ljspeech_melgan", "ljspeech_melgan_large"),
    *("ljspeech_multi_band_melgan", "ljspeech_parallel_wavegan", "ljspeech_waveglow"),
    *("jsut_multi_band_melgan", "jsut_parallel_wavegan", CONFORMER),
)
REAL = {"ljspeech": ("LJSpeech-1.1/wavs", "en"), "jsut": ("jsut_ver1.1/basic5000/wav", "ja")}
"""Speaker -> folder of the recordings, language."""
GENERATED = "_gen"


@dataclass(frozen=True)
class WavefakeConfig:
    """Which vocoders training hears."""

    held_out: tuple[str, ...] = ()
    """Attacks that only `test` has, such as 'waveglow'."""


CONFIG = WavefakeConfig()


def read(source: Path, config: WavefakeConfig) -> Reading:
    """Lists recordings and what vocoders made of them."""
    marks = (*VOCODERS, "generated_audio")
    root = find_root(source, marks, name=NAME, layout=LAYOUT)
    base = root / "generated_audio" if (root / "generated_audio").is_dir() else root
    folders = [folder for folder in subfolders(base) if folder.name in VOCODERS]
    if not folders:
        raise ManifestError(f"{base} holds no folder of a vocoder: give with --from a folder with {LAYOUT}.")
    attacks = [_attack(folder.name) for folder in folders]
    for name in config.held_out:
        if name not in attacks:
            raise ConfigError(f"`held_out` names '{name}', of which {base} has no folder.{nearest(name, attacks)}")
    real = {speaker: folder for speaker in REAL if (folder := _real_folder(root, speaker)).is_dir()}
    if not real:
        raise ManifestError(f"{root} has neither {' nor '.join(where for where, _ in REAL.values())}: put them there.")
    items = [item for folder in folders if folder.name == CONFORMER for item in _speeches(folder)]
    for speaker in REAL:
        own = [folder for folder in folders if folder.name.startswith(f"{speaker}_")]
        items += _recordings(speaker, real.get(speaker), own)
    splits: dict[str, list[Item]] = {"train": [], "dev": [], "test": []}
    dropped = []
    for item in items:
        split = _split(str(item.labels["original"]))
        if split != "test" and item.labels["attack"] in config.held_out:
            dropped.append(item.path)
        else:
            splits[split].append(item)
    absent = [str(_real_folder(root, speaker)) for speaker in REAL if speaker not in real]
    notes = note("folders of bona fide speech that are not there", absent)
    notes += note("held-out utterances that train and dev lack", dropped)
    return Reading(splits, EXPECTED, notes + _copies(folders), counted=COUNTED)


def _attack(folder: str) -> str:
    return "conformer_fastspeech2_pwg" if folder == CONFORMER else folder.partition("_")[2]


def _real_folder(root: Path, speaker: str) -> Path:
    where = REAL[speaker][0]
    return root / "real_audio" / where if (root / "real_audio").is_dir() else root / where


def _recordings(speaker: str, real: Path | None, vocoders: Sequence[Path]) -> Iterator[Item]:
    """The recordings that any folder of a speaker has: each folder should have them all."""
    names = set() if real is None else set(audio_stems(real))
    for folder in vocoders:
        names |= {name.removesuffix(GENERATED) for name in audio_stems(folder)}
    for name in sorted(names):
        labels = {"speaker": speaker, "language": REAL[speaker][1], "original": name}
        if real is not None:
            yield Item(name, str(real / f"{name}.wav"), labels | _marks(BONA_FIDE))
        for folder in vocoders:
            path = folder / f"{name}{GENERATED}.wav"
            yield Item(f"{folder.name}-{name}", str(path), labels | _marks(_attack(folder.name)))


def _speeches(folder: Path) -> Iterator[Item]:
    """What the text-to-speech system says; nobody has recorded it, but there is a copy of each file."""
    for name in sorted({*audio_stems(folder), *audio_stems(folder / "generated")}):
        labels = {"speaker": "ljspeech", "language": "en", "original": name} | _marks(_attack(folder.name))
        yield Item(f"{folder.name}-{name}", str(folder / f"{name}.wav"), labels)


def _marks(attack: str) -> dict[str, str]:
    return {"key": BONA_FIDE if attack == BONA_FIDE else SPOOF, "attack": attack, "family": attack}


def _copies(folders: list[Path]) -> tuple[Note, ...]:
    """The files of the text-to-speech system are there twice."""
    copies = [folder / "generated" for folder in folders if (folder / "generated").is_dir()]
    return note(
        "copies in generated/, which are left out",
        [str(folder / f"{name}.wav") for folder in copies for name in audio_stems(folder)],
    )


def _split(original: str) -> str:
    digest = hashlib.sha256(original.encode()).digest()
    return {0: "test", 1: "dev"}.get(int.from_bytes(digest, "big") % 10, "train")
