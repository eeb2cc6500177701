"""The files of a spoken term detection evaluation, in the formats of NIST's 2006 plan as MediaEval uses them.

A folder of ground truth holds three: `*.tlist.xml` names the queries, `*.ecf.xml` the documents with their seconds, and
`*.rttm` says where a query occurs, one LEXEME line each. A system's answer is one `*.stdlist.xml` with a score and a
decision for each trial (`*.kwslist.xml`, its successor of 2013, is read too). Names carry neither folder nor `.wav`.

XML is read by a parser that keeps line numbers, refuses document types (and so any entities), and holds no tree.

Sources: NIST 2006 Spoken Term Detection Evaluation Plan, appendices; the README of the MediaEval QUESST scoring tool;
S3PRL `downstream/quesst14_dtw/dtw_utils.py` for what SUPERB submits.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.parsers import expat
from xml.sax.saxutils import quoteattr

import numpy as np
from numpy.typing import ArrayLike, NDArray

from speechssl.errors import ManifestError, SpeechsslError
from speechssl.files import replacing
from speechssl.text_files import read_lines

DEFAULT_SCORE = -10.0
"""What SUPERB has the official tool take for trials without a score."""

RTTM_FIELDS = 9


@dataclass(frozen=True)
class GroundTruth:
    """What occurs where."""

    queries: tuple[str, ...]
    """Q names, in the order of the list."""
    documents: tuple[str, ...]
    """D names, in the order of the list."""
    occurs: NDArray[np.bool_]
    """(Q, D)."""
    seconds: tuple[float, ...]
    """Duration of each document."""
    ignored: int = 0
    """Occurrences of terms that are not among the queries, as in a list of one type of queries."""


@dataclass(frozen=True)
class TermScores:
    """What a system said."""

    scores: NDArray[np.float64]
    """(Q, D)."""
    decisions: NDArray[np.bool_]
    """(Q, D), True = YES."""
    given: int
    """Trials that were in the file; the rest have the default score and NO."""
    ignored: int = 0
    """Trials of queries that are not asked for."""


def read_ground_truth(folder: str | Path) -> GroundTruth:
    """Reads the three files of a folder such as `scoring/groundtruth_quesst14_dev`.

    Raises:
        ManifestError: a file that is missing or malformed, by file and line.
    """
    folder = Path(folder)
    queries = _read_terms(_only(folder, "*.tlist.xml"))
    seconds = _read_documents(_only(folder, "*.ecf.xml"))
    rows, columns = _positions(queries), _positions(tuple(seconds))
    occurs = np.zeros((len(rows), len(columns)), dtype=bool)
    ignored = 0
    path = _only(folder, "*.rttm")
    for where, line in read_lines(path):
        fields = line.split()
        if fields[0] != "LEXEME":
            continue
        if len(fields) < RTTM_FIELDS:
            raise ManifestError(
                f"{where[:-1]}: a LEXEME line has {RTTM_FIELDS} fields, but this one has {len(fields)}."
            )
        document, query = _name(fields[1]), fields[5]
        if document not in columns:
            raise ManifestError(f"{where[:-1]}: the document '{document}' is not in the list of documents.")
        if query not in rows:
            ignored += 1
            continue
        occurs[rows[query], columns[document]] = True
    return GroundTruth(queries, tuple(seconds), occurs, tuple(seconds.values()), ignored)


def write_ground_truth(folder: str | Path, truth: GroundTruth, *, name: str) -> None:
    """Writes `<name>.tlist.xml`, `<name>.ecf.xml` and `<name>.rttm`; where in a document a query lies is not said."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    terms = [f"<term termid={quoteattr(q)}><termtext>{_escape(q)}</termtext></term>" for q in truth.queries]
    head = f'<termlist ecf_filename={quoteattr(name + ".ecf.xml")} version="1" language="multiple">'
    _write_xml(folder / f"{name}.tlist.xml", [head, *terms, "</termlist>"])
    excerpts = [
        f'<excerpt audio_filename={quoteattr(d + ".wav")} channel="1" tbeg="0.000" dur="{s:.3f}" '
        'language="multiple" source_type="unknown"/>'
        for d, s in zip(truth.documents, truth.seconds, strict=True)
    ]
    head = f'<ecf source_signal_duration="{sum(truth.seconds):.3f}" version="1">'
    _write_xml(folder / f"{name}.ecf.xml", [head, *excerpts, "</ecf>"])
    with replacing(folder / f"{name}.rttm") as partial, partial.open("w", encoding="utf-8") as file:
        for query, document in np.argwhere(truth.occurs):
            place = f"{truth.documents[document]} 1 0.000 {truth.seconds[document]:.3f}"
            file.write(f"LEXEME {place} {truth.queries[query]} lex <NA> <NA>\n")


