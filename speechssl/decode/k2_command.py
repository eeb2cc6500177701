"""The command line of `speechssl.decode.k2`: saved log-probabilities in, transcripts out.

log-probabilities   safetensors (a tensor (T, V) by utterance; the metadata may name the tokens, as a JSON list under
                    'tokens') or .npz (an array by utterance).
transcripts         UTF-8, a header and then tab-separated lines, sorted by utterance (and rank).
"""

import argparse
import json
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from speechssl.decode.arpa import UNKNOWN, NgramModel, read_arpa
from speechssl.decode.k2 import Beams, Hypothesis, Lattice, best_paths, decode, nbest, rescore_lattice
from speechssl.decode.k2_graph import Graph, compile_graph, compile_topology, load_graph, read_tensors, save_graph
from speechssl.decode.k2_walk import HISTORIES
from speechssl.decode.lexicon import check_tokens, find_separator, read_lexicon, read_tokens, spell_words
from speechssl.errors import ManifestError, SpeechsslError
from speechssl.files import replacing
from speechssl.text_files import read_lines

logger = logging.getLogger(__name__)
EXAMPLE = """
examples:
  # best path over the CTC topology alone
  python -m speechssl.decode.k2 --log-probs log_probs.safetensors -o greedy.tsv
  # words of a lexicon, weighed by an n-gram model
  python -m speechssl.decode.k2 --log-probs log_probs.safetensors --lexicon words.txt --arpa lm3.arpa -o test.tsv
  # a larger model over the lattices, its scale chosen on dev by word errors
  python -m speechssl.decode.k2 --log-probs dev.safetensors --lexicon words.txt --arpa lm3.arpa \\
      --rescore lm5.arpa --rescore-scale 0.5,1,1.5,2 --references transcripts.tsv -o dev.tsv
"""


@dataclass(frozen=True)
class LogProbs:
    """What a recogniser wrote."""

    utterances: Mapping[str, Tensor]
    """(T, V) by utterance."""
    tokens: tuple[str, ...] | None
    """Of the V classes; None = the file does not say."""


def read_log_probs(path: Path) -> LogProbs:
    """Reads log-probabilities.

    Raises:
        SpeechsslError: an unreadable or empty file, or a table that holds no log-probabilities.
    """
    tensors, about = _read_npz(path) if path.suffix == ".npz" else read_tensors(path)
    if not tensors:
        raise SpeechsslError(f"{path} holds no utterance: save log-probabilities first.")
    for name, table in tensors.items():
        if table.dim() != 2 or not table.is_floating_point():
            raise SpeechsslError(
                f"{path} holds {tuple(table.shape)} {table.dtype} for '{name}', not (frames, classes)."
            )
        if table.isnan().any() or (table > 1e-3).any():
            raise SpeechsslError(
                f"{path} has numbers above 0 or NaN for '{name}', so no log-probabilities: take `log_softmax` first."
            )
    tokens = None if "tokens" not in about else check_tokens(json.loads(about["tokens"]), str(path))
    return LogProbs(tensors, tokens)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; an error that the user can mend ends it with one sentence and status 1."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        _run(options)
    except SpeechsslError as error:
        sys.exit(str(error))


def _run(options: argparse.Namespace) -> None:
    scales = _numbers(options.rescore_scale)
    _check(options, scales)
    given = read_log_probs(options.log_probs)
    graph = _graph(options, given)
    for name, table in given.utterances.items():
        if table.size(1) != len(graph.tokens):
            raise SpeechsslError(
                f"{options.log_probs} has {table.size(1)} classes for '{name}', but there are {len(graph.tokens)} "
                "tokens: give those of the same model."
            )
    rescorer = None if options.rescore is None else read_arpa(options.rescore)
    heard = {name: table for name, table in given.utterances.items() if len(table)}
    beams = Beams(options.search_beam, options.output_beam, options.min_active, options.max_active)
    found: dict[float, dict[str, list[Hypothesis]]] = {scale: {} for scale in scales}
    started = time.monotonic()
    for names, lattice in decode(heard, graph, beams=beams):
        for scale, rows in _hypotheses(lattice, options, rescorer, scales).items():
            found[scale].update(zip(names, rows, strict=True))
    logger.info("%d utterances in %.1f s", len(heard), time.monotonic() - started)
    best = scales[0] if options.references is None else _choose(options.references, found, given)
    _report_empty(given, found[best])
    _write(options.output, given, found[best], separator=_separator(options, graph.tokens), spelled=graph.words is None)


