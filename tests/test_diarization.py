"""Speaker diarization: pieces, labels, loss, the decision on dev, and runs."""

from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import median_filter
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from downstreams.diarization.config import HEADS, PRESETS, DiarizationConfig
from downstreams.diarization.data import activity_of, cut, read_splits
from downstreams.diarization.decision import Decision, choose, fill_up, frame_errors, measure
from downstreams.diarization.head import DiarizationHead, permutation_free_loss
from downstreams.diarization.task import TASK
from speechssl.audio import read_audio
from speechssl.config import load_config
from speechssl.data.corpus import open_corpus
from speechssl.errors import ConfigError, ManifestError
from speechssl.inference import infer
from speechssl.jobs import RunOptions
from speechssl.loss.permutation import best_permutation
from speechssl.metric.diarization import diarization_errors
from speechssl.metric.segments import Segment, read_rttm
from speechssl.mixing.simulate import SimulationConfig, simulate
from speechssl.runner import run
from speechssl.separation.stft import count_frames, stft
from speechssl.task import TrainConfig
from speechssl.types import Utterance

MIXED = SimulationConfig(train=6, dev=3, test=3, duration=2.5)
SMALL = DiarizationConfig(
    train=TrainConfig(steps=6, batch_seconds=30.0, learning_rate=1e-2, evaluate_every=3),
    hidden_size=8,
    chunk=2.0,
    simulate=MIXED,
)


def recording(segments: list[list[object]], duration: float = 10.0, name: str = "r") -> Utterance:
    return Utterance(name, "r.wav", 0.0, duration, {"segments": segments})


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small_head(kind: str, size: int = 5) -> DiarizationHead:
    with torch.random.fork_rng():
        torch.random.manual_seed(0)
        return DiarizationHead(size, frame_rate=50.0, config=replace(SMALL, head=kind))


def test_the_default_preset_is_superbs() -> None:
    config = PRESETS["diarization"]
    head = DiarizationHead(768, frame_rate=50.0, config=config)
    assert sum(p.numel() for p in head.parameters()) == 4 * 512 * (768 + 512 + 2) + 513 * 2
    train = config.train
    assert (train.steps, train.learning_rate, train.max_batch_size, train.optimizer) == (30_000, 1e-4, 32, "adam")
    assert (config.thresholds, config.medians) == ((0.3, 0.4, 0.5, 0.6, 0.7), (1, 11))


@pytest.mark.parametrize("number", [1, 2, 3, 6])
def test_the_best_order_is_that_of_all_orders(number: int) -> None:
    costs = torch.randn(7, number, number, generator=generator(), dtype=torch.float64)
    least, order = best_permutation(costs)
    for row in range(7):
        every = {p: sum(float(costs[row, i, j]) for i, j in enumerate(p)) for p in permutations(range(number))}
        expected = min(every, key=every.__getitem__)
        assert tuple(order[row].tolist()) == expected
        assert float(least[row]) == pytest.approx(every[expected], abs=1e-12)


def test_the_loss_is_that_of_the_definition() -> None:
    logits = torch.randn(4, 9, 3, generator=generator(), requires_grad=True)
    labels = (torch.rand(4, 9, 3, generator=generator(1)) < 0.4).float()
    lengths = torch.tensor([9, 4, 1, 7])
    found = permutation_free_loss(logits, labels, lengths)
    expected = []
    for row, length in enumerate(lengths.tolist()):
        x, y = logits[row, :length], labels[row, :length]
        orders = [F.binary_cross_entropy_with_logits(x, y[:, list(p)]) * length for p in permutations(range(3))]
        expected.append(torch.stack(orders).min())
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-5, rtol=0)
    ours = torch.autograd.grad(found.sum(), logits, retain_graph=True)[0]
    theirs = torch.autograd.grad(torch.stack(expected).sum(), logits)[0]
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


