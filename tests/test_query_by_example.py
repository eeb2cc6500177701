"""Query by example: standardised layers, warped or by windows, one of which dev chooses, scored as SUPERB scores it."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from itertools import product
from pathlib import Path

import corpus_trees
import numpy as np
import pytest
import soundfile
import torch
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from torch import Tensor

from downstreams.query_by_example.config import PRESETS, QueryByExampleConfig
from downstreams.query_by_example.data import Truth, WholeSet, _by_text, read_splits
from downstreams.query_by_example.match import find_place, find_standard, no_standard, score_all
from downstreams.query_by_example.task import TASK
from speechssl.alignment.windows import best_window, window_similarities
from speechssl.data.corpora.prepare import prepare_corpus
from speechssl.data.corpus import Corpus, open_corpus
from speechssl.data.flac import SAMPLE_RATE
from speechssl.data.manifests import Clip, write_corpus
from speechssl.errors import ConfigError, ManifestError, SpeechsslError
from speechssl.feature_store import FeatureStore
from speechssl.inference import infer
from speechssl.jobs import RunOptions
from speechssl.metric.spoken_term import max_term_weighted_value
from speechssl.metric.spoken_term_files import read_scores
from speechssl.probe import Probe, build_probe
from speechssl.result import Evaluation
from speechssl.runner import run
from speechssl.task import FeatureConfig, TaskData, TrainConfig
from speechssl.types import Utterance

TEXT = QueryByExampleConfig(documents="train", truth="text", min_query_letters=2)
Floats = NDArray[np.float64]


def arrays(seed: int, *lengths: int, layers: int = 3, width: int = 8) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scale = torch.rand(layers, 1, width, generator=generator) * 5
    return [scale * torch.randn(layers, t, width, generator=generator) + 2 for t in lengths]


def slow_distance(query: Floats, document: Floats) -> float:
    """S3PRL's for one pair and layer, from its definition: one cell after the other."""
    costs = np.exp(cdist(query, document, "cosine")) - 1
    low, high = costs.min(1, keepdims=True), costs.max(1, keepdims=True)
    costs = (costs - low) / np.clip(high - low, 1e-9, np.inf)

    @lru_cache(None)
    def reach(i: int, j: int) -> float:
        if i < 0 or j < 0:
            return math.inf
        if i == 0:
            return float(costs[0, j])
        return min(reach(i - 1, j), reach(i - 1, j - 1), reach(i - 1, j - 2)) + float(costs[i, j])

    return min(reach(len(costs) - 1, j) for j in range(costs.shape[1])) / len(costs)


def slow_scores(queries: list[Tensor], documents: list[Tensor]) -> Floats:
    """All that S3PRL does to one layer: standardise, warp, negate, zeros for short queries, standardise each query."""
    everything = torch.cat([*queries, *documents]).double().numpy()
    mean, deviation = everything.mean(0), np.maximum(everything.std(0, ddof=1), 1e-9)
    scores = np.zeros((len(queries), len(documents)))
    for (q, query), (d, document) in product(enumerate(queries), enumerate(documents)):
        if len(query) >= 5:
            sides = ((x.double().numpy() - mean) / deviation for x in (query, document))
            scores[q, d] = -slow_distance(*sides)
    rows: Floats = (scores - scores.mean(1, keepdims=True)) / np.clip(scores.std(1, keepdims=True), 1e-9, np.inf)
    return rows


def store_of(queries: dict[str, list[Tensor]], documents: list[Tensor]) -> tuple[FeatureStore, TaskData]:
    """A store and data whose query k of a split occurs in document k."""
    held = {f"d{k}": x for k, x in enumerate(documents)}
    splits = {"train": [Utterance(name, name) for name in held]}
    truths = {}
    for split, found in queries.items():
        held |= {f"{split}{k}": x for k, x in enumerate(found)}
        splits[split] = [Utterance(f"{split}{k}", "") for k in range(len(found))]
        truths[split] = Truth(frozenset((f"{split}{k}", f"d{k}") for k in range(len(found))))
    layers = tuple(range(len(documents[0])))
    store = FeatureStore(held, {k: x.size(1) for k, x in held.items()}, frame_rate=50.0, layers=layers)
    return store, TaskData(splits, {"truths": truths})


def searched(
    config: QueryByExampleConfig, queries: dict[str, list[Tensor]], documents: list[Tensor], folder: Path
) -> tuple[list[Evaluation], Probe, TaskData]:
    store, data = store_of(queries, documents)
    task = TASK(config)
    probe = build_probe(task, data, num_layers=store.num_layers, size=store.hidden_size, frame_rate=50.0, seed=0)
    found = [task.measure(probe, store, data, split, folder, lambda *_: None) for split in ("dev", "test")]
    return found, probe, data


