"""The decoder with the real k2, in the environment that `make k2` makes; skipped where there is none.

One process of that environment does all the jobs and writes what it found; this one has the references: our own greedy
decoding and a search of every alignment of every word sequence.
"""

import json
import os
import subprocess
from itertools import product
from pathlib import Path

import pytest
import torch
from k2_reference import Ngrams, best_sentences
from safetensors.torch import save_file

from speechssl.decode.ctc import greedy_decode

ROOT = Path(__file__).parents[1]
ENVIRONMENT = ROOT / ".venv-k2"
PYTHON = ENVIRONMENT / "bin" / "python"
TOLERANCE = 2e-4  # float32 sums of up to seven log-probabilities below 30
LETTERS = ("<blank>", "a", "b")
SPACED = ("<blank>", " ", "a", "b")
# Words that sound the same, that begin like another, that repeat a token, and with two spellings.
LEXICON = [("A", "a"), ("B", "b"), ("AB", "a b"), ("ALSO-AB", "a b"), ("AA", "a a"), ("AB", "b a")]

pytestmark = [
    pytest.mark.k2,
    # The stamp is made last, so a broken installation is none.
    pytest.mark.skipif(
        not (ENVIRONMENT / ".installed").exists(),
        reason="needs k2 1.23.4 in Python 3.10, which `make k2` puts in .venv-k2",
    ),
]


def words_job(folder, name, *, tokens, order, separator=None, modified=False, unknown=False, lm_scale=1.0):
    seed = len(name)
    words = sorted({word for word, _ in LEXICON} - ({"B", "AA"} if unknown else set()))
    small = Ngrams.random([*words, "<unk>"] if unknown else words, order, seed=seed)
    larger = Ngrams.random(sorted({word for word, _ in LEXICON}), order + 1, seed=seed + 1)
    lexicon = [(word, tuple(tokens.index(t) for t in spelling.split())) for word, spelling in LEXICON]
    (folder / "words.txt").write_text("".join(f"{word} {spelling}\n" for word, spelling in LEXICON))
    (folder / f"{name}.arpa").write_text(small.text())
    (folder / f"{name}.larger.arpa").write_text(larger.text())
    log_probs = {f"u{n}": random_log_probs(n, frames=1 + n % 6, classes=len(tokens)) for n in range(12)}
    save_log_probs(folder / name, log_probs, tokens)
    job = {
        "kind": "words",
        "log_probs": str(folder / name),
        "lexicon": str(folder / "words.txt"),
        "arpa": str(folder / f"{name}.arpa"),
        "rescore": str(folder / f"{name}.larger.arpa"),
        "rescore_scale": 1.7,
        "separator": separator,
        "modified": modified,
        "lm_scale": lm_scale,
    }
    place = None if separator is None else tokens.index(separator)
    search = {"lexicon": lexicon, "separator": place, "modified": modified}
    return job, {"log_probs": log_probs, "small": small, "larger": larger, "search": search, "lm_scale": lm_scale}


def random_log_probs(seed, *, frames, classes):
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(frames, classes, generator=generator)).log_softmax(dim=-1)


def save_log_probs(path, log_probs, tokens):
    save_file(dict(log_probs), path, metadata={"tokens": json.dumps(tokens)})


