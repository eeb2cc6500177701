"""Beam search against every alignment there is, the choice of its weights, and its bad input."""

import gzip
import itertools
import math
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from downstreams.asr.config import AsrConfig
from downstreams.asr.decoding import Heard, Weights, choose_weights, make_decoder, save_log_probs
from downstreams.asr.task import TASK
from speechssl.config import load_config
from speechssl.ctc.vocabulary import Characters, Pieces, train_pieces
from speechssl.data.corpus import open_corpus
from speechssl.decode import beam
from speechssl.decode.beam import DecodeConfig, read_spellings
from speechssl.errors import ConfigError, ManifestError
from speechssl.inference import infer
from speechssl.jobs import RunOptions
from speechssl.runner import run
from speechssl.task import TrainConfig

WHY = "beam search needs the extra 'decode'"
VOCABULARY = Characters((" ", "a", "b"))
WORDS = ("a", "ab", "ba", "bb")
WIDE = {"beam_size": 20_000, "beam_threshold": 1e6}
UNIGRAMS = {"a": -0.5, "ab": -0.8, "ba": -0.7, "bb": -1.1, "</s>": -0.6, "<unk>": -2.0}
BIGRAMS = {("<s>", "ab"): -0.2, ("a", "a"): -0.9, ("ab", "ba"): -0.1, ("ba", "</s>"): -0.3}
BACK_OFF = {"<s>": -0.3, "a": -0.2, "ab": -0.4, "ba": -0.1}
TOKEN_UNIGRAMS = {"|": -0.7, "a": -0.4, "b": -0.6, "</s>": -0.9, "<unk>": -2.0}
TOKEN_BIGRAMS = {("<s>", "a"): -0.1, ("a", "b"): -0.2, ("b", "|"): -0.3, ("b", "</s>"): -0.2}
TOKEN_BACK_OFF = {"<s>": -0.5, "a": -0.3, "b": -0.2}


def write_arpa(path: Path, unigrams: dict, bigrams: dict, back_off: dict) -> Path:
    lines = ["\\data\\", f"ngram 1={len(unigrams) + 1}", f"ngram 2={len(bigrams)}", "", "\\1-grams:"]
    lines += [f"{p}\t{w}\t{back_off.get(w, 0.0)}" for w, p in {"<s>": -99, **unigrams}.items()]
    lines += ["", "\\2-grams:", *(f"{p}\t{' '.join(pair)}" for pair, p in bigrams.items()), "", "\\end\\", ""]
    path.write_text("\n".join(lines))
    return path


@pytest.fixture
def word_model(tmp_path: Path) -> Path:
    return write_arpa(tmp_path / "words.arpa", UNIGRAMS, BIGRAMS, BACK_OFF)


@pytest.fixture
def token_model(tmp_path: Path) -> Path:
    return write_arpa(tmp_path / "tokens.arpa", TOKEN_UNIGRAMS, TOKEN_BIGRAMS, TOKEN_BACK_OFF)


def slow_model(sentence: Iterable[str], unigrams: dict, bigrams: dict, back_off: dict) -> float:
    """The textbook's back-off bigram, base 10."""
    total, last = 0.0, "<s>"
    for word in (*sentence, "</s>"):
        known = unigrams.get(word, unigrams["<unk>"])
        total += bigrams.get((last, word), back_off.get(last, 0.0) + known)
        last = word
    return total


def slow_search(table: Tensor, score: Callable[[tuple[int, ...]], float | None], *, sums: bool) -> tuple[tuple, float]:
    """The best labels over all alignments: `score` of labels is added, None = not allowed."""
    found: dict[tuple[int, ...], list[float]] = {}
    rows = table.tolist()
    for path in itertools.product(range(table.size(1)), repeat=len(rows)):
        labels = tuple(k for k, _ in itertools.groupby(path) if k)
        found.setdefault(labels, []).append(sum(row[k] for row, k in zip(rows, path, strict=True)))
    best: tuple[tuple, float] = ((), -math.inf)
    for labels, alignments in found.items():
        more = score(labels)
        if more is not None:
            total = math.log(math.fsum(map(math.exp, alignments))) if sums else max(alignments)
            best = max(best, (labels, total + more), key=lambda one: one[1])
    return best


