"""N-gram models and lexicons of decoders, without a decoder."""

import itertools

import pytest
from k2_reference import Ngrams

from speechssl.decode.arpa import read_arpa
from speechssl.decode.lexicon import disambiguate, make_lexicon, read_lexicon, read_tokens
from speechssl.errors import ManifestError

TOKENS = ("<blank>", " ", "a", "b")


def write(path, text, **options):
    path.write_bytes(text.encode(**options))
    return path


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_scores_are_those_of_the_textbook(tmp_path, order):
    reference = Ngrams.random(["a", "b", "c"], order, seed=order)
    model = read_arpa(write(tmp_path / "lm.arpa", reference.text()))
    for length in range(5):
        for sentence in itertools.product("abc", repeat=length):
            assert model.score(sentence) == pytest.approx(reference.exact(sentence), abs=1e-9)


def test_histories_that_nothing_continues_are_merged(tmp_path):
    model = read_arpa(write(tmp_path / "lm.arpa", Ngrams.random(["a", "b"], 3, seed=0).text()))
    for history in model.histories:
        for word in "ab":
            after = model.advance(history, word)[1]
            assert after == () or after in model.histories


def test_overtaken_counts_ngrams_below_their_back_off(tmp_path):
    entries = {("<s>",): (-99.0, 0.0), ("</s>",): (-0.5, 0.0), ("a",): (-0.5, -0.1)}
    for score, count in ((-0.55, 0), (-0.65, 1)):
        model = read_arpa(write(tmp_path / "lm.arpa", Ngrams({**entries, ("a", "a"): (score, 0.0)}, 2).text()))
        assert model.overtaken() == count


def test_an_unknown_word_scores_as_unk(tmp_path):
    reference = Ngrams.random(["a", "<unk>"], 3, seed=1)
    model = read_arpa(write(tmp_path / "lm.arpa", reference.text().replace("<unk>", "<UNK>")))
    assert model.score(("zebra", "a")) == pytest.approx(reference.exact(("<unk>", "a")), abs=1e-9)


def test_a_byte_order_mark_and_crlf_do_not_matter(tmp_path):
    text = Ngrams.random(["a", "b"], 2, seed=2).text()
    plain = read_arpa(write(tmp_path / "plain.arpa", text))
    assert read_arpa(write(tmp_path / "odd.arpa", text.replace("\n", "\r\n"), encoding="utf-8-sig")) == plain
    tokens = read_tokens(write(tmp_path / "tokens.txt", "<blank>\r\n \r\na\r\nb\r\n", encoding="utf-8-sig"))
    assert tokens == TOKENS
    lexicon = read_lexicon(write(tmp_path / "words.txt", "ab a b\r\n", encoding="utf-8-sig"), tokens)
    assert lexicon.entries == ((0, (2, 3)),)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("\\end\\", ""), "is cut short"),
        (("ngram 1=4", "ngram 1=5"), r"announces \{1: 5, 2: 1\} n-grams by order, but holds \{1: 4, 2: 1\}"),
        (("-1.0\tb", "much\tb"), r"line 9, has a score that is no number: 'much"),
        (("-1.0\tb", "1.0\tb"), r"line 9, has a log probability above 0"),
        (("-1.0\tb\t0.0", "-1.0\ta\t0.0"), r"line 9, has the n-gram 'a' a second time"),
        (("-1.0\tb\t0.0", "-1.0 b c d"), r"line 9, must hold a score, 1 words"),
        (("\\2-grams:", "\\3-grams:"), r"line 11, must be '\\2-grams:'"),
        (("</s>", "end"), "has no '</s>'"),
    ],
)
def test_a_damaged_model_is_refused_with_the_line(tmp_path, change, sentence):
    entries = {("<s>",): (-99.0, 0.0), ("</s>",): (-1.0, 0.0), ("a",): (-1.0, 0.0), ("b",): (-1.0, 0.0)}
    text = Ngrams({**entries, ("a", "b"): (-0.5, 0.0)}, 2).text()
    assert change[0] in text
    with pytest.raises(ManifestError, match=sentence):
        read_arpa(write(tmp_path / "lm.arpa", text.replace(*change)))


def test_tokens_are_read_as_icefall_writes_them_too(tmp_path):
    assert read_tokens(write(tmp_path / "a.txt", "b 2\n<blk> 0\na 1\n#0 3\n#1 4\n")) == ("<blk>", "a", "b")
    with pytest.raises(ManifestError, match="without a gap"):
        read_tokens(write(tmp_path / "b.txt", "<blk> 0\na 1\nb 1\n"))
    with pytest.raises(ManifestError, match="'a' twice"):
        read_tokens(write(tmp_path / "c.txt", "-\na\na\n"))


def test_a_word_that_the_tokens_cannot_spell_is_named_with_its_line(tmp_path):
    with pytest.raises(ManifestError, match=r"words.txt, line 3, spells 'quay' with 'q', .* \(  a b\): correct"):
        read_lexicon(write(tmp_path / "words.txt", "ab\n\nquay q a y\n"), TOKENS)
    with pytest.raises(ManifestError, match="'<blank>', which is not among"):
        read_lexicon(write(tmp_path / "words.txt", "ab a <blank> b\n"), TOKENS)
    with pytest.raises(ManifestError, match="line 1, has the word '</s>'"):
        read_lexicon(write(tmp_path / "words.txt", "</s> a\n"), TOKENS)
    with pytest.raises(ManifestError, match="has no words"):
        read_lexicon(write(tmp_path / "words.txt", "\n"), TOKENS)


def test_words_are_spelled_by_characters_and_the_others_are_counted():
    lexicon, left_out = make_lexicon([("lm", word, ()) for word in ("ab", "ba", "é")], TOKENS, origin="lm")
    assert (lexicon.words, left_out) == (("ab", "ba"), ["é"])
    with pytest.raises(ManifestError, match="None of 1 words of lm, such as 'é'"):
        make_lexicon([("lm", "é", ())], TOKENS, origin="lm")


def test_lexicons_of_other_programs_mean_the_same(tmp_path, caplog):
    lines = ";;; a comment\nab a b |\n\nba\nquay\nqueen\n"
    path = write(tmp_path / "words.txt", lines.replace("\n", "\r"), encoding="utf-8-sig")
    lexicon = read_lexicon(path, TOKENS)
    assert (lexicon.words, lexicon.entries) == (("ab", "ba"), ((0, (2, 3)), (1, (3, 2))))
    assert "words.txt, line 5, has 'quay', the first of 2 words" in caplog.text
    spelled = read_lexicon(path, TOKENS, spell=lambda word: [1, 2] if word.startswith("q") else [])
    assert (spelled.words, spelled.entries) == (("ab", "quay", "queen"), ((0, (2, 3)), (1, (1, 2)), (2, (1, 2))))


def test_spellings_are_told_apart(tmp_path):
    lines = "one a\ntwo a b\nthree a b\nfour b\nfour a a\n"
    lexicon = read_lexicon(write(tmp_path / "words.txt", lines), TOKENS)
    symbols = disambiguate(lexicon)
    whole = [(*spelling, -k) if k else spelling for (_, spelling), k in zip(lexicon.entries, symbols, strict=True)]
    assert not any(a == b[: len(a)] for i, a in enumerate(whole) for j, b in enumerate(whole) if i != j)
    assert symbols == [1, 1, 2, 0, 0]
