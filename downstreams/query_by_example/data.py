"""Queries, documents, and which query occurs where.

The runner's three splits are 'train' = the documents, 'dev' and 'test' = the queries: nothing is trained, but the
features of all three are needed.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from speechssl.data.corpus import Corpus
from speechssl.errors import ManifestError
from speechssl.text_files import read_lines
from speechssl.types import Utterance

from .config import QueryByExampleConfig

logger = logging.getLogger(__name__)
DOCUMENTS = "train"
QUERIES = ("dev", "test")
Pair = tuple[str, str]
"""(query, document), by their ids."""


@dataclass(frozen=True)
class WholeSet:
    """A set of which only a part is searched, but which is scored as a whole."""

    documents: tuple[str, ...]
    pairs: frozenset[Pair]


@dataclass(frozen=True)
class Truth:
    """What occurs where, for the queries of one split."""

    pairs: frozenset[Pair]
    whole: WholeSet | None = None
    """None = what is searched is all there is."""

    def matrix(self, queries: Sequence[str], documents: Sequence[str]) -> NDArray[np.bool_]:
        """(Q, D), True = the query occurs in the document."""
        return _matrix(self.pairs, queries, documents)

    def whole_matrix(self, queries: Sequence[str], documents: Sequence[str]) -> NDArray[np.bool_]:
        """The same of the whole set, whose first rows are the `queries`, and whose first columns the `documents`."""
        if self.whole is None:
            return self.matrix(queries, documents)
        rows = list(dict.fromkeys([*queries, *sorted(query for query, _ in self.whole.pairs)]))
        columns = list(dict.fromkeys([*documents, *self.whole.documents]))
        return _matrix(self.whole.pairs, rows, columns)


def _matrix(pairs: frozenset[Pair], queries: Sequence[str], documents: Sequence[str]) -> NDArray[np.bool_]:
    rows, columns = ({name: k for k, name in enumerate(names)} for names in (queries, documents))
    found = np.zeros((len(rows), len(columns)), dtype=bool)
    for query, document in pairs:
        if query in rows and document in columns:
            found[rows[query], columns[document]] = True
    return found


def read_splits(corpus: Corpus, config: QueryByExampleConfig) -> tuple[dict[str, list[Utterance]], dict[str, Truth]]:
    """The utterances of the runner's three splits, and the truth of 'dev' and 'test'.

    Raises:
        ManifestError: no queries or documents, a list that is missing, or a line of it that does not fit.
    """
    documents = _spoken(corpus, config.documents, config)
    splits = {DOCUMENTS: documents}
    truths: dict[str, Truth] = {}
    for split in QUERIES:
        queries = _spoken(corpus, split, config)
        if config.truth == "text":
            queries, truths[split] = _by_text(queries, documents, config)
        else:
            truths[split] = _by_lists(corpus, split, queries, documents, config)
        seen = {query for query, _ in truths[split].pairs}
        if not seen:
            told = f"by the list ground_truth_{split}" if config.truth == "lists" else "by the transcripts"
            raise ManifestError(
                f"No query of '{split}' occurs in '{config.documents}' of {corpus.root} {told}: nothing can be found "
                "there, so choose other `documents`, or another `truth`."
            )
        message = "query by example %s: %d queries, of which %d occur, in %d of %d documents"
        held = len({document for _, document in truths[split].pairs})
        logger.info(message, split, len(queries), len(seen), held, len(documents))
        splits[split] = queries
    return splits, truths


def _spoken(corpus: Corpus, split: str, config: QueryByExampleConfig) -> list[Utterance]:
    everything = corpus.utterances(split)
    kept = [u for u in everything if config.languages is None or u.labels.get("language") in config.languages]
    if config.truth == "text":
        untold = len(kept)
        kept = [u for u in kept if _words(u)]
        if untold > len(kept):
            logger.info("query by example %s: %d utterances have no transcript", split, untold - len(kept))
    if not kept:
        needs = "with a transcript (`truth=text`)" if config.truth == "text" else "of any kind"
        raise ManifestError(
            f"The corpus {corpus.root} has no utterance in '{split}' {needs} in "
            f"{', '.join(config.languages or ('any language',))}: set `languages` or `documents`, or take another."
        )
    return kept


def _words(utterance: Utterance) -> list[str]:
    return str(utterance.labels.get("text") or "").split()


def _by_text(
    utterances: Sequence[Utterance], documents: Sequence[Utterance], config: QueryByExampleConfig
) -> tuple[list[Utterance], Truth]:
    """Those short utterances whose words some document has, and all such documents of each."""
    phrases: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for document in documents:
        words = _words(document)
        for size in range(1, config.max_query_words + 1):
            for first in range(len(words) - size + 1):
                key = str(document.labels.get("language")), tuple(words[first : first + size])
                phrases.setdefault(key, []).append(document.id)
    queries: list[Utterance] = []
    pairs: set[Pair] = set()
    short = 0
    for utterance in utterances:
        words = _words(utterance)
        if len(words) > config.max_query_words or len("".join(words)) < config.min_query_letters:
            continue
        short += 1
        found = phrases.get((str(utterance.labels.get("language")), tuple(words)), [])
        if found:
            queries.append(utterance)
            pairs.update((utterance.id, document) for document in found)
    message = "query by example: %d of %d utterances are short enough for queries, %d of these occur in documents"
    logger.info(message, short, len(utterances), len(queries))
    return queries, Truth(frozenset(pairs))


def _by_lists(
    corpus: Corpus,
    split: str,
    queries: Sequence[Utterance],
    documents: Sequence[Utterance],
    config: QueryByExampleConfig,
) -> Truth:
    known = {u.id for u in corpus.utterances(split)}, {u.id for u in corpus.utterances(config.documents)}
    chosen = {u.id for u in queries}, {u.id for u in documents}
    name = f"ground_truth_{split}"
    pairs = frozenset(_read_pairs(corpus, name, *known))
    own = frozenset(pair for pair in pairs if pair[0] in chosen[0] and pair[1] in chosen[1])
    files: Mapping[str, str] = corpus.info.get("files", {})
    if f"{name}_whole" in files and "documents_whole" in files:
        columns = tuple(line.strip() for _, line in read_lines(corpus.root / files["documents_whole"]))
        whole = frozenset(pair for _, pair in _pair_lines(corpus.root / files[f"{name}_whole"]))
        return Truth(own, WholeSet(columns, whole))
    return Truth(own, None if chosen == known else WholeSet(tuple(sorted(known[1])), pairs))


def _read_pairs(corpus: Corpus, name: str, queries: set[str], documents: set[str]) -> Iterator[Pair]:
    files: Mapping[str, str] = corpus.info.get("files", {})
    if name not in files:
        raise ManifestError(
            f"The corpus {corpus.root} has no list '{name}', which says what occurs where: prepare QUESST 2014, or set "
            "`truth=text` for a corpus with transcripts."
        )
    lost = 0
    for where, values in _pair_lines(corpus.root / files[name]):
        if not corpus.left_out.isdisjoint(values):
            lost += 1
            continue
        for value, there, what in zip(values, (queries, documents), ("query", "document"), strict=True):
            if value not in there:
                raise ManifestError(f"{where} names the {what} '{value}', which the corpus lacks: prepare it again.")
        yield values
    if lost:
        logger.warning("%d lines of %s name utterances that are left out", lost, name)


def _pair_lines(path: Path) -> Iterator[tuple[str, Pair]]:
    """Where a pair stands, and the pair."""
    for where, line in read_lines(path):
        values = line.split()
        if len(values) != 2:
            raise ManifestError(f"{where} is '{line.strip()}', but must be a query and a document: mend it.")
        yield where, (values[0], values[1])
