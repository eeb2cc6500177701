"""VoiceBank-DEMAND: noisy speech beside the clean one (Valentini-Botinhao et al. 2016), for speech enhancement.

SUPERB's splits: dev are the speakers p226 and p287 of the 28 training speakers, test the two of the test set
(`prepare_voicebank` in S3PRL `downstream/enhancement_stft/scripts/Voicebank/voicebank_prepare.py`, which is
SpeechBrain's, with its two validation speakers). The utterance is the noisy file; `clean` is the path of the other.

S3PRL resamples to 16 kHz first, into folders that end in _16k: those are taken where they are. The published ones are
at 48 kHz, and are resampled as they are read.
"""

from collections.abc import Iterator
from pathlib import Path

from speechssl.data.corpora.base import Count, Item, NoSettings, Reading, audio_stems, find_root, note
from speechssl.text_files import read_lines

NAME = "VoiceBank-DEMAND"
HOMEPAGE = "https://datashare.ed.ac.uk/handle/10283/2791"
LICENCE = "CC-BY-4.0"
LAYOUT = "noisy_trainset_28spk_wav/, clean_trainset_28spk_wav/, noisy_testset_wav/ and clean_testset_wav/ (or ..._16k/)"
DEV_SPEAKERS = ("p226", "p287")
# Publisher's page: 11 572 training utterances of 28 speakers, 824 of two for the test. Of the former 770 are dev's:
# Fu et al. 2021, arXiv:2110.05866.
EXPECTED = {
    "train": Count(10_802, {"speaker": 26}),
    "dev": Count(770, {"speaker": 2}),
    "test": Count(824, {"speaker": 2}),
}


def read(source: Path, config: NoSettings) -> Reading:
    """Lists the pairs."""
    del config
    marks = [f"noisy_trainset_28spk_wav{end}" for end in ("_16k", "")]
    root = find_root(source, marks, name=NAME, layout=LAYOUT)
    training = list(_read_pairs(root, "trainset_28spk"))
    splits = {
        "train": [item for item in training if item.labels["speaker"] not in DEV_SPEAKERS],
        "dev": [item for item in training if item.labels["speaker"] in DEV_SPEAKERS],
        "test": list(_read_pairs(root, "testset")),
    }
    silent = [item.id for items in splits.values() for item in items if not item.labels.get("text")]
    notes = note("utterances without a transcript", silent if (root / "trainset_28spk_txt").is_dir() else [])
    return Reading({split: items for split, items in splits.items() if items}, EXPECTED, notes)


def _read_pairs(root: Path, part: str) -> Iterator[Item]:
    """The utterances that one side of the pairs has, sorted; that the other has it too is checked later."""
    noisy, clean = (_folder(root, f"{side}_{part}_wav") for side in ("noisy", "clean"))
    for stem in sorted({*audio_stems(noisy), *audio_stems(clean)}):
        pair = str(clean / f"{stem}.wav")
        labels = {"clean": pair, "speaker": stem.split("_")[0], "language": "en"}
        transcript = root / f"{part}_txt" / f"{stem}.txt"
        if transcript.is_file():
            labels["text"] = " ".join(line.strip() for _, line in read_lines(transcript))
        yield Item(stem, str(noisy / f"{stem}.wav"), labels, partners=(pair,))


def _folder(root: Path, name: str) -> Path:
    resampled = root / f"{name}_16k"
    return resampled if resampled.is_dir() else root / name