def test_the_lstm_head_is_torchs() -> None:
    head = small_head("lstm")
    features = torch.randn(2, 11, 5, generator=generator())
    reference = torch.nn.LSTM(5, 8, batch_first=True)
    reference.load_state_dict({k.removeprefix("ahead."): v for k, v in head.state_dict().items() if "ahead" in k})
    expected = reference(features)[0] @ head.output.weight.T + head.output.bias
    torch.testing.assert_close(head(features, torch.tensor([11, 11])), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", HEADS)
def test_a_recording_scores_the_same_alone_and_padded(kind: str) -> None:
    head = small_head(kind)
    features, lengths = torch.randn(3, 20, 5, generator=generator()), torch.tensor([20, 9, 1])
    together = head(features, lengths)
    for row, length in enumerate(lengths.tolist()):
        alone = head(features[row : row + 1, :length], lengths[row : row + 1])
        torch.testing.assert_close(alone[0], together[row, :length], atol=1e-5, rtol=0)


def test_frames_are_labelled_with_who_speaks_in_them() -> None:
    utterance = recording([["b", 0.0, 0.10], ["a", 0.05, 0.22], ["b", 0.30, 0.304]])
    labels = activity_of(utterance, frames=12, frame_rate=50.0, num_speakers=3)
    expected = np.zeros((12, 3))
    expected[2:11, 0] = 1.0  # 'a': 0.05 s is frame 2.5, which rounds to the even 2
    expected[0:5, 1] = 1.0
    np.testing.assert_array_equal(labels.numpy(), expected)


def test_pieces_hold_all_audio_and_all_speech_of_a_recording() -> None:
    whole = recording([["a", 0.5, 27.0], ["b", 11.0, 12.0], ["b", 19.0, 30.5]], 30.5)
    pieces = cut(whole, 10.0)
    assert [(p.start, p.duration) for p in pieces] == [(0.0, 10.0), (10.0, 10.0), (20.0, 10.5)]
    joined = torch.cat([activity_of(p, frames=round(p.duration * 10), frame_rate=10.0, num_speakers=2) for p in pieces])
    # The middle piece lies within a segment of 'a', which S3PRL would leave out of its labels.
    one = activity_of(whole, frames=305, frame_rate=10.0, num_speakers=2)
    alone = joined[:100].flip(1)  # only 'a' speaks in the first piece, so that its column is the first there too
    torch.testing.assert_close(joined[100:], one[100:], atol=0, rtol=0)
    torch.testing.assert_close(alone[:, 1], one[:100, 0], atol=0, rtol=0)
    assert cut(whole, 40.0) == [whole]


def test_a_last_frame_that_the_upstream_lacks_repeats_the_one_before() -> None:
    activity = np.arange(98, dtype=np.float32).reshape(49, 2)
    filled = fill_up(activity, duration=1.0, frame_rate=50.0)
    assert filled.shape == (50, 2)
    np.testing.assert_array_equal(filled[49], filled[48])
    assert fill_up(activity, duration=0.5, frame_rate=50.0).shape == (25, 2)


def test_frame_errors_are_those_of_counting() -> None:
    rng = np.random.default_rng(0)
    reference, hypotheses = rng.random((40, 2)) < 0.5, rng.random((6, 40, 2)) < 0.5
    for found, hypothesis in zip(frame_errors(reference, hypotheses), hypotheses, strict=True):
        orders = []
        for p in permutations(range(2)):
            wrong = 0
            for frame in range(40):
                spoken, guessed = reference[frame].sum(), hypothesis[frame].sum()
                right = (reference[frame] & hypothesis[frame, list(p)]).sum()
                wrong += max(spoken - guessed, 0) + max(guessed - spoken, 0) + min(spoken, guessed) - right
            orders.append(wrong)
        assert found == min(orders)


def test_dev_chooses_the_decision_with_the_least_errors() -> None:
    rng = np.random.default_rng(0)
    utterances, activities = [], {}
    for number in range(4):
        utterance = recording([["a", 0.0, 4.0], ["b", 3.0, 9.0]], 10.0, f"r{number}")
        truth = activity_of(utterance, frames=500, frame_rate=50.0, num_speakers=2).numpy()
        # Speech has 0.65 on average, silence 0.45, and both have outliers: 0.6 with a filter is best.
        activities[utterance.id] = (0.45 + 0.2 * truth + rng.normal(0, 0.06, truth.shape)).astype(np.float32)
        utterances.append(utterance)
    config = PRESETS["diarization"]
    chosen = choose(utterances, activities, thresholds=config.thresholds, medians=config.medians, frame_rate=50.0)
    rates = {}
    for threshold in config.thresholds:
        for median in config.medians:
            errors, _ = measure(utterances, activities, Decision(threshold, median), frame_rate=50.0)
            rates[threshold, median] = sum(errors.errors) / sum(errors.scored)
    assert (chosen.threshold, chosen.median) == min(rates, key=rates.__getitem__)
    assert chosen.median == 11


@pytest.mark.parametrize("median", [1, 3, 11])
def test_the_quick_filter_is_a_median_filter(median: int) -> None:
    from downstreams.diarization.decision import _decide

    activity = np.random.default_rng(0).random((60, 2)).astype(np.float32)
    expected = median_filter((activity > 0.4).astype(np.int8), size=(median, 1), mode="constant", cval=0)
    np.testing.assert_array_equal(_decide(activity, Decision(0.4, median)), expected > 0)


def test_a_run_is_chosen_on_dev_and_names_segments_of_a_file(tiny_corpus: Path, tmp_path: Path) -> None:
    options = RunOptions(cache_folder=str(tmp_path / "cache"))
    (result,) = run("diarization", upstream="fbank", corpus=tiny_corpus, config=SMALL, out=tmp_path, options=options)
    (again,) = run(
        "diarization", upstream="fbank", corpus=tiny_corpus, config=SMALL, out=tmp_path / "b", options=options
    )
    assert result.test.metrics == again.test.metrics
    assert set(result.test.metrics) == {"der", "missed", "false_alarm", "confusion", "jer"}
    folder = tmp_path / "diarization" / "fbank" / "seed0"
    names = {segment.recording for segment in read_rttm(folder / "reference.rttm")}
    assert {s.recording for s in read_rttm(folder / "hypothesis.rttm")} <= names
    assert len(names) == MIXED.test
    test = read_splits(open_corpus(tiny_corpus), SMALL)["test"]
    answer = infer(folder, [test[0].path], out=tmp_path / "answer")
    hypothesis = [s for s in read_rttm(folder / "hypothesis.rttm") if s.recording == test[0].id]
    found = [Segment(test[0].id, s["start"], s["end"], s["speaker"]) for s in answer[test[0].path]]
    # The run read its features from the cache, in bfloat16: a frame may fall on the other side of the threshold.
    assert diarization_errors(hypothesis, found).rate().value < 0.02
    assert max(s.end for s in found) == pytest.approx(max(s.end for s in hypothesis), abs=0.0201)


def test_evaluation_does_not_depend_on_the_batch(tiny_corpus: Path) -> None:
    task = TASK(SMALL)
    data = task.prepare(open_corpus(tiny_corpus))
    utterances = data.splits["test"]
    head = small_head("blstm").eval()
    sizes = [int(u.duration * 50) - 1 for u in utterances]
    features = [torch.randn(n, 5, generator=generator(n)) for n in sizes]
    padded = pad_sequence(features, batch_first=True)
    with torch.no_grad():
        together = task.predict(head, padded, torch.tensor(sizes), utterances, data)
        for row, (one, utterance) in enumerate(zip(features, utterances, strict=True)):
            (alone,) = task.predict(head, one[None], torch.tensor([len(one)]), [utterance], data)
            np.testing.assert_allclose(alone, together[row], atol=1e-5)


def test_a_head_that_is_trained_on_few_conversations_tells_who_speaks(tiny_corpus: Path) -> None:
    """The whole way from labels to segments: an error in it would leave more than a little unexplained."""
    task = TASK(replace(SMALL, hidden_size=32, chunk=40.0, simulate=replace(MIXED, train=2)))
    data = task.prepare(open_corpus(tiny_corpus))
    utterances = data.splits["train"]
    waveforms = [read_audio(u.path) for u in utterances]
    sizes = torch.tensor([len(w) for w in waveforms])
    spectra = stft(pad_sequence(waveforms, batch_first=True), sizes, n_fft=512, win_length=512, hop=320)
    features, lengths = (1000 * spectra.abs()).log1p(), count_frames(sizes, 320)
    with torch.random.fork_rng():
        torch.random.manual_seed(0)
        head = task.build_head(features.size(2), 50.0, data)
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        out = task.loss(head, features, lengths, utterances, data, generator())
        (out.loss_sum / out.sample_size).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        found = task.predict(head.eval(), features, lengths, utterances, data)
    activities = {u.id: activity for u, activity in zip(utterances, found, strict=True)}
    errors, _ = measure(utterances, activities, Decision(0.5, 1), frame_rate=50.0)
    assert errors.rate().value < 0.1


def test_conversations_are_labelled_where_they_are_loud(tiny_corpus: Path) -> None:
    corpus = open_corpus(tiny_corpus)
    made = simulate(corpus, "conversations", MIXED)
    assert [len(made[split]) for split in ("train", "dev", "test")] == [6, 3, 3]
    for utterance in made["train"]:
        segments = utterance.labels["segments"]
        assert {s for s, _, _ in segments} == set(utterance.labels["speakers"])
        assert max(e for _, _, e in segments) == pytest.approx(utterance.duration, abs=1e-6)
    speakers = [{s for u in made[split] for s in u.labels["speakers"]} for split in ("train", "dev", "test")]
    assert not (speakers[0] & speakers[1] or speakers[0] & speakers[2] or speakers[1] & speakers[2])
    assert simulate(corpus, "conversations", MIXED) == made


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ({}, "without the label `segments`"),
        ({"segments": [["a", 1.0]]}, "must be [speaker, begin, end]"),
        ({"segments": [["a", 2.0, 1.0]]}, "must be [speaker, begin, end]"),
        ({"segments": [["a", 0, 1], ["a", 3.5, 4]]}, "begins after its 3 s"),
        ({"segments": [["a", 0, 1], ["b", 0, 1], ["c", 0, 1]]}, "`num_speakers`"),
        ({"segments": [["a b", 0, 1]]}, "one word"),
    ],
)
def test_labels_that_cannot_be_used_are_named(tiny_corpus: Path, labels: dict[str, object], said: str) -> None:
    class Odd:
        root = tiny_corpus

        def utterances(self, split: str) -> list[Utterance]:
            return [Utterance("odd", "odd.wav", 0.0, 3.0, labels)]

    with pytest.raises(ManifestError, match="recording 'odd'") as caught:
        read_splits(Odd(), replace(SMALL, simulate=None))  # type: ignore[arg-type]
    assert said in str(caught.value)


def test_a_split_in_which_nobody_speaks_is_refused(tiny_corpus: Path) -> None:
    class Silent:
        root = tiny_corpus

        def utterances(self, split: str) -> list[Utterance]:
            return [recording([] if split == "dev" else [["a", 0.0, 1.0]], name=split)]

    with pytest.raises(ManifestError, match="Nobody speaks in 'dev'"):
        TASK(replace(SMALL, simulate=None)).prepare(Silent())  # type: ignore[arg-type]


def test_settings_that_would_part_frames_from_labels_are_refused() -> None:
    for override in ("train.max_duration=2.0", "features.pooling=mean", "medians=[2]", "chunk=0.0"):
        with pytest.raises(ConfigError):
            load_config(PRESETS["diarization_demo"], overrides=[override])


def test_silence_throughout_costs_only_what_is_missed() -> None:
    utterances = [recording([["a", 1.0, 3.0]]), recording([], name="empty")]
    activities = {u.id: np.zeros((500, 2), np.float32) for u in utterances}
    errors, found = measure(utterances, activities, Decision(0.5, 1), frame_rate=50.0)
    assert found == []
    assert errors.metrics()["der"].value == errors.metrics()["missed"].value == 1.0
