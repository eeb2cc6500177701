"""Phones and words of English utterances by forced alignment with PocketSphinx, whose English model comes with it.

The text decides which words are said, the model's dictionary (CMU's, ARPABET) how; two passes of Viterbi search place
first the words and then their phones, at 100 Hz. A phone takes at least three frames, 30 ms, as its model has three
states. The labels are a machine's: they rank layers and models, and are no reference for where a phone begins.
Reference: Huggins-Daines et al. 2006, "PocketSphinx: a free, real-time continuous speech recognition system".
"""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from importlib.util import find_spec
from multiprocessing import get_context
from typing import Any

import numpy as np

from speechssl.analysis.labels import Labels
from speechssl.audio import read_audio
from speechssl.data.manifests import normalise_text
from speechssl.data.spans import Span
from speechssl.errors import AudioError, ManifestError
from speechssl.progress import progress
from speechssl.types import Utterance

logger = logging.getLogger(__name__)
SAMPLE_RATE = 16_000  # Hz, of the model
RATE = 100.0  # Hz, of its frames
LANGUAGE = "en"
Aligned = tuple[list[Span], list[Span]]
"""Phones and words of one utterance."""
_state: dict[str, Any] = {}


def can_align() -> bool:
    """Whether PocketSphinx is installed."""
    return find_spec("pocketsphinx") is not None


def alignable(utterances: Sequence[Utterance]) -> list[Utterance]:
    """Those with a text in English."""
    return [
        u for u in utterances if str(u.labels.get("language", "")).split("_")[0] == LANGUAGE and u.labels.get("text")
    ]


def align(utterances: Sequence[Utterance], *, workers: int = 1) -> Labels:
    """Places the words of each text, and their phones.

    Utterances with words that the dictionary lacks, or whose text does not fit the audio, are left out and counted.

    Args:
        utterances: with English `text`.
        workers: processes.

    Raises:
        ManifestError: PocketSphinx is not installed.
    """
    if not can_align():
        raise ManifestError(
            "Alignment needs PocketSphinx, which is not installed: pip install 'speechssl[analysis]', or give "
            "`--labels`."
        )
    phones: dict[str, list[Span]] = {}
    words: dict[str, list[Span]] = {}
    reasons: Counter[str] = Counter()
    with progress("Aligning English text", len(utterances), unit="utterances") as advance:
        for utterance, found in zip(utterances, _aligned(utterances, workers), strict=True):
            if isinstance(found, str):
                reasons[found] += 1
                logger.debug("'%s' is not aligned: %s.", utterance.id, found)
            else:
                phones[utterance.id], words[utterance.id] = found
            advance()
    source = f"forced alignment of English text by PocketSphinx {version('pocketsphinx')} (its own English model)"
    left = [f"{count} ({reason})" for reason, count in reasons.most_common()]
    warnings = [f"{sum(reasons.values())} English utterances are not aligned: {', '.join(left)}."] if left else []
    return Labels({"phone": phones, "word": words}, {"phone": source, "word": source}, warnings)


def _aligned(utterances: Sequence[Utterance], workers: int) -> Iterator[Aligned | str]:
    if workers <= 1:
        yield from map(_align_one, utterances)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(_align_one, utterances, chunksize=4)


def _decoder() -> Any:
    if "decoder" not in _state:
        from pocketsphinx import Decoder

        _state["decoder"] = Decoder(lm=None, samprate=SAMPLE_RATE, bestpath=False, loglevel="FATAL")
    return _state["decoder"]


def _align_one(utterance: Utterance) -> Aligned | str:
    """Phones and words, or why there are none."""
    decoder = _decoder()
    text = normalise_text(str(utterance.labels["text"]))
    if any(decoder.lookup_word(word) is None for word in text.split()) or not text:
        return "words that the dictionary lacks"
    try:
        waveform = read_audio(
            utterance.path, sample_rate=SAMPLE_RATE, start=utterance.start, duration=utterance.duration
        )
    except AudioError:
        return "audio that can't be read"
    data = np.clip(waveform.numpy() * 32768.0, -32768, 32767).astype(np.int16).tobytes()
    try:
        decoder.set_align_text(text)
        _hear(decoder, data)
        if decoder.hyp() is None:
            return "text that does not fit the audio"
        decoder.set_alignment()
        _hear(decoder, data)
        return _spans(decoder.get_alignment())
    except RuntimeError:
        return "text that does not fit the audio"


def _hear(decoder: Any, data: bytes) -> None:
    decoder.start_utt()
    decoder.process_raw(data, full_utt=True)
    decoder.end_utt()


def _spans(alignment: Any) -> Aligned:
    phones, words = [], []
    for word in alignment:
        name = word.name.split("(")[0]  # 'your(2)' is another pronunciation of 'your'
        if name.startswith(("<", "[", "+")):
            continue
        words.append(Span(word.start / RATE, (word.start + word.duration) / RATE, name))
        phones += [Span(p.start / RATE, (p.start + p.duration) / RATE, p.name) for p in word]
    return phones, words
