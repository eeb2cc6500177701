"""Decoding graphs of k2: CTC topology, lexicon, grammar and what they compose to.

Conventions, those of icefall: labels are tokens (0 = the blank in a topology, epsilon in a lexicon), aux_labels are
words (0 = none), scores are natural logarithms, -1 is the label of the arc to the final state. In a grammar, backing
off is an arc like any other, so that the better of an n-gram and what backing off from it gives counts, as in Kaldi.

Two kinds of labels exist only while a graph is made. Token k * V + t is token t at the end of a word, where k keeps
spellings apart; icefall ends the spelling by a symbol of its own, but when that becomes an epsilon, k2.remove_epsilon
keeps one of several words that sound the same, and no rescoring finds the others any more. The token behind all of
these, and word W + 1, stand for backing off.

Reference: icefall, local/prepare_lang.py, local/compile_hlg.py; Miao et al. 2015, arXiv:1507.08240, sec. 3 (TLG).
Needs nothing but torch, safetensors and k2, and runs on torch 1.13, which the released k2 needs.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speechssl.decode.arpa import END, START, UNKNOWN, NgramModel
from speechssl.decode.lexicon import Lexicon, disambiguate
from speechssl.errors import SpeechsslError
from speechssl.files import replacing

logger = logging.getLogger(__name__)
FORMAT = "speechssl k2 graph 1"
Arc = tuple[int, int, int, int, float]
"""From, to, label, aux_label, score."""


@dataclass(frozen=True)
class Graph:
    """A graph to search, and what its labels mean."""

    fsa: Any
    """k2.Fsa, arc-sorted; with words, `aux_labels` is ragged and `lm_scores` is the grammar's part of `scores`."""
    tokens: tuple[str, ...]
    """Of the classes; the first is the blank."""
    words: tuple[str, ...] | None
    """Word k is words[k - 1]; None = a mere topology, whose aux_labels are tokens."""
    modified: bool = False
    """Whether equal tokens need no blank between them (k2.ctc_topo)."""


def import_k2() -> Any:
    """The library k2.

    Raises:
        SpeechsslError: this Python does not have it.
    """
    try:
        import k2
    except ImportError as error:
        raise SpeechsslError(
            f"k2 can't be imported ({error}): its last release on the package index needs Python 3.10 and torch "
            "1.13.1, which `make k2` puts in an environment of their own, .venv-k2."
        ) from error
    return k2


def compile_topology(tokens: Sequence[str], *, modified: bool = False) -> Graph:
    """The graph of CTC alone, for the most probable token sequence.

    Args:
        tokens: of the classes, the blank first.
        modified: whether equal tokens need no blank between them: its size is linear in the number of tokens, not
            quadratic, but it can't tell one token from two.
    """
    k2 = import_k2()
    return Graph(k2.arc_sort(k2.ctc_topo(len(tokens) - 1, modified=modified)), tuple(tokens), None, modified)


def compile_graph(
    tokens: Sequence[str],
    lexicon: Lexicon,
    *,
    grammar: NgramModel,
    separator: str | None = None,
    lm_scale: float = 1.0,
    modified: bool = False,
) -> Graph:
    """Composes CTC topology, lexicon and grammar to the graph HLG.

    Args:
        tokens: of the classes, the blank first.
        lexicon: the words that can be recognised.
        grammar: words of the lexicon that it lacks score as its <unk>; its own that the lexicon lacks are left out.
        separator: the token that must stand between two words and may stand anywhere else around them; None = none.
        lm_scale: factor of the grammar's scores.
        modified: see `compile_topology`.
    """
    k2 = import_k2()
    grammar.check_knows(lexicon.words)
    classes, words = len(tokens), len(lexicon.words)
    spelled = lexicon_arcs(lexicon, classes, _class_of(separator, tokens))
    lexicon_fsa = k2.arc_sort(_transducer(spelled))
    grammar_fsa = k2.arc_sort(k2.connect(_acceptor(grammar_arcs(grammar, lexicon.words, scale=lm_scale))))
    grammar_fsa.lm_scores = grammar_fsa.scores.clone()
    both = k2.connect(k2.compose(lexicon_fsa, grammar_fsa))
    both = k2.connect(k2.determinize(both))
    real = both.labels > 0
    both.labels[real] = both.labels[real] % classes  # what stands for backing off becomes 0
    both.__dict__["_properties"] = None  # k2 does not notice that labels have changed (k2-fsa/k2, issue 874)
    # Ragged once arcs were merged, one word an arc where nothing had to be.
    outputs = both.aux_labels if isinstance(both.aux_labels, Tensor) else both.aux_labels.values
    outputs[outputs > words] = 0
    both = k2.connect(k2.remove_epsilon(both))
    both.aux_labels = both.aux_labels.remove_values_eq(0)
    topology = compile_topology(tokens, modified=modified).fsa
    whole = k2.arc_sort(k2.connect(k2.compose(topology, k2.arc_sort(both), inner_labels="tokens")))
    if whole.num_arcs == 0:
        raise SpeechsslError("The graph is empty: the language model allows no sentence of the lexicon's words.")
    logger.info("graph: %d words, %d states, %d arcs", words, whole.shape[0], whole.num_arcs)
    return Graph(whole, tuple(tokens), lexicon.words, modified)