def _check(options: argparse.Namespace, scales: Sequence[float]) -> None:
    if options.graph is not None and (options.arpa is not None or options.lexicon is not None):
        raise SpeechsslError("`--graph` holds lexicon and language model already: leave `--lexicon` and `--arpa` out.")
    if options.lexicon is not None and options.arpa is None:
        raise SpeechsslError("`--lexicon` needs a language model: give one by `--arpa`.")
    if options.rescore is not None and options.arpa is None and options.graph is None:
        raise SpeechsslError("`--rescore` needs lattices with words: give `--arpa` or `--graph` too.")
    if options.rescore is not None and options.nbest > 1:
        raise SpeechsslError("`--rescore` takes whole lattices: leave `--nbest` out.")
    if options.rescore_histories < 1:
        raise SpeechsslError(f"`--rescore-histories` must be 1 or more, but is {options.rescore_histories}.")
    if len(scales) > 1 and (options.references is None or options.rescore is None):
        raise SpeechsslError(
            "Several `--rescore-scale` values need `--rescore` and the `--references` of dev to choose one by: "
            "give these, or one value."
        )


def _graph(options: argparse.Namespace, given: LogProbs) -> Graph:
    if options.graph is not None:
        return load_graph(options.graph)
    tokens = given.tokens if options.tokens is None else read_tokens(options.tokens)
    if tokens is None:
        raise SpeechsslError(f"{options.log_probs} does not say which tokens its classes are: give `--tokens`.")
    if options.arpa is None:
        return compile_topology(tokens, modified=options.modified)
    grammar = read_arpa(options.arpa)
    if overtaken := grammar.overtaken():
        logger.info(
            "%s: %d of %d n-grams score less than backing off from them, which the first pass then prefers",
            *(options.arpa, overtaken, len(grammar.ngrams)),
        )
    if options.lexicon is None:
        lexicon = spell_words(sorted(grammar.words - {UNKNOWN}), tokens, origin=str(options.arpa))
        logger.info("%d words of %s spelled by characters", len(lexicon.words), options.arpa)
    else:
        lexicon = read_lexicon(options.lexicon, tokens)
        missing = len(set(lexicon.words) - grammar.words)
        logger.info("%d words, %d of them unknown to %s", len(lexicon.words), missing, options.arpa)
    graph = compile_graph(
        tokens,
        lexicon,
        grammar=grammar,
        separator=_separator(options, tokens),
        lm_scale=options.lm_scale,
        modified=options.modified,
    )
    if options.save_graph is not None:
        save_graph(graph, options.save_graph)
    return graph


def _hypotheses(
    lattice: Lattice, options: argparse.Namespace, rescorer: NgramModel | None, scales: Sequence[float]
) -> dict[float, list[list[Hypothesis]]]:
    if rescorer is not None:
        most = options.rescore_histories
        rows = {scale: rescore_lattice(lattice, rescorer, lm_scale=scale, histories=most) for scale in scales}
        return {scale: [[h] if h else [] for h in found] for scale, found in rows.items()}
    if options.nbest > 1:
        return {scales[0]: nbest(lattice, options.nbest)}
    return {scales[0]: [[h] if h else [] for h in best_paths(lattice)]}


def _choose(path: Path, found: Mapping[float, Mapping[str, list[Hypothesis]]], given: LogProbs) -> float:
    """The scale with the fewest word errors; the smallest of equal ones."""
    from speechssl.metric.transcription import word_errors

    references = _read_references(path)
    if missing := [name for name in given.utterances if name not in references]:
        raise ManifestError(f"{path} has no reference for {len(missing)} utterances, such as '{missing[0]}': add them.")
    names = sorted(given.utterances)
    rates = {}
    for scale, rows in found.items():
        texts = [" ".join(rows[name][0].words) if rows.get(name) else "" for name in names]
        errors = word_errors([references[name] for name in names], texts)
        rates[scale] = sum(errors.errors) / sum(errors.units)
        logger.info("scale %g: word error rate %.4f", scale, rates[scale])
    best = min(rates, key=lambda scale: (rates[scale], scale))
    logger.info("chosen: scale %g", best)
    return best