WORDS = {
    "unigram": {"tokens": LETTERS, "order": 1},
    "bigram": {"tokens": LETTERS, "order": 2},
    "trigram": {"tokens": LETTERS, "order": 3},
    "separator": {"tokens": SPACED, "order": 2, "separator": " "},
    "separator, trigram": {"tokens": SPACED, "order": 3, "separator": " ", "lm_scale": 0.6},
    "modified": {"tokens": LETTERS, "order": 2, "modified": True},
    "unknown words": {"tokens": LETTERS, "order": 2, "unknown": True},
}
GREEDY = {f"u{n}": random_log_probs(100 + n, frames=1 + 17 * n, classes=29) for n in range(12)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("k2")


@pytest.fixture(scope="module")
def found(folder):
    """Results by the name of their job, and the expectations of the words jobs."""
    save_log_probs(folder / "greedy", GREEDY, [f"t{n}" for n in range(29)])
    jobs = {
        f"topology, modified {modified}": {
            "kind": "topology",
            "log_probs": str(folder / "greedy"),
            "modified": modified,
        }
        for modified in (False, True)
    }
    expected = {}
    for name, settings in WORDS.items():
        jobs[name], expected[name] = words_job(folder, name, **settings)
    jobs["commands"] = {"kind": "commands", "commands": write_commands(folder)}
    (folder / "jobs.json").write_text(json.dumps(list(jobs.values())))
    command = [PYTHON, "-m", "tests.k2_worker", folder / "jobs.json", folder / "results.json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((folder / "results.json").read_text())
    return dict(zip(jobs, results, strict=True)), expected


def test_the_best_path_of_the_topology_is_our_greedy_one(found):
    for name, log_probs in GREEDY.items():
        hypothesis = found[0]["topology, modified False"][name]
        [tokens] = greedy_decode(log_probs[None], torch.tensor([len(log_probs)]))
        assert hypothesis["words"] == [f"t{k}" for k in tokens]
        assert hypothesis["alignment"] == log_probs.argmax(dim=-1).tolist()
        assert hypothesis["score"] == pytest.approx(float(log_probs.double().amax(dim=-1).sum()), abs=1e-2, rel=1e-5)


def test_the_modified_topology_has_the_same_best_alignment(found):
    for name, log_probs in GREEDY.items():
        assert found[0]["topology, modified True"][name]["alignment"] == log_probs.argmax(dim=-1).tolist()


def ranked(expected, name, language, scale):
    return best_sentences(expected["log_probs"][name].double(), language=language, scale=scale, **expected["search"])


def check_best(hypothesis, rows):
    """The score is the best of all, and the words are among those that have it (up to rounding)."""
    assert hypothesis["score"] == pytest.approx(rows[0][0], abs=TOLERANCE)
    assert tuple(hypothesis["words"]) in {words for score, words in rows if score > rows[0][0] - TOLERANCE}


@pytest.mark.parametrize("job", WORDS)
def test_the_graph_finds_the_best_of_all_word_sequences(found, job):
    results, expected = found[0][job], found[1][job]
    for name in expected["log_probs"]:
        rows = ranked(expected, name, expected["small"].optimistic, expected["lm_scale"])
        check_best(results["best"][name], rows)
        check_best(results["of saved graph"][name], rows)


@pytest.mark.parametrize("job", WORDS)
def test_acoustic_and_language_scores_are_kept_apart(found, job):
    results, expected = found[0][job], found[1][job]
    for name, log_probs in expected["log_probs"].items():
        best = results["best"][name]
        acoustic = sum(float(row[k]) for row, k in zip(log_probs, best["alignment"], strict=True))
        language = expected["lm_scale"] * expected["small"].optimistic(best["words"])
        assert best["acoustic"] == pytest.approx(acoustic, abs=TOLERANCE)
        assert best["language"] == pytest.approx(language, abs=TOLERANCE)


@pytest.mark.parametrize("job", WORDS)
def test_nbest_lists_hold_different_sentences_with_their_best_scores(found, job):
    results, expected = found[0][job], found[1][job]
    for name in expected["log_probs"]:
        rows = ranked(expected, name, expected["small"].optimistic, expected["lm_scale"])
        scores = {words: score for score, words in rows}
        hypotheses = results["nbest"][name]
        assert len({tuple(h["words"]) for h in hypotheses}) == len(hypotheses)
        assert [h["score"] for h in hypotheses] == pytest.approx(
            [scores[tuple(h["words"])] for h in hypotheses], abs=TOLERANCE
        )
        assert [h["score"] for h in hypotheses[:3]] == pytest.approx([s for s, _ in rows[:3]], abs=TOLERANCE)


@pytest.mark.parametrize("job", WORDS)
@pytest.mark.parametrize("way", ["rescored", "rescored list"])
def test_rescoring_finds_the_best_of_all_word_sequences_exactly(found, job, way):
    results, expected = found[0][job], found[1][job]
    for name in expected["log_probs"]:
        check_best(results[way][name], ranked(expected, name, expected["larger"].exact, 1.7))


def write_commands(folder):
    """Arguments of one run of the command line each; the names of outputs say what they are about."""
    log_probs = {f"u{n}": random_log_probs(n, frames=1 + n % 6, classes=4) for n in range(8)}
    save_log_probs(folder / "spaced", {**log_probs, "silent": torch.zeros(0, 4)}, SPACED)
    impossible = torch.full((1, 4), -float("inf"))
    impossible[0, 1] = 0.0  # nothing but the separator, once for a lexicon without one
    save_log_probs(folder / "impossible", {"never": impossible}, SPACED)
    save_file({"u": torch.ones(3, 4)}, folder / "logits")
    save_file({"u": -torch.ones(3, 4)}, folder / "nameless")
    (folder / "not.safetensors").write_text("no")
    (folder / "tokens.txt").write_bytes("\ufeff<blank>\r\n \r\na\r\nb\r\n".encode())
    (folder / "wrong.txt").write_text("AB a q\n")
    (folder / "plain.txt").write_text("".join(f"{w} {s}\n" for w, s in LEXICON))
    words = sorted({word for word, _ in LEXICON})
    (folder / "lm.arpa").write_text(Ngrams.random(words, 2, seed=0).text())
    (folder / "characters.arpa").write_text(Ngrams.random(["a", "ba", "abz"], 2, seed=1).text())
    (folder / "other.arpa").write_text(Ngrams.random(["A"], 2, seed=1).text())
    rows = "".join(f"{name}\tx\tA B\n" for name in [*log_probs, "silent"])
    (folder / "references.tsv").write_text("utterance\tnote\treference\n" + rows)
    lm = ["--lexicon", "plain.txt", "--arpa", "lm.arpa"]
    commands = {
        "greedy.tsv": ["--log-probs", "spaced"],
        "words.tsv": ["--log-probs", "spaced", *lm, "--save-graph", "HLG"],
        "again.tsv": ["--log-probs", "spaced", "--graph", "HLG"],
        "five.tsv": ["--log-probs", "spaced", *lm, "--nbest", "5"],
        "characters.tsv": ["--log-probs", "spaced", "--arpa", "characters.arpa"],
        "crlf.tsv": ["--log-probs", "nameless", "--tokens", "tokens.txt"],
        "chosen.tsv": [
            *("--log-probs", "spaced", *lm, "--rescore", "lm.arpa"),
            *("--rescore-scale", "0,1,3", "--references", "references.tsv"),
        ],
        "empty.tsv": ["--log-probs", "impossible", *lm, "--separator", "none"],
        "unspellable.tsv": ["--log-probs", "spaced", "--lexicon", "wrong.txt", "--arpa", "lm.arpa"],
        "unknown.tsv": ["--log-probs", "spaced", "--lexicon", "plain.txt", "--arpa", "other.arpa"],
        "logits.tsv": ["--log-probs", "logits", "--tokens", "tokens.txt"],
        "nameless.tsv": ["--log-probs", "nameless"],
        "damaged.tsv": ["--log-probs", "not.safetensors"],
        "misfit.tsv": ["--log-probs", "greedy", "--tokens", "tokens.txt"],
        "scales.tsv": ["--log-probs", "spaced", *lm, "--rescore", "lm.arpa", "--rescore-scale", "1,2"],
    }
    files = {path.name for path in folder.iterdir()} | {"HLG"}
    return [
        [str(folder / word) if word in files else word for word in [*arguments, "-o", str(folder / output)]]
        for output, arguments in commands.items()
    ]


def result(found, folder, output):
    at = [Path(arguments[-1]).name for arguments in write_commands(folder)].index(output)
    return found[0]["commands"][at]


def table(folder, output):
    lines = (folder / output).read_text(encoding="utf-8").splitlines()
    return [dict(zip(lines[0].split("\t"), line.split("\t"), strict=True)) for line in lines[1:]]


def test_the_command_writes_what_our_greedy_decoding_says(found, folder):
    assert result(found, folder, "greedy.tsv")["status"] == 0
    texts = {row["utterance"]: row["hypothesis"] for row in table(folder, "greedy.tsv")}
    for n in range(8):
        log_probs = random_log_probs(n, frames=1 + n % 6, classes=4)
        [tokens] = greedy_decode(log_probs[None], torch.tensor([len(log_probs)]))
        assert texts[f"u{n}"] == " ".join("".join(SPACED[k] for k in tokens).split())


def test_an_utterance_without_frames_gets_an_empty_line_and_is_counted(found, folder):
    assert "1 utterances, such as 'silent', have no frames" in result(found, folder, "greedy.tsv")["log"]
    [row] = [row for row in table(folder, "greedy.tsv") if row["utterance"] == "silent"]
    assert (row["hypothesis"], row["acoustic"]) == ("", "-inf")


def test_a_saved_graph_decodes_the_same(found, folder):
    assert table(folder, "again.tsv") == table(folder, "words.tsv")
    assert any(row["hypothesis"] for row in table(folder, "words.tsv"))


def test_nbest_rows_are_ranked_and_begin_with_the_best(found, folder):
    rows = table(folder, "five.tsv")
    assert max(int(row["rank"]) for row in rows) > 1
    assert [row for row in rows if row["rank"] == "1"] == table(folder, "words.tsv")


def test_words_of_the_model_are_spelled_by_characters_where_no_lexicon_is_given(found, folder):
    assert "2 words of" in result(found, folder, "characters.tsv")["log"]
    assert "the first of 1 words with characters" in result(found, folder, "characters.tsv")["log"]
    texts = " ".join(row["hypothesis"] for row in table(folder, "characters.tsv"))
    assert set(texts.split()) <= {"a", "ba"} != set()


def test_a_token_file_with_a_byte_order_mark_and_crlf_is_read(found, folder):
    assert result(found, folder, "crlf.tsv")["status"] == 0
    assert [row["utterance"] for row in table(folder, "crlf.tsv")] == ["u"]


def test_the_scale_with_the_fewest_word_errors_is_chosen(found, folder):
    log = result(found, folder, "chosen.tsv")["log"]
    rates = {scale: float(log.split(f"scale {scale}: word error rate ")[1].split()[0]) for scale in ("0", "1", "3")}
    best = min(rates, key=lambda scale: (rates[scale], float(scale)))
    assert f"chosen: scale {best}" in log
    references, texts = ["A B"] * 9, [row["hypothesis"] for row in table(folder, "chosen.tsv")]
    assert rates[best] == pytest.approx(slow_word_error_rate(references, texts), abs=1e-4)


def slow_word_error_rate(references, hypotheses):
    def distance(a, b):
        if not a or not b:
            return len(a) + len(b)
        return min(distance(a[1:], b) + 1, distance(a, b[1:]) + 1, distance(a[1:], b[1:]) + (a[0] != b[0]))

    pairs = [(r.split(), h.split()) for r, h in zip(references, hypotheses, strict=True)]
    return sum(distance(r, h) for r, h in pairs) / sum(len(r) for r, _ in pairs)


def test_an_empty_lattice_gives_an_empty_line_and_one_sentence(found, folder):
    outcome = result(found, folder, "empty.tsv")
    assert outcome["status"] == 0
    assert "1 of 1 utterances, such as 'never', have no path through the graph" in outcome["log"]
    assert [row["hypothesis"] for row in table(folder, "empty.tsv")] == [""]


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        ("unspellable.tsv", "wrong.txt, line 1, spells 'AB' with 'q', which is not among the model's tokens"),
        ("unknown.tsv", "has neither 4 of 5 words of the lexicon, such as 'B', nor <unk>"),
        ("logits.tsv", "numbers above 0 or NaN for 'u', so no log-probabilities"),
        ("nameless.tsv", "does not say which tokens its classes are: give `--tokens`"),
        ("damaged.tsv", "can't be read as safetensors"),
        ("misfit.tsv", "has 29 classes for 'u0', but there are 4 tokens"),
        ("scales.tsv", "Several `--rescore-scale` values need"),
    ],
)
def test_bad_input_ends_with_one_sentence(found, folder, output, sentence):
    outcome = result(found, folder, output)
    assert outcome["status"] == 1
    assert sentence in outcome["message"]
    assert "\n" not in outcome["message"]
    assert not (folder / output).exists()


def test_the_two_readings_of_backing_off_differ_in_these_models(found):
    """Otherwise the tests above could not tell exact rescoring from a search that backs off where it should not."""
    models = [found[1][job]["small"] for job in ("bigram", "trigram")]
    sentences = list(product(("A", "B", "AB"), repeat=2))
    assert any(abs(m.exact(s) - m.optimistic(s)) > 0.1 for m in models for s in sentences)