def tables(count: int, frames: int = 5) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [(1.5 * torch.randn(frames, 4, generator=generator)).log_softmax(dim=1) for _ in range(count)]


def test_a_search_of_tokens_sums_all_alignments() -> None:
    pytest.importorskip("flashlight.lib.text.decoder", reason=WHY)
    decoder = make_decoder(VOCABULARY, DecodeConfig(method="beam", **WIDE))
    differs = 0
    for table in tables(20):
        labels, score = slow_search(table, lambda labels: 0.0, sums=True)
        found = decoder.decode(table, lm_weight=0.0, word_score=0.0)
        assert found.text == VOCABULARY.decode(labels)
        assert found.score == pytest.approx(score, abs=1e-4)
        differs += labels != slow_search(table, lambda labels: 0.0, sums=False)[0]
    assert differs, "else greedy decoding would pass too"


def test_a_search_of_tokens_weighs_the_model_of_tokens(token_model: Path) -> None:
    pytest.importorskip("flashlight.lib.text.decoder.kenlm", reason=WHY)
    decoder = make_decoder(VOCABULARY, DecodeConfig(method="beam", lm=str(token_model), lm_units="tokens", **WIDE))
    names = ["", "|", "a", "b"]
    for table in tables(12):

        def score(labels: tuple[int, ...]) -> float:
            return 1.7 * slow_model([names[k] for k in labels], TOKEN_UNIGRAMS, TOKEN_BIGRAMS, TOKEN_BACK_OFF)

        labels, expected = slow_search(table, score, sums=False)
        found = decoder.decode(table, lm_weight=1.7, word_score=0.0)
        assert (found.text, found.score) == (VOCABULARY.decode(labels), pytest.approx(expected, abs=1e-4))


@pytest.mark.parametrize("weights", [(2.0, -1.0), (0.5, 1.5)])
def test_a_search_of_words_weighs_the_model_and_counts_words(word_model: Path, weights: tuple[float, float]) -> None:
    pytest.importorskip("flashlight.lib.text.decoder.kenlm", reason=WHY)
    decoder = make_decoder(VOCABULARY, DecodeConfig(method="beam", lm=str(word_model), **WIDE))
    lengths = set()
    for table in tables(12):

        def score(labels: tuple[int, ...]) -> float | None:
            words = VOCABULARY.decode(labels).split()
            if not set(words) <= set(WORDS):
                return None
            return weights[0] * slow_model(words, UNIGRAMS, BIGRAMS, BACK_OFF) + weights[1] * len(words)

        labels, expected = slow_search(table, score, sums=False)
        found = decoder.decode(table, lm_weight=weights[0], word_score=weights[1])
        assert (found.text, found.score) == (VOCABULARY.decode(labels), pytest.approx(expected, abs=1e-4))
        lengths.add(len(found.text.split()))
    assert len(lengths) > 1


def test_a_lexicon_without_a_model_allows_its_words_alone(tmp_path: Path) -> None:
    pytest.importorskip("flashlight.lib.text.decoder", reason=WHY)
    lexicon = tmp_path / "words.txt"
    lexicon.write_bytes(b"\xef\xbb\xbfba b a |\r\n\r\nbb\r\n")
    decoder = make_decoder(VOCABULARY, DecodeConfig(method="beam", lexicon=str(lexicon), **WIDE))
    for table in tables(12, frames=6):
        sums: dict[str, float] = {}
        for path in itertools.product(range(4), repeat=6):
            text = VOCABULARY.decode([k for k, _ in itertools.groupby(path) if k])
            if set(text.split()) <= {"ba", "bb"}:
                chance = math.exp(sum(table[t, k].item() for t, k in enumerate(path)))
                sums[text] = sums.get(text, 0.0) + chance
        best = max(sums, key=lambda text: sums[text])
        found = decoder.decode(table, lm_weight=0.0, word_score=0.0)
        assert (found.text, found.score) == (best, pytest.approx(math.log(sums[best]), abs=1e-4))


