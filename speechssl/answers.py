"""What a task says of a user's files, stretch by stretch, as JSON and as a table: `speechssl infer`."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from speechssl.audio import audio_info
from speechssl.types import Utterance

Cells = dict[str, str]
"""Column -> what stands there, of one row."""
STRETCH = ("id", "start", "end", "answer")
"""What is said of a stretch of a file that holds several."""


def name_stretches(utterances: Sequence[Utterance]) -> dict[str, str]:
    """Id of an utterance -> what its answer is called: its path, or '<path> (<id>)' where it shares the file."""
    several = {path for path, count in Counter(u.path for u in utterances).items() if count > 1}
    return {u.id: f"{u.path} ({u.id})" if u.path in several else u.path for u in utterances}


def answer_each(utterances: Sequence[Utterance], say: Callable[[Utterance], Any]) -> dict[str, Any]:
    """Path -> what `say` says of the file.

    Where files hold several of the utterances, every answer is {'id', 'start', 'end' (seconds of the file), 'answer'},
    and those that share a file are called '<path> (<id>)'.
    """
    names = name_stretches(utterances)
    if all(names[u.id] == u.path for u in utterances):
        return {u.path: say(u) for u in utterances}
    return {names[u.id]: dict(zip(STRETCH, (u.id, *_span(u), say(u)), strict=True)) for u in utterances}


def moved(spans: Sequence[Mapping[str, Any]], utterance: Utterance) -> list[dict[str, Any]]:
    """Answers with 'start' and 'end' in seconds of an utterance, with those of its file."""
    return [{**one, **{key: round(one[key] + utterance.start, 6) for key in ("start", "end")}} for one in spans]


def tabulate(found: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of what `answer_each` returned: a row for each file, or for each part that its answer has."""
    rows: list[Cells] = []
    for name, answer in found.items():
        place, said = {"file": name}, answer
        if isinstance(answer, Mapping) and tuple(answer) == STRETCH:
            place["stretch"] = f"{answer['start']:.2f}–{answer['end']:.2f} s"
            said = answer["answer"]
        rows += [{**place, **cells} for cells in _rows(said)]
    header = list(dict.fromkeys(column for row in rows for column in row))
    return header, [[row.get(column, "") for column in header] for row in rows]


def _span(utterance: Utterance) -> tuple[float, float]:
    """Seconds of the file."""
    length = utterance.duration
    end = audio_info(utterance.path).duration if length is None else utterance.start + length
    return round(utterance.start, 6), round(end, 6)


def _rows(answer: Any) -> list[Cells]:
    if isinstance(answer, list) and answer and all(isinstance(part, Mapping) for part in answer):
        return [dict(_cells(part)) for part in answer]
    answer = "nothing" if answer == [] else answer
    return [dict(_cells(answer if isinstance(answer, Mapping) else {"answer": answer}))]


def _cells(answer: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Columns; a label with more about it, such as its probability, is called as what it is of."""
    for key, value in answer.items():
        if isinstance(value, Mapping):
            for inner, part in value.items():
                yield (key if inner == "label" else f"{key} {inner}"), _text(part)
        else:
            yield key, _text(value)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, Mapping):
        return " ".join(map(_text, value.values()))
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return "" if value is None else str(value)
