"""ASVspoof 2019, logical access: text-to-speech and voice conversion over VCTK (Wang et al. 2020, arXiv:1911.01601).

The splits are the official ones, eval being `test`; four of the six attacks of train and dev (A04 and A06 are A16 and
A19 of eval) are not in eval. Lines of a protocol of countermeasures are 'SPEAKER FILE - SYSTEM KEY' (the corpus's
README.LA.txt), and what README.LA.txt says of a system is the label `family`. The folders of audio also hold the files
that enrol speakers, which the lists ASVspoof2019.LA.asv.*.trn.txt name: they are in no split.
"""

from pathlib import Path

from speechssl.data.corpora.base import Count, Item, NoSettings, Note, Reading, find_root, need_file
from speechssl.data.corpora.spoofing import (
    BONA_FIDE,
    COUNTED,
    check_rows,
    protocol_items,
    read_rows,
    unlisted,
)
from speechssl.errors import ManifestError
from speechssl.text_files import read_lines

NAME = "ASVspoof 2019 LA"
HOMEPAGE = "https://datashare.ed.ac.uk/handle/10283/3336"
LICENCE = "ODC-By-1.0"
LAYOUT = "ASVspoof2019_LA_cm_protocols/ and ASVspoof2019_LA_{train,dev,eval}/flac/, as LA.zip unpacks"
# Wang et al. 2020, table 1: bona fide and spoofed utterances together.
EXPECTED = {"train": Count(25_380), "dev": Count(24_844), "test": Count(71_237)}
PARTS = {"train": ("train", "train.trn"), "dev": ("dev", "dev.trl"), "test": ("eval", "eval.trl")}
"""Split -> name of its folder, and of its protocol."""
COLUMNS = ("speaker", "id", "unused", "attack", "key")
FAMILIES = {
    **dict.fromkeys(("A01", "A08", "A10", "A12"), "TTS, neural waveform"),
    **dict.fromkeys(("A02", "A03", "A09"), "TTS, vocoder"),
    **dict.fromkeys(("A04", "A16"), "TTS, waveform concatenation"),
    **dict.fromkeys(("A05", "A18"), "VC, vocoder"),
    **dict.fromkeys(("A06", "A19"), "VC, spectral filtering"),
    "A07": "TTS, vocoder and GAN",
    "A11": "TTS, Griffin-Lim",
    "A13": "TTS and VC, waveform concatenation and filtering",
    "A14": "TTS and VC, vocoder",
    "A15": "TTS and VC, neural waveform",
    "A17": "VC, waveform filtering",
}


def read(source: Path, config: NoSettings) -> Reading:
    """Lists the three splits."""
    del config
    root = find_root(source, ("ASVspoof2019_LA_cm_protocols", "ASVspoof2019_LA_train"), name=NAME, layout=LAYOUT)
    splits: dict[str, list[Item]] = {}
    notes: tuple[Note, ...] = ()
    for split, (part, protocol) in PARTS.items():
        path = root / "ASVspoof2019_LA_cm_protocols" / f"ASVspoof2019.LA.cm.{protocol}.txt"
        need_file(path, "it comes in LA.zip, in ASVspoof2019_LA_cm_protocols/")
        rows = check_rows(path, read_rows(path, COLUMNS))
        folder = root / f"ASVspoof2019_LA_{part}" / "flac"
        items = protocol_items(rows, folder, leave=("id", "unused"), language="en")
        splits[split] = [_with_family(item) for item in items]
        notes += unlisted(folder, [item.id for item in items] + _enrolled(root, part))
    return Reading(splits, EXPECTED, notes, counted=COUNTED)


def _with_family(item: Item) -> Item:
    attack = str(item.labels["attack"])
    family = BONA_FIDE if attack == BONA_FIDE else FAMILIES.get(attack, "unknown")
    return Item(item.id, item.path, {**item.labels, "family": family})


def _enrolled(root: Path, part: str) -> list[str]:
    """The files that only the lists of enrolment name: 'SPEAKER FILE,FILE,...'."""
    found: list[str] = []
    for path in sorted((root / "ASVspoof2019_LA_asv_protocols").glob(f"ASVspoof2019.LA.asv.{part}.*.trn.txt")):
        for where, line in read_lines(path):
            values = line.split()
            if len(values) != 2:
                raise ManifestError(f"{where} is '{line.strip()}', but must be a speaker and files with commas.")
            found += values[1].split(",")
    return found
