"""ASVspoof 5: crowdsourced speech and attacks of many makers, through codecs (Wang et al. 2024, arXiv:2408.08739).

Track 1, detection: the splits are those of ASVspoof5.train.tsv, .dev.track_1.tsv and .eval.track_1.tsv, eval being
`test`; despite their names the lists are separated by spaces. The columns are those of the corpus's README.txt:
speaker, file, gender, codec, its quality, the utterance before coding (`original`), the attack's tag, attack, key, and
one that is reserved. Speech without codec has the label `codec` 'none'.

Track 2, verification that spoofing does not fool: the lists `trials_dev` and `trials_test` hold '<target | nontarget |
spoof> <speaker> <id>', `enrolment_dev` and `enrolment_test` '<speaker> <id> ...'; the files that enrol are the splits
`dev_enrolment` and `test_enrolment`, which are bona fide.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from speechssl.data.corpora.base import Count, Item, NoSettings, Note, Reading, find_root, need_file
from speechssl.data.corpora.spoofing import (
    BONA_FIDE,
    COUNTED,
    NONE,
    check_rows,
    check_values,
    first_of,
    protocol_items,
    read_rows,
    unlisted,
)
from speechssl.errors import ManifestError

NAME = "ASVspoof 5"
HOMEPAGE = "https://zenodo.org/records/14498691"
LICENCE = "ODC-By-1.0 (bona fide speech CC-BY-4.0)"
LAYOUT = "ASVspoof5.train.tsv and the other protocols (or ASVspoof5_protocols/), flac_T/, flac_D/ and flac_E_eval/"
# README.txt of the corpus.
EXPECTED = {
    "train": Count(182_357),
    "dev": Count(140_950),
    "test": Count(680_774),
    "dev_enrolment": Count(1184, {"speaker": 398}, optional=True),
    "test_enrolment": Count(1098, {"speaker": 367}, optional=True),
}
PARTS = {"train": ("train", "flac_T"), "dev": ("dev.track_1", "flac_D"), "test": ("eval.track_1", "flac_E_eval")}
"""Split -> name of its protocol, and of its folder."""
FOLDERS = ("", "ASVspoof5_protocols/", "protocols/", "protocol/")
"""Where protocols may lie."""
COLUMNS = (
    *("speaker", "id", "gender", "codec", "codec_quality", "original"),
    *("attack_tag", "attack", "key", "reserved"),
)
TRIAL_COLUMNS = ("speaker", "id", "gender", "attack", "key")
TRIAL_KEYS = ("target", "nontarget", "spoof")


def read(source: Path, config: NoSettings) -> Reading:
    """Lists both tracks."""
    del config
    marks = [f"{folder}ASVspoof5.train.tsv" for folder in FOLDERS]
    root = find_root(source, (*marks, "ASVspoof5_protocols", "flac_T"), name=NAME, layout=LAYOUT)
    splits: dict[str, list[Item]] = {}
    files: dict[str, Sequence[str]] = {}
    notes: tuple[Note, ...] = ()
    for split, (protocol, name) in PARTS.items():
        folder = root / name
        splits[split] = _read_track_1(root, protocol, folder)
        heard = [item.id for item in splits[split]]
        enrolment = {} if split == "train" else _read_enrolment(root, protocol.split(".")[0])
        if enrolment:
            trials = list(_read_trials(root, protocol.split(".")[0], frozenset(heard), enrolment))
            genders = {speaker: gender for speaker, gender, _ in trials}
            splits[f"{split}_enrolment"] = list(_enrolment_items(enrolment, genders, folder))
            files[f"trials_{split}"] = [line for _, _, line in trials]
            files[f"enrolment_{split}"] = [" ".join((speaker, *ids)) for speaker, ids in enrolment.items()]
            heard += [name for ids in enrolment.values() for name in ids]
        notes += unlisted(folder, heard)
    return Reading(splits, EXPECTED, notes, files, counted=(*COUNTED, "codec"))


def _find(root: Path, name: str) -> Path | None:
    return first_of(root, [f"{folder}ASVspoof5.{name}.tsv" for folder in FOLDERS], Path.is_file)


def _read_track_1(root: Path, protocol: str, folder: Path) -> list[Item]:
    path = _find(root, protocol) or root / f"ASVspoof5.{protocol}.tsv"
    need_file(path, f"it comes in ASVspoof5_protocols.tar.gz, from {HOMEPAGE}")
    rows = check_rows(path, read_rows(path, COLUMNS))
    check_values(path, rows, "gender", ("F", "M"))
    for _, row in rows:
        row["gender"] = row["gender"].lower()
        if row["codec"] == NONE:
            row["codec"], row["codec_quality"] = "none", NONE
    return protocol_items(rows, folder, leave=("id", "reserved"), language="en")


def _read_enrolment(root: Path, part: str) -> dict[str, list[str]]:
    """Speaker -> files that enrol them; none where the lists of track 2 are not there."""
    path = _find(root, f"{part}.track_2.enroll")
    found: dict[str, list[str]] = {}
    for where, row in [] if path is None else read_rows(path, ("speaker", "ids")):
        if row["speaker"] in found:
            raise ManifestError(f"{where} enrols '{row['speaker']}' a second time: fetch the protocol again.")
        found[row["speaker"]] = row["ids"].split(",")
    return found


def _read_trials(
    root: Path, part: str, known: frozenset[str], enrolment: Mapping[str, Sequence[str]]
) -> Iterator[tuple[str, str, str]]:
    """Yields (target speaker, gender, '<key> <speaker> <id>')."""
    path = _find(root, f"{part}.track_2.trial") or root / f"ASVspoof5.{part}.track_2.trial.tsv"
    need_file(path, f"{path.name.replace('trial', 'enroll')} is there, and belongs to it")
    rows = list(read_rows(path, TRIAL_COLUMNS))
    check_values(path, rows, "key", TRIAL_KEYS)
    for where, row in rows:
        if row["id"] not in known:
            raise ManifestError(f"{where} names '{row['id']}', which the protocol of track 1 does not.")
        if row["speaker"] not in enrolment:
            raise ManifestError(f"{where} has the target '{row['speaker']}', whom no list enrols.")
        yield row["speaker"], row["gender"].lower(), f"{row['key']} {row['speaker']} {row['id']}"


def _enrolment_items(
    enrolment: Mapping[str, Iterable[str]], genders: Mapping[str, str], folder: Path
) -> Iterator[Item]:
    for speaker, ids in enrolment.items():
        labels = {"speaker": speaker, "key": BONA_FIDE, "attack": BONA_FIDE, "language": "en"}
        if speaker in genders:
            labels["gender"] = genders[speaker]
        for name in ids:
            yield Item(name, str(folder / f"{name}.flac"), labels)