def test_weights_are_those_of_the_fewest_errors(word_model: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("flashlight.lib.text.decoder.kenlm", reason=WHY)
    grid = {"lm_weights": (0.0, 1.0, 4.0), "word_scores": (-3.0, 0.0), "tune_utterances": None}
    decoder = make_decoder(VOCABULARY, DecodeConfig(method="beam", lm=str(word_model), **WIDE, **grid))
    heard = {f"u{i}": Heard("", table) for i, table in enumerate(tables(6))}
    grid_end = {0.0, 4.0}
    wanted = {n: decoder.decode(h.log_probs, lm_weight=1.0, word_score=0.0).text or "a" for n, h in heard.items()}
    best, table = choose_weights(decoder, heard, wanted, metric="wer")
    assert len(table) == 6
    assert table[str(best)].value == min(value.value for value in table.values())
    assert ("an end of `decode.lm_weights`" in caplog.text) == (best.lm_weight in grid_end)
    assert table[str(Weights(1.0, 0.0))].value <= table[str(Weights(4.0, -3.0))].value


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("lexicon", b"ab a x |\n", r"line 1, spells 'ab' with 'x'"),
        ("lexicon", b"a\n\xff\n", r"line 2, is not UTF-8"),
        ("lexicon", b"AB\nBA\n", "None of 2 words of .*'AB'.* in the case of its training texts"),
        ("lexicon", b"a\n<unk> a b\n", "spells '<unk>', which stands for all words that it lacks"),
        ("lexicon", None, "does not exist"),
        ("lm", None, "does not exist"),
        ("lm", b"mmap lm http://kheafield.com/code format version 5\n\0", "no ARPA file.*decode.lexicon"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, name: str, content: bytes | None, words: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    config = DecodeConfig(method="beam", **{name: str(path)})
    tokens = beam.Tokens(("", "|", "a", "b"), lambda word: [] if set(word) - {"a", "b"} else [2], str)
    with pytest.raises((ConfigError, ManifestError), match=words):
        read_spellings(tokens, config)


def test_words_of_a_packed_model_are_spelled_and_those_that_cannot_be_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = write_arpa(tmp_path / "plain", {**UNIGRAMS, "axa": -1.0}, BIGRAMS, BACK_OFF)
    packed = tmp_path / "packed.arpa.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    tokens = beam.Tokens(("", "|", "a", "b"), lambda word: [] if "x" in word else VOCABULARY.encode(word), str)
    found = read_spellings(tokens, DecodeConfig(method="beam", lm=str(packed)))
    spelled = {found.words[place]: labels for place, labels in found.entries}
    assert spelled == {"a": (2,), "ab": (2, 3), "ba": (3, 2), "bb": (3, 3)}
    assert f"{packed} has 'axa', the first of 1 words with characters" in caplog.text


def test_settings_that_would_do_nothing_are_refused() -> None:
    for wrong in ({"lm": "a.arpa"}, {"tune": True}, {"method": "beam", "lexicon": "a", "lm_units": "tokens"}):
        with pytest.raises(ConfigError, match="decode"):
            DecodeConfig(**wrong)


def test_without_flashlight_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tiny_corpus: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "flashlight.lib.text", None)
    with pytest.raises(ConfigError, match=r"speechssl\[decode\]"):
        TASK(AsrConfig(decode=DecodeConfig(method="beam"))).prepare(open_corpus(tiny_corpus))


TEXTS = ["naba kidose tilo", "gar bel dim", "bado kimu nase", "dona mulo ba"]


@pytest.mark.parametrize("model", ["bpe", "unigram"])
def test_pieces_come_back_as_the_text_they_were_made_of(model: str) -> None:
    pieces = train_pieces(TEXTS, size=26, model=model)  # type: ignore[arg-type]
    assert len(pieces) == 26
    for text in TEXTS:
        labels = pieces.encode(text)
        assert 0 not in labels
        assert max(labels) < 26
        assert pieces.decode(labels) == text
    assert pieces == train_pieces(TEXTS[::-1], size=26, model=model)  # type: ignore[arg-type]
    assert pieces.unseen(["nazz ab"]) == {"z": 2}
    assert len(pieces.encode(TEXTS[0])) < len(TEXTS[0])


def test_too_many_pieces_are_refused() -> None:
    with pytest.raises(ConfigError, match="`num_pieces` can't be 500"):
        train_pieces(TEXTS, size=500, model="bpe")


def test_a_run_with_pieces_and_a_beam_is_measured_and_infers(tiny_corpus: Path, tmp_path: Path) -> None:
    pytest.importorskip("flashlight.lib.text.decoder.kenlm", reason=WHY)
    words = [
        "ba",
        "do",
        "ki",
        "mu",
        "na",
        "se",
        "ti",
        "lo",
        "bado",
        "kimu",
        "nase",
        "tilo",
        "dona",
        "mulo",
        "gar",
        "bel",
        "dim",
        "fon",
        "rus",
        "tak",
    ]
    model = write_arpa(tmp_path / "lm.arpa", {**dict.fromkeys(words, -1.2), "</s>": -0.6, "<unk>": -3.0}, {}, {})
    settings = [f"decode.lm={model}", "decode.tune=true", "decode.lm_weights=[0.5,1.0]", "decode.word_scores=[0.0]"]
    config = load_config(
        AsrConfig(
            train=TrainConfig(steps=4, batch_seconds=15.0, learning_rate=1e-2, evaluate_every=2),
            units="pieces", num_pieces=40, label_rate=25.0, project_size=8, num_layers=0, augment=None,
        ),
        overrides=["decode.method=beam", "decode.save_log_probs=true", *settings],
    )  # fmt: skip
    options = RunOptions(cache_folder=str(tmp_path / "cache"))
    (result,) = run("asr", upstream="fbank", corpus=tiny_corpus, config=config, out=tmp_path, options=options)
    assert {"wer", "cer", "wer of beam", "cer of beam"} <= set(result.test.metrics)
    assert set(result.test.breakdown["wer on dev by weights"]) == {"lm 0.5, word 0", "lm 1, word 0"}
    assert "wer of beam" not in result.dev.metrics
    folder = tmp_path / "asr" / "fbank" / "seed0"
    utterance = open_corpus(tiny_corpus).utterances("test")[0]
    said = infer(folder, [utterance.path])[utterance.path]
    rows = [line.split("\t") for line in (folder / "transcripts_beam.tsv").read_text().splitlines()]
    assert said == next(row[2] for row in rows if row[0] == utterance.id)


def test_saved_log_probabilities_are_those_that_k2_reads(tmp_path: Path) -> None:
    from speechssl.decode.k2_command import read_log_probs

    (table,) = tables(1)
    save_log_probs(tmp_path / "a.safetensors", {"u": Heard("", table)}, VOCABULARY)
    found = read_log_probs(tmp_path / "a.safetensors")
    assert torch.equal(found.utterances["u"], table)
    assert found.tokens == ("<blank>", " ", "a", "b")


def test_the_state_of_pieces_is_json(tmp_path: Path) -> None:
    from speechssl.ctc.vocabulary import vocabulary_from_state

    pieces = train_pieces(TEXTS, size=26, model="bpe")
    assert isinstance(vocabulary_from_state(pieces.state()), Pieces)
    assert vocabulary_from_state(pieces.state()) == pieces
