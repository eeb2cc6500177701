"""Tables of scores and protocols as challenges and people write them, read by what they hold.

Columns are told apart by tabs, commas or blanks, whichever the first line has. A first line without numbers that names
a known column is a header; else the columns are found: keys are those of the words 'bonafide' and 'spoof' (or 'target',
'nontarget' and 'spoof'), scores the last numbers of a line.

| files | columns |
|---|---|
| scores of ASVspoof 2021 | id, score |
| scores of ASVspoof 2019 | id, attack, key, score |
| scores of ASVspoof 5 | header: filename, cm-score; with speakers: spk, filename, cm-score, asv-score, sasv-score |
| scores of the package a_dcf | speaker, id, score, key |
| protocols | see LAYOUTS, or a header |
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from downstreams.deepfake_detection.score_text import Places, Texts, read_columns
from speechssl.errors import ManifestError

BONA_FIDE = frozenset({"bonafide", "bona-fide", "bona_fide", "bona fide", "real", "genuine", "human"})
SPOOF = frozenset({"spoof", "spoofed", "fake", "deepfake"})
TARGET = frozenset({"target"})
NONTARGET = frozenset({"nontarget", "non-target", "impostor"})
KEYS = BONA_FIDE | SPOOF | TARGET | NONTARGET
ENDINGS = frozenset({"flac", "wav", "mp3", "ogg", "m4a", "opus"})
CHALLENGE_NAMES = {
    "id": "utterance utterance_id utt utt_id filename file file_name flac_file_name trial trial_anon",
    "speaker": "speaker_id spk tar_spk tar_spk_anon target_speaker",
    "label": "key cm_label cm_key class",
    "asv_label": "asv_key sasv_label trial_type",
    "score": "cm_score",
    "asv_score": "",
    "sasv_score": "",
    "attack": "attack_anon attack_label attack_id system_id",
}
NAMES = {name: kind for kind, names in CHALLENGE_NAMES.items() for name in [kind, *names.split()]}
"""What headers call a column -> what it is."""
LAYOUTS: tuple[tuple[str, ...], ...] = (
    ("id", "label"),
    ("speaker", "id", "environment", "attack", "label"),  # ASVspoof 2019; track 2 of ASVspoof 5 has the gender third
    ("speaker", "id", "codec", "transmission", "attack", "label", "trim", "subset"),  # ASVspoof 2021 LA
    # ASVspoof 5, track 1
    ("speaker", "id", "gender", "codec", "codec_q", "codec_seed", "attack_tag", "attack", "label", "other"),
    (
        "speaker", "id", "room", "microphone", "distance", "attack_room", "attack_microphone", "attack_distance",
        "attack_to_speaker", "label", "trim", "subset",
    ),  # ASVspoof 2021 PA
    (
        "speaker", "id", "compression", "source", "attack", "label", "trim", "subset", "vocoder", "task", "team",
        "gender_pair", "language",
    ),  # ASVspoof 2021 DF
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Table:
    """Lines in columns, all of N values; what a column is, is its name (see NAMES)."""

    path: Path
    columns: Mapping[str, Texts]
    lines: Places
    """(N,) the number of each line in the file."""

    def where(self, row: int | np.intp) -> str:
        """'<path>, line <n>,' for messages."""
        return f"{self.path}, line {self.lines[row]},"

    def __len__(self) -> int:
        return len(self.lines)

    def numbers(self, name: str) -> NDArray[np.float64]:
        """(N,) scores.

        Raises:
            ManifestError: a cell that is no number, or not finite; the message counts them and names the first line.
        """
        values = self.columns[name].numbers()
        bad = np.flatnonzero(~np.isfinite(values))
        if bad.size:
            first = int(bad[0])
            raise ManifestError(
                f"{self.where(first)} has the score '{self.columns[name][first]}', the first of {bad.size} that are no "
                "finite numbers: score these files again, since no trial may be left out."
            )
        return values

    def marked(self, name: str, kinds: frozenset[str]) -> NDArray[np.bool_]:
        """(N,) which labels are of some kinds, in small or capital letters.

        Raises:
            ManifestError: a label that is none of KEYS; the message counts them and names the first line.
        """
        column = self.columns[name]
        names, codes = column.counted
        words = [text.strip().lower() for text in names]
        bad = np.flatnonzero(np.array([word not in KEYS for word in words])[codes])
        if bad.size:
            raise ManifestError(
                f"{self.where(bad[0])} has the label '{column[bad[0]]}', the first of {bad.size} that are "
                "neither 'bonafide' nor 'spoof', nor 'target' or 'nontarget'."
            )
        return np.array([word in kinds for word in words])[codes]


def has_scores_and_keys(path: Path) -> bool:
    """Whether a file gives scores and says itself what is true, by its first lines."""
    try:
        table = read_scores(path, most=2)
    except ManifestError:
        return False
    return bool({"label", "asv_label"} & set(table.columns))


def read_scores(path: Path, *, most: int | None = None) -> Table:
    """Reads a score file: a table with `id` and one or more of `score`, `asv_score`, `sasv_score`.

    Args:
        most: lines that are read; None = all.

    Raises:
        ManifestError: missing, empty, not text, ragged, or of a layout that is not known.
    """
    header, columns, lines = _read(path, most)
    if header is not None:
        table = Table(path, _sort_labels(_named(header, columns)), lines)
        if "id" not in table.columns or not {"score", "asv_score", "sasv_score"} & set(table.columns):
            raise ManifestError(
                f"{path} has the columns {', '.join(header)}, but a score file needs one of files ('filename') and one "
                "of scores ('cm-score')."
            )
        return table
    numeric = [place for place, column in enumerate(columns) if _is_number(column[0])]
    key = _find_keys(columns)
    if not numeric:
        raise ManifestError(f"{path}, line {lines[0]}, has no number, so this is no score file: give 'id score' lines.")
    score = numeric[-1]
    others = [place for place in range(len(columns)) if place not in (score, key)]
    names = {
        (2, False): ["id"],
        (3, False): ["speaker", "id"],
        (3, True): ["id"],
        (4, True): ["speaker", "id"] if key is not None and key > score else ["id", "attack"],
        (5, True): ["speaker", "id", "attack"],
    }.get((len(columns), key is not None))
    if names is None:
        raise ManifestError(
            f"{path} has {len(columns)} columns without a header, which is the layout of no challenge: write a first "
            "line that names them, such as 'filename' and 'cm-score'."
        )
    found = dict(zip(names, (columns[place] for place in others), strict=True)) | {"score": columns[score]}
    if key is not None:
        found["label"] = columns[key]
    return Table(path, _sort_labels(found), lines)


def read_protocol(path: Path, ids: Sequence[str] = ()) -> Table:
    """Reads a protocol: a table with `id` and `label` (bona fide or spoof) or `asv_label` (target, nontarget, spoof).

    Args:
        ids: of the scores, by which the column of files is found where there is no header.

    Raises:
        ManifestError: as `read_scores`, or without a column of labels.
    """
    header, columns, lines = _read(path)
    if header is not None:
        table = Table(path, _sort_labels(_named(header, columns)), lines)
        if "id" not in table.columns or not {"label", "asv_label"} & set(table.columns):
            raise ManifestError(
                f"{path} has the columns {', '.join(header)}, but a protocol needs one of files ('filename') and one "
                "of labels ('label' or 'cm-label')."
            )
        return table
    key = _find_keys(columns)
    if key is None:
        raise ManifestError(
            f"No column of {path} says 'bonafide' or 'spoof' on line {lines[0]}, so this is no protocol: "
            "SCORES come first, PROTOCOL last."
        )
    known = ids if isinstance(ids, Texts) else Texts.of(ids)
    sample = [column.take(np.linspace(0, len(lines) - 1, min(len(lines), 1000)).astype(int)) for column in columns]
    hits = [int((known.find(some) >= 0).sum()) for some in sample]
    if not any(hits):
        known = stems(known)
        hits = [int((known.find(stems(some)) >= 0).sum()) for some in sample]
    layout = next((names for names in LAYOUTS if len(names) == len(columns) and names.index("label") == key), None)
    if any(hits):
        place = int(np.argmax(hits))
    elif layout is not None:
        place = layout.index("id")
    else:
        place = next(p for p in (1, 0) if p < len(columns) and p != key)
    if layout is None or layout.index("id") != place:
        layout = tuple(f"column_{number}" for number in range(1, len(columns) + 1))
    named = dict(zip(layout, columns, strict=True))
    named.pop(layout[place]), named.pop(layout[key])
    return Table(path, _sort_labels(named | {"id": columns[place], "label": columns[key]}), lines)


def stem(name: str) -> str:
    """'a/LA_E_1.flac' -> 'LA_E_1'."""
    name = name.rpartition("/")[2]
    before, point, ending = name.rpartition(".")
    return before if point and ending.lower() in ENDINGS else name


def stems(names: Texts) -> Texts:
    """The stem of each."""
    return Texts.of(map(stem, names))


def _sort_labels(columns: Mapping[str, Texts]) -> dict[str, Texts]:
    """Labels that speak of targets are those of verification."""
    found = dict(columns)
    if "label" in found and {word.strip().lower() for word in found["label"].counted[0]} & (TARGET | NONTARGET):
        found["asv_label"] = found.pop("label")
        if "score" in found and not {"asv_score", "sasv_score"} & found.keys():
            found["sasv_score"] = found.pop("score")
    return found


def _named(header: Sequence[str], columns: Sequence[Texts]) -> dict[str, Texts]:
    found: dict[str, Texts] = {}
    for name, column in zip(header, columns, strict=True):
        kind = NAMES.get(name, name)
        found[name if kind in found else kind] = column
    return found


def _find_keys(columns: Sequence[Texts]) -> int | None:
    """The column that has most keys, the last of equals; None where the first line has none."""
    shares = {}
    for place, column in enumerate(columns):
        if column[0].strip().lower() in KEYS:
            names, codes = column.counted
            counts = np.bincount(codes)
            shares[place] = sum(int(n) for n, text in zip(counts, names, strict=True) if text.strip().lower() in KEYS)
    return max(shares, key=lambda place: (shares[place], place), default=None)


def _read(path: Path, most: int | None = None) -> tuple[list[str] | None, list[Texts], Places]:
    """Header in lower case with underscores, columns, line numbers."""
    columns, numbers = read_columns(path, most)
    first = [column[0] for column in columns]
    header = [cell.strip().lower().replace("-", "_").replace(" ", "_") for cell in first]
    if any(map(_is_number, first)) or not set(header) & set(NAMES):
        return None, columns, numbers
    if numbers.size == 1:
        raise ManifestError(f"{path} has a header and no trials.")
    return header, [column[1:] for column in columns], numbers[1:]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