def read_scores(
    path: str | Path, queries: Sequence[str], documents: Sequence[str], *, default_score: float | None = None
) -> TermScores:
    """Reads a system's scores and decisions.

    Args:
        path: a stdlist or kwslist.
        queries: Q names; the scores of other queries are counted and left aside.
        documents: D names.
        default_score: for trials that are not in the file; None = they are refused. SUPERB takes `DEFAULT_SCORE`.

    Raises:
        ManifestError: malformed XML, an unknown document, a trial given twice, a score that is not a finite number or a
            decision that is neither YES nor NO, by file and line; or trials without a score.
    """
    reader = _ScoreReader(Path(path), _positions(queries), _positions(documents))
    _parse(reader.path, reader.element)
    missing = np.argwhere(np.isnan(reader.scores))
    if len(missing) and default_score is None:
        query, document = missing[0]
        raise ManifestError(
            f"{path} has no score for query '{queries[query]}' and document '{documents[document]}' ({len(missing)} of "
            f"{reader.scores.size} trials are missing): give a default score, such as SUPERB's {DEFAULT_SCORE:g}."
        )
    scores = reader.scores if default_score is None else np.where(np.isnan(reader.scores), default_score, reader.scores)
    return TermScores(scores, reader.decisions, reader.scores.size - len(missing), reader.ignored)


def write_scores(
    path: str | Path,
    queries: Sequence[str],
    documents: Sequence[str],
    scores: ArrayLike,
    decisions: ArrayLike,
    *,
    decimals: int = 4,
    system: str = "speechssl",
) -> None:
    """Writes a `*.stdlist.xml` that the official tool takes.

    Args:
        path: where to.
        queries: Q names.
        documents: D names.
        scores: (Q, D) finite.
        decisions: (Q, D) bool.
        decimals: digits after the point; S3PRL writes four. Fewer digits make ties, which move MTWV a little.
        system: name of the system.
    """
    values, accepted = np.asarray(scores, dtype=np.float64), np.asarray(decisions, dtype=bool)
    shape = len(queries), len(documents)
    if values.shape != shape or accepted.shape != shape:
        raise SpeechsslError(
            f"Scores and decisions must have shape {shape}, but have {values.shape}, {accepted.shape}."
        )
    if not np.isfinite(values).all():
        raise SpeechsslError("`scores` must be finite: did a document have no frames?")
    attributes = [f'" channel="1" tbeg="0.000" dur="0.00" score="{{:.{decimals}f}}" decision="']
    names = [quoteattr(d)[:-1] for d in documents]
    with replacing(Path(path)) as partial, partial.open("w", encoding="utf-8") as file:
        file.write('<?xml version="1.0" encoding="UTF-8"?>\n<stdlist termlist_filename="' + Path(path).name + '" ')
        file.write(f'indexing_time="1.00" language="multiple" index_size="1" system_id={quoteattr(system)}>\n')
        for query, row, said in zip(queries, values, accepted, strict=True):
            file.write(f'<detected_termlist termid={quoteattr(query)} term_search_time="1.0" oov_term_count="1">\n')
            for name, score, yes in zip(names, row.tolist(), said.tolist(), strict=True):
                file.write(f'<term file={name}{attributes[0].format(score)}{"YES" if yes else "NO"}"/>\n')
            file.write("</detected_termlist>\n")
        file.write("</stdlist>\n")


