"""QUESST 2014: spoken queries and the recordings to find them in (Anguera et al. 2014, MediaEval).

SUPERB takes the non-native English part: `dev` and `test` are the queries (the corpus calls the latter 'eval'),
`documents` what is searched, for both (S3PRL `downstream/quesst14_dtw/dataset.py`). The lists ground_truth_dev and
ground_truth_test hold '<query> <document>' for each document that a query occurs in, out of the NIST scoring files
scoring/groundtruth_quesst14_*/quesst14_*.rttm. SUPERB scores its part against the truth of all languages: where a
language is chosen, the lists ground_truth_dev_whole, ground_truth_test_whole and documents_whole hold that.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from speechssl.data.corpora.base import Count, Item, Reading, find_root, need_file, note
from speechssl.errors import ManifestError
from speechssl.text_files import read_lines

NAME = "QUESST 2014"
HOMEPAGE = "https://speech.fit.vutbr.cz/software/quesst-2014-multilingual-database-query-by-example-keyword-spotting"
LICENCE = "none is named; published for research"
LAYOUT = "Audio/, dev_queries/, eval_queries/ and scoring/, as quesst14Database.tgz unpacks"
LISTS = {"documents": "language_key_utterances.lst", "dev": "language_key_dev.lst", "test": "language_key_eval.lst"}
EXPECTED: dict[str, Count] = {}
"""The lists are complete in themselves; the counts of one language are in none of the publications at hand."""
_FOUND = re.compile(r"LEXEME\s+(?P<document>quesst14_\d+)\s.*?(?P<query>quesst14_(?:dev|eval)_\d+)")


@dataclass(frozen=True)
class QuesstConfig:
    """Which part."""

    language: str = "nnenglish"
    """Also albanian, basque, czech, romanian, slovak; 'all' = the whole corpus."""


CONFIG = QuesstConfig()


def read(source: Path, config: QuesstConfig) -> Reading:
    """Lists queries, documents and what belongs together."""
    root = find_root(source, ("scoring/language_key_utterances.lst",), name=NAME, layout=LAYOUT)
    why = "it comes in the archive of the corpus, in scoring/"
    lists = {split: need_file(root / "scoring" / name, why) for split, name in LISTS.items()}
    splits = {split: list(_read(path, root, config.language)) for split, path in lists.items()}
    if not all(splits.values()):
        raise ManifestError(f"{lists['documents']} and its neighbours have no language '{config.language}'.")
    whole = {split: [item.id for item in _read(path, root, "all")] for split, path in lists.items()}
    documents = frozenset(item.id for item in splits["documents"])
    files: dict[str, list[str]] = {}
    lonely: list[str] = []
    for split, name in (("dev", "dev"), ("test", "eval")):
        path = root / "scoring" / f"groundtruth_quesst14_{name}" / f"quesst14_{name}.rttm"
        queries = {item.id for item in splits[split]}
        everything = set(_read_pairs(need_file(path, why)))
        pairs = [p for p in everything if p[0] in queries and p[1] in documents]
        files[f"ground_truth_{split}"] = [f"{query} {document}" for query, document in sorted(pairs)]
        if config.language != "all":
            known = set(whole[split]), set(whole["documents"])
            kept = sorted(p for p in everything if p[0] in known[0] and p[1] in known[1])
            files[f"ground_truth_{split}_whole"] = [f"{query} {document}" for query, document in kept]
        lonely += sorted(queries - {query for query, _ in pairs})
    if config.language != "all":
        files["documents_whole"] = whole["documents"]
    return Reading(splits, EXPECTED, note("queries that occur in no document", lonely), files)


def _read(path: Path, root: Path, language: str) -> Iterator[Item]:
    for where, line in read_lines(path):
        values = line.split()
        if len(values) != 2 or "/" not in values[0]:
            raise ManifestError(f"{where} is '{line.strip()}', but must be a file in a folder and a language.")
        if language in ("all", values[1]):
            # the list begins with the name of the archive's folder, which may be called otherwise here
            file = root / values[0].split("/", 1)[1]
            yield Item(file.stem, str(file), {"language": values[1]})


def _read_pairs(path: Path) -> Iterator[tuple[str, str]]:
    """Yields (query, document)."""
    for _, line in read_lines(path):
        found = _FOUND.match(line)
        if found is not None:
            yield found["query"], found["document"]