def test_dev_chooses_the_layer_and_the_scores_are_those_of_the_slow_reference(tmp_path: Path) -> None:
    documents = arrays(1, 30, 22, 41, 18)
    noise = arrays(2, 8, 9, 8, 10)
    queries: dict[str, list[Tensor]] = {
        "dev": [],
        "test": [],
    }  # in layer 1 they lie in their documents, in the others they are noise
    for k, split in product(range(4), queries):
        query = noise[k].clone()
        query[1] = documents[k][1, 3 : 3 + query.size(1)]
        queries[split].append(query)
    queries["test"][3] = queries["test"][3][:, :4]
    (dev, test), probe, _ = searched(QueryByExampleConfig(), queries, documents, tmp_path)
    for split, found in (("dev", dev), ("test", test)):
        by_layer = []
        for layer in range(3):
            scores = slow_scores([q[layer] for q in queries[split]], [d[layer] for d in documents])
            by_layer.append(max_term_weighted_value(scores, np.eye(4, dtype=bool))[0])
        reported = {int(k): v.value for k, v in found.breakdown["mtwv by layer"].items()}
        assert reported == pytest.approx(dict(enumerate(by_layer)) if split == "dev" else {1: by_layer[1]}, abs=1e-9)
        assert found.metrics["mtwv"].value == pytest.approx(by_layer[1], abs=1e-9)
        assert (found.metrics["layer"].value, found.metrics["layer"].n) == (1.0, 3)
    assert dev.metrics["mtwv"].value == 1.0 > max(v for k, v in enumerate(by_layer) if k != 1)
    names = [f"test{k}" for k in range(4)], [f"d{k}" for k in range(4)]
    written = read_scores(tmp_path / "benchmark.stdlist.xml", *names)
    expected = slow_scores([q[1] for q in queries["test"]], [d[1] for d in documents])
    np.testing.assert_allclose(written.scores, expected, rtol=0, atol=6e-5)  # four decimals
    assert not written.scores[3].any()  # shorter than five frames
    assert (written.decisions == (expected > 2.0)).all()
    weights = probe.featurizer.weights()
    assert weights is not None and weights.tolist() == [0.0, 1.0, 0.0]
    assert probe.trained_parameters() == 0
    assert not (tmp_path / "dev").exists()


def test_what_infer_gets_is_the_layer_that_dev_chose_standardised_as_there(tmp_path: Path) -> None:
    documents = arrays(3, 25, 30)
    queries = {s: [d[:, 4:14] + 0.01 for d in documents] for s in ("dev", "test")}
    (dev, _), probe, _ = searched(QueryByExampleConfig(), queries, documents, tmp_path)
    row = int(dev.metrics["layer"].value)
    everything = torch.cat([x[row] for x in (*queries["dev"], *documents)]).double()
    expected = (documents[0][row].double() - everything.mean(0)) / everything.std(0)
    found = probe.head(probe.featurizer(list(documents[0])))
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)


