"""The probe of frames: which frame has which label, classes and numbers of frames, and what users get."""

import dataclasses
import json
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from corpus_trees import put_list
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    f1_score,
    mean_absolute_error,
    mean_squared_error,
    r2_score,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.nn import functional as F

from downstreams.probe.config import ProbeConfig
from downstreams.probe.frames import FrameProbe
from downstreams.probe.task import make_probe
from speechssl import extract, load_upstream
from speechssl.config import load_config
from speechssl.data.corpora.prepare import prepare_corpus
from speechssl.data.corpus import Corpus, open_corpus
from speechssl.data.spans import Span, Spans, find_runs, label_frames, lay_out
from speechssl.errors import ConfigError, ManifestError
from speechssl.inference import infer
from speechssl.jobs import RunOptions
from speechssl.result import RunResult
from speechssl.runner import run
from speechssl.task import FeatureConfig, TaskData, TrainConfig
from speechssl.types import Utterance

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:sklearn")  # of classes that only the hypotheses have
LETTER = 0.11  # seconds that each letter of the corpus takes
TRAIN = TrainConfig(steps=60, batch_seconds=40.0, max_batch_size=16, learning_rate=1e-2, evaluate_every=30)
CLASSES = ProbeConfig(train=TRAIN, level="frame", fields=("letter",), features=FeatureConfig(), metric="accuracy")
NUMBERS = dataclasses.replace(CLASSES, kind="regression", fields=("place",), metric="r2")
Labels = NDArray[Any]


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> RunOptions:
    return RunOptions(cache_folder=str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def corpus(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Prepared from a table: where in an utterance which letter is (no pauses, no 'u'), and its second formant."""
    source = tmp_path_factory.mktemp("source")
    rows, segments = ["path,id,split,speaker"], ["id,start,end,letter,place"]
    for split in ("train", "dev", "test"):
        for utterance in open_corpus(tiny_corpus).utterances(split):
            rows.append(f"{utterance.path},{utterance.id},{split},{utterance.labels['speaker']}")
            for place, letter in enumerate(utterance.labels.get("text", "")):
                if letter not in " u":
                    times = f"{LETTER * (place + 1):.2f},{LETTER * (place + 2):.2f}"
                    segments.append(f"{utterance.id},{times},{letter},{(ord(letter) - 97) * 7 % 26}")
    put_list(source / "mine.csv", rows)
    put_list(source / "segments.csv", segments, bom=True, end="\r\n")
    folder = tmp_path_factory.mktemp("prepared")
    prepare_corpus("table", source, folder)
    return open_corpus(folder)


def slow_labels(entries: Sequence[dict[str, Any]], frames: int, rate: float) -> list[Any]:
    """For each frame the value of the span that its centre lies in, by the definition; None outside."""
    found = []
    for frame in range(frames):
        centre = (frame + 0.5) / rate
        inside = [e["value"] for e in entries if e["start"] - 1e-9 <= centre < e["end"] - 1e-9]
        found.append(inside[0] if inside else None)
    return found


def once(corpus: Corpus, config: ProbeConfig, folder: Path, options: RunOptions, upstream: str) -> RunResult:
    (result,) = run("probe", upstream=upstream, corpus=corpus, config=config, out=folder, options=options)
    return result


def folder_of(out: Path) -> Path:
    (found,) = out.glob("probe_*/*/seed0")
    return found


def table(folder: Path) -> list[list[str]]:
    lines = (folder / "predictions.tsv").read_text(encoding="utf-8").splitlines()
    return [line.split("\t") for line in lines]


def test_phones_are_told_as_well_as_scikit_learn_does_from_the_same_frames(
    corpus: Corpus, tmp_path: Path, options: RunOptions
) -> None:
    result = once(corpus, CLASSES, tmp_path, options, "fbank")
    upstream = load_upstream("fbank")
    rate = upstream.frame_rate
    sides: dict[str, tuple[list[Labels], list[Labels]]] = {}
    for split in ("train", "test"):
        frames, labels = [], []
        found = {u.id: states for u, (states,) in extract(upstream, corpus.utterances(split), layers=[0])}
        for utterance in corpus.utterances(split):
            states = found[utterance.id]
            wanted = slow_labels(utterance.labels.get("letter", []), len(states), rate)
            kept = [k for k, label in enumerate(wanted) if label is not None]
            frames.append(states[kept].numpy())
            labels.append(np.array([wanted[k] for k in kept], dtype=object))
        sides[split] = frames, labels
    x, y = (np.concatenate(part) for part in sides["train"])
    reference = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500, tol=1e-3)).fit(x, y)
    x, y = (np.concatenate(part) for part in sides["test"])
    accuracy = result.test.metrics["accuracy"]
    assert (accuracy.n, accuracy.unit) == (len(y), "frames")
    assert accuracy.value > 0.5  # of 17 letters
    assert accuracy.value > accuracy_score(y, reference.predict(x)) - 0.05

    rows = table(folder_of(tmp_path))
    assert rows[0] == ["utterance", "start", "end", "letter reference", "letter hypothesis", "probability"]
    counts = [round((float(row[2]) - float(row[1])) * rate) for row in rows[1:]]
    said, heard = (np.repeat([row[k] for row in rows[1:]], counts) for k in (3, 4))
    assert said.tolist() == y.tolist()
    assert accuracy.value == pytest.approx(accuracy_score(said, heard), abs=1e-12)
    assert result.test.metrics["uar"].value == pytest.approx(balanced_accuracy_score(said, heard), abs=1e-12)
    expected = f1_score(said, heard, average="macro", zero_division=0)
    assert result.test.metrics["macro f1"].value == pytest.approx(expected, abs=1e-12)
    assert accuracy.low is not None and accuracy.low < accuracy.value < (accuracy.high or 0.0)

    utterance = corpus.utterances("test")[0]
    answer = infer(folder_of(tmp_path), [utterance.path])[utterance.path]
    assert answer[0]["start"] == 0.0
    assert all(one["end"] == two["start"] for one, two in pairwise(answer))
    assert all(one["letter"]["label"] != two["letter"]["label"] for one, two in pairwise(answer))
    own = [row for row in rows[1:] if row[0] == utterance.id]
    right = 0
    for row in own:  # what the run said of the labelled frames, from features that were rounded to bfloat16
        middle = (float(row[1]) + float(row[2])) / 2
        right += row[4] == next(s["letter"]["label"] for s in answer if s["start"] <= middle < s["end"])
    assert right > 0.9 * len(own)


def test_numbers_of_frames_are_regressed_and_measured_as_scikit_learn_does(
    corpus: Corpus, tmp_path: Path, options: RunOptions
) -> None:
    config = dataclasses.replace(NUMBERS, head="mlp", group="speaker", overlap="warn")
    result = once(corpus, config, tmp_path, options, "hubert_tiny:random")
    rows = table(folder_of(tmp_path))
    assert rows[0] == ["utterance", "centre", "place reference", "place"]
    x, y = (np.array([float(row[k]) for row in rows[1:]]) for k in (2, 3))
    found = {name: value.value for name, value in result.test.metrics.items()}
    assert found["r2"] == pytest.approx(r2_score(x, y), abs=1e-5)
    assert found["rmse"] == pytest.approx(mean_squared_error(x, y) ** 0.5, abs=1e-5)
    assert found["mae"] == pytest.approx(mean_absolute_error(x, y), abs=1e-5)
    assert found["r2"] > 0.3 and result.metric == "r2" and result.higher_is_better
    wanted = []
    for utterance in corpus.utterances("test"):
        frames = sum(row[0] == utterance.id for row in rows)
        times = [float(row[1]) for row in rows if row[0] == utterance.id]
        labels = slow_labels(utterance.labels["place"], 200, 50.0)
        kept = [(k + 0.5) / 50.0 for k, label in enumerate(labels) if label is not None]
        assert times == pytest.approx(kept[:frames], abs=1e-4)
        assert len(kept) - frames <= 1  # the upstream has no padding, and so perhaps one frame less than there is audio
        wanted += [float(label) for label in labels if label is not None][:frames]
    assert x.tolist() == pytest.approx(wanted)
    path = corpus.utterances("test")[0].path
    answer = infer(folder_of(tmp_path), [path])[path]
    assert [row["start"] for row in answer] == pytest.approx([k / 50.0 for k in range(len(answer))])
    assert all(math.isfinite(row["place"]) for row in answer)


@pytest.mark.parametrize("rate", [50.0, 100.0, 16000 / 320 / 2, 49.9])
def test_a_frame_has_the_label_of_the_span_that_its_centre_lies_in(rate: float) -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        times = np.unique(rng.integers(0, 200, 12)) / 100.0  # of hundredths, many of which are centres
        entries = [
            {"start": begin, "end": end, "value": float(k)}
            for k, (begin, end) in enumerate(pairwise(times))
            if rng.random() < 0.7
        ]
        frames = int(rng.integers(1, 120))
        spans = lay_out([Span(e["start"], e["end"], "") for e in entries], [e["value"] for e in entries], "u")
        places, values = label_frames(spans, frames=frames, frame_rate=rate)
        expected = slow_labels(entries, frames, rate)
        assert places.tolist() == [k for k, label in enumerate(expected) if label is not None]
        assert values.tolist() == [label for label in expected if label is not None]


def test_runs_end_where_a_value_changes_or_a_place_is_missing() -> None:
    places, values = np.array([2, 3, 4, 7, 8, 9]), np.array([1.0, 1.0, 2.0, 2.0, 2.0, 1.0])
    assert find_runs(places, values) == [slice(0, 2), slice(2, 3), slice(3, 5), slice(5, 6)]
    assert find_runs(np.array([5])) == [slice(0, 1)]
    assert find_runs(np.array([], dtype=np.int64), np.array([])) == []


def test_spans_may_touch_but_not_overlap() -> None:
    spans = lay_out([Span(0.5, 1.0, "b"), Span(0.0, 0.505, "a")], [1.0, 0.0], "u")
    assert spans.values.tolist() == [0.0, 1.0]
    assert spans.ends.tolist() == [0.5, 1.0]  # rounded to hundredths, the first runs into the second
    with pytest.raises(ManifestError, match=r"'u' of corpus has a span from 0 s to 0\.6 s and another from 0\.5 s"):
        lay_out([Span(0.5, 1.0, "b"), Span(0.0, 0.6, "a")], [1.0, 0.0], "The utterance 'u' of corpus")


def small(balance: str = "none", **labels: list[tuple[float, float, Any]]) -> tuple[FrameProbe, TaskData]:
    """A probe and the data of utterances with these spans, all of which are in each split."""

    class Made:
        root = Path("made")

        def splits(self) -> list[str]:
            return ["train", "dev", "test"]

        def utterances(self, split: str) -> list[Utterance]:
            return [
                Utterance(name, name, 0.0, 2.0, {"tone": [{"start": b, "end": e, "value": v} for b, e, v in spans]})
                for name, spans in labels.items()
            ]

    task = make_probe(dataclasses.replace(CLASSES, fields=("tone",), balance=balance, standardise=False))  # type: ignore[arg-type]  # both are balances
    assert isinstance(task, FrameProbe)
    return task, task.prepare(Made())  # type: ignore[arg-type]  # it has all that is needed of a corpus


def head_of(task: FrameProbe, data: TaskData) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return task.build_head(4, 50.0, data)


@pytest.mark.parametrize("balance", ["none", "loss"])
def test_the_loss_is_the_sum_over_labelled_frames(balance: str) -> None:
    task, data = small(balance, u=[(0.1, 0.3, "a"), (0.3, 1.2, "b")], v=[(0.5, 0.7, "a"), (1.9, 1.904, "b")])
    head = head_of(task, data)
    features = torch.randn(2, 90, 4, generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([90, 31])
    out = task.loss(head, features, lengths, data.splits["train"], data, torch.Generator())
    seconds = {"a": 0.4, "b": 0.904}
    total, count = 0.0, 0
    for utterance, frames, length in zip(data.splits["train"], features, lengths.tolist(), strict=True):
        for frame, label in enumerate(slow_labels(utterance.labels["tone"], length, 50.0)):
            if label is None:
                continue
            scores = head.head(frames[frame][None], torch.ones(1))
            weight = 1.304 / (2 * seconds[label]) if balance == "loss" else 1.0
            total += weight * float(F.cross_entropy(scores, torch.tensor(["ab".index(label)])).detach())
            count += 1
    assert int(out.sample_size) == count == 10 + 45 + 6
    assert float(out.loss_sum.detach()) == pytest.approx(total, rel=1e-5)


def test_a_batch_without_a_labelled_frame_teaches_nothing_and_fails_not() -> None:
    task, data = small(u=[(0.1, 0.3, "a"), (0.3, 1.2, "b")], v=[(1.9, 1.904, "b")])
    head = head_of(task, data)
    utterances = [u for u in data.splits["train"] if u.id == "v"]
    out = task.loss(head, torch.ones(1, 100, 4), torch.tensor([100]), utterances, data, torch.Generator())
    out.loss_sum.backward()  # type: ignore[no-untyped-call]  # torch does not annotate it
    assert (int(out.sample_size), float(out.loss_sum.detach())) == (0, 0.0)
    assert not any(p.grad is not None and p.grad.any() for p in head.parameters())
    alone = dataclasses.replace(data, splits={"dev": utterances})
    with torch.no_grad():
        predictions = {"v": task.predict(head, torch.ones(1, 100, 4), torch.tensor([100]), utterances, data)[0]}
    with pytest.raises(ManifestError, match=r"No frame of 'dev' has its centre in a span with 'tone'.*level=segment"):
        task.evaluate(head, predictions, alone, "dev", Path())


@torch.no_grad()
def test_a_file_is_told_the_same_alone_and_padded_and_from_saved_state() -> None:
    task, data = small(u=[(0.1, 0.3, "a"), (0.3, 1.2, "b")])
    head = head_of(task, data).eval()
    features, lengths = torch.randn(3, 40, 4, generator=torch.Generator().manual_seed(2)), torch.tensor([40, 1, 17])
    utterances = [Utterance(str(k), f"{k}.wav") for k in range(3)]
    restored = task.restore(json.loads(json.dumps(task.state(data))))
    together = task.predict(head, features, lengths, utterances, restored)
    for row, length in enumerate(lengths.tolist()):
        (alone,) = task.predict(head, features[row : row + 1, :length], lengths[row : row + 1], utterances[:1], data)
        assert alone.shape == (length, 2)
        np.testing.assert_allclose(alone, together[row], atol=1e-6)
    answer = task.infer(head, {"1": features[1, :1]}, utterances[1:2], restored, Path())
    ((span,),) = answer.values()
    assert (span["start"], span["end"]) == (0.0, 0.02) and span["tone"]["label"] in "ab"


def test_what_does_not_fit_is_named(corpus: Corpus, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ManifestError, match="one class of 'tone' in 'train': a"):
        small(u=[(0.1, 0.3, "a")])
    with pytest.raises(ManifestError, match=r"The utterance 'u' of made has a span from 0\.1 s to 0\.4 s and another"):
        small(u=[(0.1, 0.4, "a"), (0.2, 0.5, "b")])
    with pytest.raises(ManifestError, match=r"no utterance in 'train' with spans of 'mood': its labels are .*'letter'"):
        make_probe(dataclasses.replace(CLASSES, fields=("mood",))).prepare(corpus)
    with pytest.raises(ManifestError, match=r"has '[a-z]' as 'letter', but a regression needs a finite number"):
        make_probe(dataclasses.replace(NUMBERS, fields=("letter",))).prepare(corpus)

    class Odd(Corpus):
        def utterances(self, split: str) -> list[Utterance]:
            found = super().utterances(split)
            if split == "train":
                return found
            entry = {"start": 0.0, "end": 0.05, "value": "?"}
            return [dataclasses.replace(u, labels={"letter": [entry, *u.labels["letter"]]}) for u in found]

    odd = Odd(**vars(corpus))
    with pytest.raises(ManifestError, match=r"has 16 spans in 'dev' of classes without a training example: '\?'"):
        make_probe(CLASSES).prepare(odd)
    data = make_probe(dataclasses.replace(CLASSES, leave_out_unknown=True)).prepare(odd)
    assert "16 spans of classes that training lacks are left out" in caplog.text
    spans: Spans = data.extra["spans"][data.splits["dev"][0].id]
    assert len(spans.values) == len(corpus.utterances("dev")[0].labels["letter"])


def test_the_limits_count_utterances(corpus: Corpus) -> None:
    config = dataclasses.replace(CLASSES, max_train_utterances=9, max_eval_utterances=3, leave_out_unknown=True)
    data = make_probe(config).prepare(corpus)
    assert [len(data.splits[split]) for split in ("train", "dev", "test")] == [9, 3, 3]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (["head=attentive"], "`level=frame` tells each by itself: take `head=linear` or `head=mlp`"),
        (["features.pooling=mean"], "`level=frame` needs the frames of whole utterances"),
        (["balance=draws"], "utterances are drawn with all their frames"),
        (["kind=regression", "metric=srcc"], "of frames must be one of mse, rmse, mae, r2, ccc, lcc, but is srcc"),
    ],
)
def test_settings_that_frames_can_not_have_are_refused(settings: list[str], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        load_config(CLASSES, overrides=settings)
