"""What a beam search adds to a recogniser: its language model and lexicon, and weights that dev has chosen.

T frames, V classes.
"""

import itertools
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from speechssl.ctc.vocabulary import Characters, Vocabulary
from speechssl.data.seeds import derive_seed
from speechssl.decode.beam import (
    BeamDecoder,
    DecodeConfig,
    Tokens,
    check_file,
    import_flashlight,
)
from speechssl.files import replacing
from speechssl.metric.transcription import character_errors, word_errors
from speechssl.result import MetricValue

logger = logging.getLogger(__name__)
BLANK_NAME = "<blank>"


@dataclass(frozen=True)
class Heard:
    """What a head makes of an utterance, where its log-probabilities are needed later."""

    text: str
    """Decoded greedily."""
    log_probs: Tensor
    """(T, V) float32, on the CPU."""


@dataclass(frozen=True)
class Weights:
    """How much language model and words count."""

    lm_weight: float
    word_score: float

    def __str__(self) -> str:
        return f"lm {self.lm_weight:g}, word {self.word_score:g}"


def check_decoding(config: DecodeConfig) -> None:
    """Before hours of training: that what the end of it needs is there."""
    if config.method == "greedy":
        return
    import_flashlight()
    if config.lm is not None:
        check_file(config.lm, "decode.lm")
    if config.lexicon is not None:
        check_file(config.lexicon, "decode.lexicon")


def resolved(config: DecodeConfig) -> DecodeConfig:
    """With paths that mean the same from any folder."""
    lm, lexicon = (None if path is None else str(Path(path).resolve()) for path in (config.lm, config.lexicon))
    return replace(config, lm=lm, lexicon=lexicon)


def make_decoder(vocabulary: Vocabulary, config: DecodeConfig) -> BeamDecoder:
    """Loads the language model and spells the lexicon."""

    def spell(word: str) -> list[int]:
        return [] if vocabulary.unseen([word]) else vocabulary.encode(word)

    names = (BLANK_NAME, *(vocabulary.unit(label) for label in range(1, len(vocabulary))))
    return BeamDecoder(Tokens(names, spell, vocabulary.decode), config)


def choose_weights(
    decoder: BeamDecoder, heard: Mapping[str, Heard], references: Mapping[str, str], *, metric: str
) -> tuple[Weights, dict[str, MetricValue]]:
    """The weights of the fewest errors, of equally good ones the first; and the errors of all.

    Args:
        heard: of dev.
        metric: 'wer' or 'cer'.
    """
    config = decoder.config
    names = sorted(heard, key=lambda name: derive_seed("asr tune", name))[: config.tune_utterances]
    said = [references[name] for name in names]
    count = word_errors if metric == "wer" else character_errors
    scores = [0.0] if not config.of_words else config.word_scores
    found: dict[Weights, MetricValue] = {}
    for pair in itertools.product(config.lm_weights if config.lm else [0.0], scores):
        weights = Weights(*pair)
        found[weights] = count(said, [search(decoder, heard[name].log_probs, weights) for name in names]).rate()
    best = min(found, key=lambda weights: found[weights].value)
    for name, grid in (("lm_weights", config.lm_weights), ("word_scores", config.word_scores)):
        chosen = getattr(best, name.removesuffix("s"))
        if len(grid) > 2 and chosen in {min(grid), max(grid)} and len(found) >= len(grid):
            logger.warning("asr: dev chose %g, an end of `decode.%s`: wider ones may do better", chosen, name)
    return best, {str(weights): value for weights, value in found.items()}


def search(decoder: BeamDecoder, log_probs: Tensor, weights: Weights) -> str:
    """The best transcript of one utterance."""
    return decoder.decode(log_probs, lm_weight=weights.lm_weight, word_score=weights.word_score).text


def save_log_probs(path: Path, heard: Mapping[str, Heard], vocabulary: Vocabulary) -> str:
    """Writes (T, V) of each utterance, and the tokens, as `speechssl.decode.k2` reads them; returns the file's name."""
    names = [BLANK_NAME, *(_plain(vocabulary, label) for label in range(1, len(vocabulary)))]
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: one.log_probs.contiguous() for name, one in heard.items()}
    with replacing(path) as partial:
        save_file(tensors, partial, metadata={"tokens": json.dumps(names, ensure_ascii=False)})
    return path.name


def _plain(vocabulary: Vocabulary, label: int) -> str:
    return vocabulary.characters[label - 1] if isinstance(vocabulary, Characters) else vocabulary.unit(label)