def test_standardisation_in_pieces_is_that_of_all_frames_at_once() -> None:
    pieces = [x + 1000 for x in arrays(4, 1, 30, 7, 200, 2)]
    pieces = [torch.cat((x, torch.full((3, x.size(1), 1), 5.0)), dim=2) for x in pieces]  # one dimension is constant
    found = find_standard(x.clone() for x in pieces)
    whole = torch.cat(pieces, dim=1).double()
    np.testing.assert_allclose(found.mean, whole.mean(1), rtol=1e-6)
    np.testing.assert_allclose(found.deviation, whole.std(1).clamp(min=1e-9), rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("chunk", [1, 50, 1024])
def test_windows_are_the_best_cosine_of_means(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("speechssl.alignment.windows.CHUNK", chunk)
    queries, documents = arrays(5, 6, 9, 6, 40, 1), arrays(6, 20, 7, 33, 140, 1)
    found = window_similarities(queries, documents)
    for k, q, d in np.ndindex(3, 5, 5):
        query, document = (x.double().numpy() for x in (queries[q][k], documents[d][k]))
        size = min(len(query), len(document))
        starts = range(len(document) - size + 1)
        cosines = [1 - cdist([query.mean(0)], [document[s : s + size].mean(0)], "cosine").item() for s in starts]
        assert float(found[k, q, d]) == pytest.approx(max(cosines), abs=1e-9)
        assert best_window(queries[q][k], documents[d][k])[0] == int(np.argmax(cosines))
    assert window_similarities(queries, []).shape == (3, 5, 0)
    assert window_similarities([torch.zeros(1, 3, 2)], [torch.ones(1, 5, 2)]).item() == 0.0
    assert window_similarities([torch.ones(1, 3, 2)], [torch.zeros(1, 5, 2)]).item() == 0.0
    with pytest.raises(SpeechsslError, match="empty"):
        window_similarities([], documents)


@pytest.mark.parametrize("head", ["dtw", "windows"])
def test_a_query_is_found_where_it_was_cut(head: str) -> None:
    config = replace(QueryByExampleConfig(), head=head)  # type: ignore[arg-type]  # both are heads
    document = arrays(7, 60)[0][0]
    assert find_place(document[21:33], document, config) == (21, 32)


def test_groups_of_queries_give_the_same_as_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    held = {f"u{k}": x for k, x in enumerate(arrays(8, 6, 12, 3, 9, 30, 25))}
    names = list(held)

    def scores() -> Tensor:
        standard = no_standard(held["u0"])
        shares: list[float] = []
        found = score_all(
            names[:4], names[4:], held.__getitem__, standard=standard, config=QueryByExampleConfig(),
            device=torch.device("cpu"), report=lambda share, _: shares.append(share),
        )  # fmt: skip
        assert sum(shares) == pytest.approx(1.0)
        return found

    threads = torch.get_num_threads()
    whole = scores()
    monkeypatch.setattr("downstreams.query_by_example.match.QUERY_BYTES", 4 * 3 * 8 * 13)
    torch.testing.assert_close(scores(), whole, rtol=0, atol=1e-6)
    assert torch.get_num_threads() == threads
    assert not whole[:, 2].any() and whole[:, [0, 1, 3]].all()


def test_a_part_is_scored_against_the_truth_of_the_whole(tmp_path: Path) -> None:
    documents = arrays(9, 30, 35)
    queries = {s: [documents[0][:, 5:15], documents[1][:, 5:15]] for s in ("dev", "test")}
    store, data = store_of(queries, documents)
    for split in ("dev", "test"):
        own = data.extra["truths"][split].pairs
        others = {("other0", "d0"), ("other0", "x1"), ("other1", "x2"), (f"{split}0", "x3")}
        columns = ("x1", "d1", "x2", "d0", "x3", "x4")
        data.extra["truths"][split] = Truth(own, WholeSet(columns, own | others))
    task = TASK(QueryByExampleConfig())
    probe = build_probe(task, data, num_layers=3, size=8, frame_rate=50.0, seed=0)
    found = task.measure(probe, store, data, "dev", tmp_path, lambda *_: None)
    assert found.metrics["mtwv of what is searched"].value == 1.0
    # Of four queries two are searched: one is found in its only document, the other in one of two.
    assert found.metrics["mtwv"].value == pytest.approx((1 + 0.5) / 4)
    assert (found.metrics["mtwv"].n, found.metrics["mtwv of what is searched"].n) == (4, 2)


def test_quesst_is_read_with_its_truth_and_that_of_all_languages(tmp_path: Path) -> None:
    prepare_corpus("quesst14", corpus_trees.quesst14(tmp_path), tmp_path / "out")
    splits, truths = read_splits(open_corpus(tmp_path / "out"), QueryByExampleConfig())
    assert {s: len(part) for s, part in splits.items()} == {"train": 6, "dev": 2, "test": 2}
    first, third = ("quesst14_dev_0000", "quesst14_00000"), ("quesst14_dev_0000", "quesst14_00003")
    assert truths["dev"].pairs == {first, third}
    whole = truths["dev"].whole
    assert whole is not None and len(whole.documents) == 9
    assert whole.pairs == {first, third, ("quesst14_dev_0002", "quesst14_00002")}
    everything = corpus_trees.quesst14(tmp_path / "again")
    (tmp_path / "all.yaml").write_text("language: all\n")
    prepare_corpus("quesst14", everything, tmp_path / "all", config=tmp_path / "all.yaml")
    _, of_all = read_splits(open_corpus(tmp_path / "all"), QueryByExampleConfig())
    assert of_all["dev"] == Truth(whole.pairs)
    _, of_some = read_splits(open_corpus(tmp_path / "all"), QueryByExampleConfig(languages=("nnenglish",)))
    assert of_some["dev"].pairs == truths["dev"].pairs
    assert of_some["dev"].whole == WholeSet(tuple(sorted(whole.documents)), whole.pairs)


def broken(text: bytes) -> Callable[[Corpus], None]:
    def write(corpus: Corpus) -> None:
        (corpus.root / "lists/ground_truth_test.txt").write_bytes(text)

    return write


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (broken(b"quesst14_eval_0000\r\n"), r"ground_truth_test.txt, line 1, is 'quesst14_eval_0000', but must be a q"),
        (broken(b"\xef\xbb\xbfquesst14_eval_0000 nowhere\r\n"), r"line 1, names the document 'nowhere'"),
        (broken(b"quesst14_eval_0000 quesst14_00000\nnobody quesst14_00000\n"), r"line 2, names the query 'nobody'"),
        (broken(b""), "No query of 'test' occurs"),
    ],
)
def test_a_line_of_the_truth_that_does_not_fit_is_named(
    harm: Callable[[Corpus], None], message: str, tmp_path: Path
) -> None:
    prepare_corpus("quesst14", corpus_trees.quesst14(tmp_path), tmp_path / "out")
    corpus = open_corpus(tmp_path / "out")
    harm(corpus)
    with pytest.raises(ManifestError, match=message):
        read_splits(corpus, QueryByExampleConfig())