def _read_references(path: Path) -> dict[str, str]:
    """Column 'reference' of a table with a header, such as a run's transcripts.tsv."""
    rows = ((where, line.split("\t")) for where, line in read_lines(path))
    _, header = next(rows, ("", []))
    if not {"utterance", "reference"} <= set(header):
        raise ManifestError(f"{path} must begin with a line that names the columns 'utterance' and 'reference'.")
    at, of = header.index("utterance"), header.index("reference")
    found: dict[str, str] = {}
    for where, fields in rows:
        if len(fields) != len(header):
            raise ManifestError(f"{where} has {len(fields)} columns, but the first has {len(header)}: mend it.")
        found[fields[at]] = fields[of]
    return found


def _report_empty(given: LogProbs, found: Mapping[str, Sequence[Hypothesis]]) -> None:
    empty = sorted(name for name, table in given.utterances.items() if len(table) and not found.get(name))
    if empty:
        logger.warning(
            "%d of %d utterances, such as '%s', have no path through the graph within the beams and get an empty line: "
            "raise `--search-beam` or `--max-active`, or give a lexicon that covers them.",
            *(len(empty), len(given.utterances), empty[0]),
        )
    silent = sorted(name for name, table in given.utterances.items() if not len(table))
    if silent:
        logger.warning("%d utterances, such as '%s', have no frames and get an empty line.", len(silent), silent[0])


def _write(
    path: Path, given: LogProbs, found: Mapping[str, Sequence[Hypothesis]], *, separator: str | None, spelled: bool
) -> None:
    lines = ["utterance\trank\thypothesis\tacoustic\tlanguage"]
    for name in sorted(given.utterances):
        rows = [(_text(h, separator, spelled), f"{h.acoustic:.6g}\t{h.language:.6g}") for h in found.get(name) or []]
        rows = rows or [("", "-inf\t0")]
        lines += [f"{name}\t{rank}\t{text}\t{scores}" for rank, (text, scores) in enumerate(rows, start=1)]
    with replacing(path) as partial:
        partial.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _text(hypothesis: Hypothesis, separator: str | None, spelled: bool) -> str:
    if not spelled or separator is None:
        return " ".join(hypothesis.words)
    return " ".join("".join(" " if token == separator else token for token in hypothesis.words).split())


def _separator(options: argparse.Namespace, tokens: Sequence[str]) -> str | None:
    if options.separator == "none":
        return None
    return find_separator(tokens) if options.separator is None else str(options.separator)


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise SpeechsslError(f"`--rescore-scale` must be like 0.5 or 0.5,1,2, but is '{text}'.") from error


def _read_npz(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: torch.from_numpy(np.asarray(file[name])) for name in file.files}, {}
    except (OSError, ValueError) as error:
        raise SpeechsslError(f"{path} can't be read as .npz ({error}): give another file.") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m speechssl.decode.k2",
        description="Decodes saved log-probabilities of a CTC recogniser with k2.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    defaults = Beams()
    add = parser.add_argument
    add("--log-probs", type=Path, required=True, help="safetensors or .npz: (frames, classes) by utterance")
    add("-o", "--output", type=Path, required=True, help="table of transcripts to write")
    add(
        "--tokens",
        type=Path,
        help="tokens of the classes, one a line; needed where --log-probs does not name them",
    )
    add("--lexicon", type=Path, help="'word token token ...' lines; default: the model's words, spelled by characters")
    add("--arpa", type=Path, help="n-gram model; without it, the best path over the CTC topology alone")
    add("--separator", help="the token between words, or 'none'; default: a space or '|' where the model has one")
    add("--lm-scale", type=float, default=1.0, help="factor of the n-gram model's scores (default 1)")
    add("--modified", action="store_true", help="topology without the blank between equal tokens")
    add("--graph", type=Path, help="a graph that --save-graph wrote, instead of --lexicon and --arpa")
    add("--save-graph", type=Path, help="write the graph")
    add("--search-beam", type=float, default=defaults.search, help=f"default {defaults.search}")
    add("--output-beam", type=float, default=defaults.output, help=f"default {defaults.output}")
    add("--min-active", type=int, default=defaults.min_active, help=f"default {defaults.min_active}")
    add("--max-active", type=int, default=defaults.max_active, help=f"default {defaults.max_active}")
    add("--nbest", type=int, default=1, help="different word sequences to write per utterance, at most")
    add("--rescore", type=Path, help="another n-gram model to take the first one's place in the lattices")
    add("--rescore-scale", default="1", help="its factor, or several to choose from on dev (default 1)")
    add("--rescore-histories", type=int, default=HISTORIES, help=f"most followed from a state (default {HISTORIES})")
    add("--references", type=Path, help="table with columns 'utterance' and 'reference' to choose the factor by")
    return parser