def lexicon_arcs(lexicon: Lexicon, classes: int, separator: int | None) -> list[Arc]:
    """Arcs of the lexicon, with the labels that keep spellings apart and those for backing off.

    Without a separator state 0 is before and after each word. With one, 0 is before the first word, 1 where words
    begin, and 2 where they have ended. The grammar may back off only before a separator, so in one way, not in two.
    """
    extras = disambiguate(lexicon)
    back_off = (classes * (1 + max(extras)), len(lexicon.words) + 1)
    begin, end = (0, 0) if separator is None else (1, 2)
    arcs: list[Arc] = [(0, 0, *back_off, 0.0)]
    if separator is not None:
        arcs += [(0, 1, 0, 0, 0.0), (0, 1, separator, 0, 0.0), (1, 1, separator, 0, 0.0)]
        arcs += [(2, 2, *back_off, 0.0), (2, 1, separator, 0, 0.0)]
    state = end + 1
    for (word, spelling), extra in zip(lexicon.entries, extras, strict=True):
        labels = [*spelling[:-1], spelling[-1] + extra * classes]
        places = [begin, *range(state, state + len(labels) - 1), end]
        outputs = [word + 1, *[0] * (len(labels) - 1)]
        arcs += [(a, b, *pair, 0.0) for a, b, *pair in zip(places, places[1:], labels, outputs, strict=False)]
        state += len(labels) - 1
    return arcs + [(s, state, -1, -1, 0.0) for s in sorted({begin, end})]


def grammar_arcs(grammar: NgramModel, words: Sequence[str], *, scale: float = 1.0) -> list[Arc]:
    """Arcs of an n-gram model over `words`, word k being words[k - 1]; backing off is word len(words) + 1.

    Each n-gram is an arc from the state of its history, and each history but () has one that backs off.
    """
    histories = [grammar.start(), *sorted((grammar.histories | {()}) - {grammar.start()})]
    states = {history: k for k, history in enumerate(histories)}
    labels: dict[str, list[int]] = {}
    for k, word in enumerate(words, start=1):
        labels.setdefault(word if (word,) in grammar.ngrams else UNKNOWN, []).append(k)
    arcs: list[Arc] = []
    for gram, (log_prob, _) in grammar.ngrams.items():
        if gram[-1] == END:
            arcs.append((states[gram[:-1]], len(states), -1, -1, scale * log_prob))
        elif gram[-1] != START:
            paid, after = grammar.settle(gram)
            to, score = states[after], scale * (log_prob + paid)
            arcs += [(states[gram[:-1]], to, k, k, score) for k in labels.get(gram[-1], [])]
    for history in histories:
        if history:
            paid, shorter = grammar.back_off(history)
            arcs.append((states[history], states[shorter], len(words) + 1, len(words) + 1, scale * paid))
    return arcs


def save_graph(graph: Graph, path: Path) -> None:
    """Writes a graph as safetensors: tensors of numbers and a few words, nothing that could run."""
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    for name, value in graph.fsa.as_dict().items():
        if isinstance(value, Tensor):
            tensors[name] = value.contiguous()
        elif name == "aux_labels":
            tensors["aux_labels"] = value.values.contiguous()
            tensors["aux_labels_row_splits"] = value.shape.row_splits(1).contiguous()
    about = {"format": FORMAT, "tokens": json.dumps(graph.tokens), "words": json.dumps(graph.words)}
    with replacing(path) as partial:
        save_file(tensors, partial, metadata={**about, "modified": json.dumps(graph.modified)})


def load_graph(path: Path) -> Graph:
    """Reads what `save_graph` wrote.

    Raises:
        SpeechsslError: no such file, or not such a file.
    """
    k2 = import_k2()
    tensors, about = read_tensors(path)
    if about.get("format") != FORMAT:
        raise SpeechsslError(f"{path} is no decoding graph of this version: make it again with `--save-graph`.")
    splits = tensors.pop("aux_labels_row_splits", None)
    fields: dict[str, Any] = dict(tensors)
    if splits is not None:
        shape = k2.ragged.create_ragged_shape2(splits, None, int(splits[-1]))
        fields["aux_labels"] = k2.RaggedTensor(shape, tensors["aux_labels"])
    words = json.loads(about["words"])
    tokens = tuple(json.loads(about["tokens"]))
    fsa = k2.arc_sort(k2.Fsa.from_dict(fields))
    return Graph(fsa, tokens, None if words is None else tuple(words), json.loads(about["modified"]))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    """Tensors and metadata of a safetensors file.

    Raises:
        SpeechsslError: no such file, or not such a file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118 # not a dict
    except (OSError, SafetensorError) as error:
        raise SpeechsslError(f"{path} can't be read as safetensors ({error}): give another file.") from error


def _class_of(separator: str | None, tokens: Sequence[str]) -> int | None:
    if separator is None:
        return None
    if separator not in tokens[1:]:
        raise SpeechsslError(
            f"The separator '{separator}' is not among the model's {len(tokens)} tokens: choose another."
        )
    return list(tokens).index(separator)


def _transducer(arcs: Sequence[Arc]) -> Any:
    fsa, order = _fsa(arcs)
    fsa.aux_labels = torch.tensor([arc[3] for arc in arcs], dtype=torch.int32)[order]
    return fsa


def _acceptor(arcs: Sequence[Arc]) -> Any:
    return _fsa(arcs)[0]


def _fsa(arcs: Sequence[Arc]) -> tuple[Any, Tensor]:
    """The automaton, and the order that its arcs now have: k2 wants them by the state that they leave."""
    table = torch.tensor([arc[:3] for arc in arcs], dtype=torch.int32)
    scores = torch.tensor([arc[4] for arc in arcs], dtype=torch.float32)
    order = torch.sort(table[:, 0], stable=True).indices
    # k2 keeps a score in the fourth column of its table of integers, bit for bit.
    whole = torch.cat([table, scores.view(torch.int32)[:, None]], dim=1)[order]
    return import_k2().Fsa(whole.contiguous()), order