def test_utterances_that_are_left_out_take_their_lines_with_them(tmp_path: Path) -> None:
    prepare_corpus("quesst14", corpus_trees.quesst14(tmp_path), tmp_path / "out")
    corpus = open_corpus(tmp_path / "out").without(["quesst14_00003"])
    splits, truths = read_splits(corpus, QueryByExampleConfig())
    assert len(splits["train"]) == 5
    assert truths["dev"].pairs == {("quesst14_dev_0000", "quesst14_00000")}


WORDS = {"ba": (300, 900), "deko": (450, 2000, 700), "mi": (1500, 400), "sulu": (250, 600, 1200), "ta": (2400, 800)}
"""Word -> its tones, Hz."""


@pytest.fixture(scope="module")
def spoken_words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of twenty documents of three words, and five queries of one word each for dev and test."""
    root = tmp_path_factory.mktemp("words")
    (root / "audio").mkdir()
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(list(WORDS), 3, replace=False)) for _ in range(20)]
    splits = {"train": [*texts, ""], "dev": [*WORDS, "ba mi ta sulu"], "test": [*WORDS, "klu"]}
    made = {s: [_clip(root, f"{s}{k}", t, rng) for k, t in enumerate(part)] for s, part in splits.items()}
    write_corpus(root, made, name="words", source="synthetic", sources=[])
    return root


def _clip(root: Path, name: str, text: str, rng: np.random.Generator) -> Clip:
    size = SAMPLE_RATE // 10
    times = np.arange(size) / SAMPLE_RATE
    tones = [np.sin(2 * np.pi * f * times) * np.hanning(size) for word in text.split() for f in WORDS.get(word, ())]
    waveform = 0.3 * np.concatenate([np.zeros(size), *tones, np.zeros(size)])
    waveform += rng.normal(0, 0.01, len(waveform))
    soundfile.write(root / "audio" / f"{name}.flac", waveform, SAMPLE_RATE)
    return Clip(name, f"audio/{name}.flac", len(waveform), "tones", "xx", "CC0-1.0", text=text or None)


def test_by_transcripts_a_query_occurs_where_its_words_follow_one_another(spoken_words: Path) -> None:
    corpus = open_corpus(spoken_words)
    splits, truths = read_splits(corpus, TEXT)
    assert [len(splits[s]) for s in ("train", "dev", "test")] == [20, 5, 5]
    texts = {u.id: str(u.labels["text"]).split() for u in splits["train"]}
    for split in ("dev", "test"):
        words = {u.id: u.labels["text"] for u in splits[split]}
        assert truths[split].pairs == {(q, d) for (q, w), (d, t) in product(words.items(), texts.items()) if w in t}
    phrase = replace(corpus.utterances("dev")[0], labels={"text": " ".join(texts["train3"][1:]), "language": "xx"})
    inside, _ = _by_text([phrase], splits["train"], TEXT)
    assert inside == [phrase]
    foreign = replace(phrase, labels={**phrase.labels, "language": "yy"})
    apart = replace(phrase, labels={"text": " ".join(texts["train3"][::2]), "language": "xx"})
    held = {tuple(t[k : k + 2]) for t in texts.values() for k in range(2)}
    assert _by_text([foreign], splits["train"], TEXT)[0] == []
    assert bool(_by_text([apart], splits["train"], TEXT)[0]) == (tuple(texts["train3"][::2]) in held)
    for change, message in (
        ({"min_query_letters": 50}, "No query of 'dev' occurs"),
        ({"languages": ("zz",)}, "no utterance in 'train'"),
        ({"truth": "lists"}, "no list 'ground_truth_dev'"),
    ):
        with pytest.raises(ManifestError, match=message):
            read_splits(corpus, replace(TEXT, **change))  # type: ignore[arg-type]  # they fit


@pytest.mark.parametrize(("head", "upstream"), [("dtw", "fbank"), ("windows", "hubert_tiny:random")])
def test_a_run_finds_words_and_infer_says_where(head: str, upstream: str, spoken_words: Path, tmp_path: Path) -> None:
    options = RunOptions(cache_folder=str(tmp_path / "cache"))
    (result,) = run(
        "query_by_example",
        upstream=upstream,
        corpus=spoken_words,
        config=replace(TEXT, head=head),  # type: ignore[arg-type]  # both are heads
        out=tmp_path,
        options=options,
    )
    assert (result.metric, result.higher_is_better, result.trained_parameters) == ("mtwv", True, 0)
    layers = result.dev.breakdown["mtwv by layer"]
    best = max(layers, key=lambda k: layers[k].value)
    assert list(result.test.breakdown["mtwv by layer"]) == [best]
    assert result.layer_weights[int(best)] == 1.0 and sum(result.layer_weights) == 1.0
    mtwv, bound = (result.test.metrics[name].value for name in ("mtwv", "upper_bound_twv"))
    assert (0.5 if upstream == "fbank" else 0.0) <= mtwv <= bound <= 1.0
    (folder,) = (tmp_path / "query_by_example").glob("*/seed0")
    rows = [line.split("\t") for line in (folder / "matches.tsv").read_text().splitlines()]
    assert rows[0] == ["query", "document", "score", "occurs", "first frame", "last frame"]
    assert len(rows) == 1 + 5 * 5
    assert json.loads((folder / "task.json").read_text())["state"] == {"layer": int(best)}
    corpus = open_corpus(spoken_words)
    query = next(u for u in corpus.utterances("test") if u.labels["text"] == "sulu")
    documents = [u for u in corpus.utterances("train") if u.labels.get("text")][:6]
    found = infer(folder, [query.path, *(u.path for u in documents)])
    assert found["query"] == query.path and found["layer"] == int(best)
    scores = [row["score"] for row in found["documents"]]
    assert scores == sorted(scores, reverse=True) and len(scores) == 6
    first = found["documents"][0]
    assert 0.0 <= first["start"] < first["end"]
    with pytest.raises(SpeechsslError, match="at least two"):
        infer(folder, [query.path])
    soundfile.write(tmp_path / "short.wav", np.zeros(SAMPLE_RATE // 20), SAMPLE_RATE)
    with pytest.raises(SpeechsslError, match="must have 5 at least"):
        infer(folder, [tmp_path / "short.wav", query.path])
    if upstream != "fbank":
        return
    words = next(u for u in documents if u.path == first["path"]).labels["text"].split()
    assert "sulu" in words
    begin = 0.1 * (1 + sum(len(WORDS[word]) for word in words[: words.index("sulu")]))  # seconds
    assert first["start"] < begin + 0.15 < first["end"]


def test_the_default_preset_is_superbs() -> None:
    config = PRESETS["query_by_example"]
    warp = config.search.warp
    assert (config.search.distance, warp.step_pattern, warp.open_ends, warp.minmax) == (
        "cosine_exp", "asymmetric", True, True,
    )  # fmt: skip
    assert (config.train.steps, config.min_query_frames, config.decision_threshold) == (0, 5, 2.0)
    assert config.point.beta == pytest.approx(12.49)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": TrainConfig(steps=5)}, "trains nothing"),
        ({"features": FeatureConfig(pooling="mean")}, "compares frames"),
        ({"features": FeatureConfig(normalize=True)}, "as they are"),
        ({"documents": "dev"}, "another split"),
        ({"distance": "cosine_neg_log"}, "`distance` must be one of"),
        ({"step_pattern": "symmetric2"}, "open_ends"),
    ],
)
def test_settings_that_have_no_meaning_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(QueryByExampleConfig(), **change)  # type: ignore[arg-type]  # wrong on purpose


def test_test_is_not_looked_at_before_dev(tmp_path: Path) -> None:
    store, data = store_of({"dev": arrays(1, 8), "test": arrays(2, 8)}, arrays(3, 20))
    task = TASK(QueryByExampleConfig())
    probe = build_probe(task, data, num_layers=3, size=8, frame_rate=50.0, seed=0)
    with pytest.raises(SpeechsslError, match="measure dev first"):
        task.measure(probe, store, data, "test", tmp_path, lambda *_: None)