class _ScoreReader:
    """Fills the matrices from the elements of a list."""

    def __init__(self, path: Path, rows: Mapping[str, int], columns: Mapping[str, int]) -> None:
        self.path, self._rows, self._columns = path, rows, columns
        self.scores = np.full((len(rows), len(columns)), np.nan)
        self.decisions = np.zeros(self.scores.shape, dtype=bool)
        self.ignored = 0
        self._row: int | None = None
        self._query: str | None = None

    def element(self, tag: str, attributes: Mapping[str, str], line: int) -> None:
        if tag in {"detected_termlist", "detected_kwlist"}:
            self._query = self._get(attributes, "termid" if tag == "detected_termlist" else "kwid", tag, line)
            self._row = self._rows.get(self._query)
        elif tag in {"term", "kw"}:
            if self._query is None:
                raise ManifestError(f"{self.path}, line {line}: a <{tag}> stands outside of any list of a query.")
            if self._row is None:
                self.ignored += 1
            else:
                self._trial(self._row, attributes, tag, line)

    def _trial(self, row: int, attributes: Mapping[str, str], tag: str, line: int) -> None:
        document = _name(self._get(attributes, "file", tag, line))
        column = self._columns.get(document)
        if column is None:
            raise ManifestError(f"{self.path}, line {line}: the document '{document}' is not in the list of documents.")
        if not math.isnan(self.scores[row, column]):
            raise ManifestError(
                f"{self.path}, line {line}: query '{self._query}' and document '{document}' have a second score; "
                "keep the highest."
            )
        score = _number(self._get(attributes, "score", tag, line))
        if score is None:
            raise ManifestError(f"{self.path}, line {line}: the score '{attributes['score']}' is not a finite number.")
        decision = self._get(attributes, "decision", tag, line)
        if decision not in {"YES", "NO"}:
            raise ManifestError(f"{self.path}, line {line}: the decision must be YES or NO, but is '{decision}'.")
        self.scores[row, column], self.decisions[row, column] = score, decision == "YES"

    def _get(self, attributes: Mapping[str, str], name: str, tag: str, line: int) -> str:
        return _attribute(self.path, attributes, name, tag, line)


def _read_terms(path: Path) -> tuple[str, ...]:
    found: dict[str, int] = {}

    def element(tag: str, attributes: Mapping[str, str], line: int) -> None:
        if tag not in {"term", "kw"}:
            return
        name = _attribute(path, attributes, "termid" if tag == "term" else "kwid", tag, line)
        if name in found:
            raise ManifestError(f"{path}, line {line}: the query '{name}' is there already, in line {found[name]}.")
        found[name] = line

    _parse(path, element)
    if not found:
        raise ManifestError(f"{path} names no query.")
    return tuple(found)


def _read_documents(path: Path) -> dict[str, float]:
    found: dict[str, float] = {}

    def element(tag: str, attributes: Mapping[str, str], line: int) -> None:
        if tag != "excerpt":
            return
        name = _name(_attribute(path, attributes, "audio_filename", tag, line))
        seconds = _number(_attribute(path, attributes, "dur", tag, line))
        if seconds is None or seconds < 0:
            raise ManifestError(f"{path}, line {line}: the duration '{attributes['dur']}' is not a number of seconds.")
        if name in found:
            raise ManifestError(f"{path}, line {line}: the document '{name}' is there already.")
        found[name] = seconds

    _parse(path, element)
    if not found:
        raise ManifestError(f"{path} names no document.")
    return found


def _parse(path: Path, element: Callable[[str, Mapping[str, str], int], None]) -> None:
    """Calls `element` with tag, attributes and line of every element."""
    parser = expat.ParserCreate()

    def refuse(*_: object) -> None:
        raise ManifestError(f"{path}, line {parser.CurrentLineNumber}: a document type is not allowed here; remove it.")

    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = lambda tag, attributes: element(tag, attributes, parser.CurrentLineNumber)
    try:
        with path.open("rb") as file:
            parser.ParseFile(file)
    except FileNotFoundError as error:
        raise ManifestError(f"There is no file {path}.") from error
    except expat.ExpatError as error:
        reason = expat.errors.messages[error.code] if error.code in expat.errors.messages else str(error)
        raise ManifestError(f"{path}, line {error.lineno}: not well-formed XML ({reason}).") from error


def _only(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise ManifestError(f"{folder} must hold one {pattern}, but holds {len(found)}: name the folder of one split.")
    return found[0]


def _positions(names: Sequence[str]) -> dict[str, int]:
    found = {name: i for i, name in enumerate(names)}
    if len(found) != len(names):
        raise SpeechsslError("Names of queries and documents must be unique.")
    return found


def _attribute(path: Path, attributes: Mapping[str, str], name: str, tag: str, line: int) -> str:
    if name not in attributes:
        raise ManifestError(f"{path}, line {line}: <{tag}> has no attribute '{name}'.")
    return attributes[name]


def _name(file: str) -> str:
    """'Audio/quesst14_00001.wav' -> 'quesst14_00001'."""
    name = file.rsplit("/", 1)[-1]
    return name[:-4] if name.lower().endswith(".wav") else name


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")


def _write_xml(path: Path, lines: Sequence[str]) -> None:
    with replacing(path) as partial:
        partial.write_text("\n".join(['<?xml version="1.0" encoding="UTF-8"?>', *lines, ""]), encoding="utf-8")
