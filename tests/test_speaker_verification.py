"""Speaker verification: x-vector, AM-softmax, trials and scores."""

import math
from dataclasses import replace
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from downstreams.speaker_verification.config import PRESETS, SpeakerVerificationConfig
from downstreams.speaker_verification.data import ACROSS, WITHIN, check_pairs, make_trials, read_splits, speakers_of
from downstreams.speaker_verification.head import XVector, lengthen
from downstreams.speaker_verification.task import TASK
from speechssl.audio import read_audio
from speechssl.augment.speed import change_speed
from speechssl.data.corpus import open_corpus
from speechssl.errors import ConfigError, ManifestError, SpeechsslError
from speechssl.inference import infer
from speechssl.jobs import RunOptions
from speechssl.metric.detection import equal_error_rate
from speechssl.runner import run
from speechssl.task import TaskData, TrainConfig
from speechssl.types import Utterance

SMALL = SpeakerVerificationConfig(
    train=TrainConfig(steps=6, batch_seconds=30.0, learning_rate=1e-3, evaluate_every=3, max_duration=1.0),
    project_size=8,
    pooled_size=12,
    embedding_size=6,
    frame_rate=50.0,
)


def small_head(frame_rate: float = 50.0) -> XVector:
    with torch.random.fork_rng():
        torch.random.manual_seed(0)
        return XVector(5, 4, frame_rate=frame_rate, config=SMALL)


def features(batch: int, frames: int) -> torch.Tensor:
    return torch.randn(batch, frames, 5, generator=torch.Generator().manual_seed(1))


def test_the_default_preset_is_superbs() -> None:
    config = PRESETS["speaker_verification"]
    head = XVector(768, 1211, frame_rate=50.0, config=config)
    delays = (5 + 3 + 3 + 1) * 512 * 512 + 4 * 512 + 512 * 1500 + 1500
    utterance = 3000 * 512 + 512 + 512 * 512 + 512
    assert sum(p.numel() for p in head.parameters()) == 769 * 512 + delays + utterance + 512 * 1211
    assert (config.scale, config.margin, config.train.optimizer, config.train.learning_rate) == (30, 0.4, "adamw", 1e-4)


def test_time_delay_layers_are_those_of_the_unfolded_reference() -> None:
    head = small_head()
    x = features(2, 30)
    states = head.project(x)
    for layer, (context, dilation) in zip(head.delays, [(5, 1), (3, 2), (3, 3), (1, 1), (1, 1)], strict=True):
        weight, bias = layer.state_dict()["weight"], layer.state_dict()["bias"]
        frames = states.size(1) - (context - 1) * dilation
        window = [states[:, k * dilation : k * dilation + frames] for k in range(context)]
        kernel = weight.permute(0, 2, 1).reshape(weight.size(0), -1)
        states = F.relu(torch.cat(window, dim=2) @ kernel.T + bias)
    pooled = torch.cat((states.mean(dim=1), states.std(dim=1)), dim=1)
    expected = F.relu(head.first(pooled))
    torch.testing.assert_close(head.embed(x, torch.tensor([30, 30])), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("frame_rate", [50.0, 100.0])
def test_an_embedding_does_not_depend_on_padding_or_neighbours(frame_rate: float) -> None:
    head = small_head(frame_rate).eval()
    lengths = torch.tensor([50, 33, 4])
    x = features(3, 50) * (torch.arange(50)[None, :, None] < lengths[:, None, None])
    together = head.embed(x, lengths)
    for row, length in enumerate(lengths.tolist()):
        alone = head.embed(x[row : row + 1, :length], lengths[row : row + 1])
        torch.testing.assert_close(alone[0], together[row], atol=1e-5, rtol=0)


def test_short_utterances_are_repeated_from_their_beginning() -> None:
    x = torch.arange(1.0, 4.0).reshape(1, 3, 1)
    longer, lengths = lengthen(x, torch.tensor([3]), 8)
    assert longer.flatten().tolist() == [1, 2, 3, 1, 2, 3, 1, 2]
    assert lengths.tolist() == [8]
    padded = torch.cat((torch.cat((x, torch.zeros(1, 2, 1)), dim=1), torch.ones(1, 5, 1)))
    both, lengths = lengthen(padded, torch.tensor([3, 5]), 4)
    assert both[0].flatten().tolist()[:4] == [1, 2, 3, 1]
    assert both[1].flatten().tolist() == [1, 1, 1, 1, 1]
    assert lengths.tolist() == [4, 5]


def test_the_loss_is_additive_margin_softmax() -> None:
    head = small_head()
    x, lengths, speakers = features(3, 40), torch.tensor([40, 40, 30]), torch.tensor([0, 3, 1])
    out = head.loss(x, lengths, speakers)
    states = F.normalize(F.relu(head.second(head.embed(x, lengths))), dim=1)
    cosine = (states @ F.normalize(head.classes, dim=0)).double()
    expected = 0.0
    for row, speaker in enumerate(speakers.tolist()):
        own = torch.exp(30 * (cosine[row, speaker] - 0.4))
        others = sum(torch.exp(30 * cosine[row, k]) for k in range(4) if k != speaker)
        expected -= float(torch.log(own / (own + others)).detach())
    assert float(out.loss_sum) == pytest.approx(expected, abs=1e-3)
    assert int(out.sample_size) == 3


def people(*names: str, each: int = 4) -> list[Utterance]:
    """Names are 'language-speaker'."""
    return [
        Utterance(f"{n}-{k}", "p", labels={"language": n.split("-")[0], "speaker": n.split("-")[1]})
        for n in names
        for k in range(each)
    ]


def test_all_pairs_are_trials_and_kinds_tell_language_from_speaker() -> None:
    utterances = people("aa-x", "aa-y", "bb-x", "bb-z", "cc-w")
    trials = make_trials(utterances, max_trials=10**6)
    assert len(trials) == len(list(combinations(utterances, 2)))
    assert len({frozenset((t.first.id, t.second.id)) for t in trials}) == len(trials)
    for trial in trials:
        languages = {trial.first.labels["language"], trial.second.labels["language"]}
        assert trial.target == (trial.first.labels["speaker"] == trial.second.labels["speaker"])
        assert (trial.kind == WITHIN) == (len(languages) == 1 and languages != {"cc"})
    across = [t for t in trials if t.kind == ACROSS and t.target]
    assert {t.first.labels["speaker"] for t in across} == {"x", "w"}


def test_trials_are_drawn_evenly_and_alike_whatever_the_order() -> None:
    utterances = people("aa-x", "aa-y", each=10)
    drawn = make_trials(utterances, max_trials=30)
    again = make_trials(utterances[::-1], max_trials=30)
    assert [(t.first.id, t.second.id) for t in drawn] == [(t.first.id, t.second.id) for t in again]
    assert sum(t.target for t in drawn) == 30
    assert len(drawn) == 60


def test_a_split_without_non_targets_is_refused() -> None:
    with pytest.raises(ManifestError, match="two speakers"):
        make_trials(people("aa-x"), max_trials=10)


def test_what_can_make_no_trials_is_refused_before_any_is_made() -> None:
    rng = np.random.default_rng(0)
    outcomes = []
    for _ in range(300):
        said = rng.integers(0, 5, size=int(rng.integers(1, 6)))  # of five voices in up to three languages
        names = [("aa-x", "aa-y", "bb-z", "bb-x", "cc-w")[k] for k in said]
        utterances = [replace(u, id=f"{u.id}-{n}") for n, name in enumerate(names) for u in people(name, each=1)]
        refused = []
        for attempt in (partial(check_pairs, where="here"), partial(make_trials, max_trials=100)):
            try:
                attempt(utterances)
            except ManifestError:
                refused.append(True)
            else:
                refused.append(False)
        assert refused[0] == refused[1]
        outcomes.append(refused[0])
    assert 30 < sum(outcomes) < 270


def test_splits_share_no_speaker(tiny_corpus: Path) -> None:
    corpus = open_corpus(tiny_corpus)
    splits = read_splits(corpus, SMALL)
    names = {split: set(speakers_of(part)) for split, part in splits.items()}
    assert not names["train"] & names["dev"] and not names["train"] & names["test"] and not names["dev"] & names["test"]
    some = read_splits(corpus, SpeakerVerificationConfig(max_train_utterances=3, max_eval_utterances=2))
    assert len(some["train"]) == 3 * len(speakers_of(some["train"]))
    with pytest.raises(ManifestError, match="at least two"):
        read_splits(corpus, SpeakerVerificationConfig(languages=("zz",)))


def test_each_speed_is_a_training_speaker_of_its_own(tiny_corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = open_corpus(tiny_corpus)
    plain, both = read_splits(corpus, SMALL), read_splits(corpus, replace(SMALL, speeds=(0.9, 1.1)))
    assert both["dev"] == plain["dev"] and both["test"] == plain["test"]
    size, names = len(plain["train"]), speakers_of(plain["train"])
    assert both["train"][:size] == plain["train"]
    assert set(speakers_of(both["train"])) == {*names, *(f"{n}@{v}" for n in names for v in ("0.9", "1.1"))}
    slow = both["train"][size]
    original = read_audio(plain["train"][0].path, sample_rate=16_000)
    copy = read_audio(slow.path, sample_rate=16_000)
    assert slow.labels["text"] == plain["train"][0].labels["text"]
    assert slow.duration == pytest.approx(len(copy) / 16_000, abs=1e-3)
    torch.testing.assert_close(copy, change_speed(original, 0.9).clamp(-1, 1), rtol=0, atol=2**-15)
    monkeypatch.setattr("downstreams.speaker_verification.perturb.write_flac", None)  # nothing is written twice
    assert read_splits(corpus, replace(SMALL, speeds=(0.9, 1.1)))["train"] == both["train"]


def test_speed_changes_duration_and_pitch_alike() -> None:
    tone = torch.sin(2 * torch.pi * 400 * torch.arange(16_000) / 16_000)
    for speed in (0.9, 1.1, 1.25):
        changed = change_speed(tone, speed)
        assert len(changed) == math.ceil(16_000 / speed)
        peak = torch.fft.rfft(changed, n=160_000).abs().argmax() / 10  # Hz
        assert float(peak) == pytest.approx(400 * speed, abs=1.0)
    for wrong in (0.3, 3.0, 0.905, float("nan")):
        with pytest.raises(ConfigError, match="speed must lie"):
            change_speed(tone, wrong)


def test_evaluation_is_the_rate_of_the_cosines(tmp_path: Path) -> None:
    utterances = people("aa-x", "aa-y", "bb-z", "bb-w", each=8)
    task = TASK(SMALL)
    data = TaskData({"dev": utterances, "test": utterances}, {"speakers": ("x",)})
    rng = np.random.default_rng(0)
    centres = {name: rng.normal(size=6) for name in "xyzw"}
    raw = {u.id: centres[u.labels["speaker"]] + rng.normal(size=6) for u in utterances}
    embeddings = {k: torch.tensor(v / np.linalg.norm(v)) for k, v in raw.items()}
    found = task.evaluate(torch.nn.Identity(), embeddings, data, "test", tmp_path)
    pairs = [p for p in combinations(utterances, 2) if p[0].labels["language"] == p[1].labels["language"]]
    scores = [
        (float(embeddings[a.id] @ embeddings[b.id]), a.labels["speaker"] == b.labels["speaker"]) for a, b in pairs
    ]
    rate, _ = equal_error_rate([s for s, same in scores if same], [s for s, same in scores if not same])
    eer = found.metrics["eer"]
    assert eer.value == pytest.approx(rate, abs=1e-9)
    assert eer.low is not None and eer.high is not None and eer.low <= rate <= eer.high
    assert set(found.breakdown["eer by language"]) == {"aa", "bb"}
    assert set(found.breakdown["eer by trial kind"]) == {WITHIN, "all"}
    rows = [line.split("\t") for line in (tmp_path / "scores.tsv").read_text().splitlines()]
    assert rows[0] == ["trial", "label", "score", "kind"]
    assert len(rows) - 1 == len(list(combinations(utterances, 2)))
    dev = task.evaluate(torch.nn.Identity(), embeddings, data, "dev", tmp_path / "none")
    assert dev.metrics["eer"].value == eer.value
    assert not (tmp_path / "none").exists()


def test_a_run_trains_and_infer_compares_files(tiny_corpus: Path, tmp_path: Path) -> None:
    options = RunOptions(cache_folder=str(tmp_path / "cache"))
    (result,) = run(
        "speaker_verification", upstream="fbank", corpus=tiny_corpus, config=SMALL, out=tmp_path, options=options
    )
    assert (result.metric, result.higher_is_better) == ("eer", False)
    assert set(result.test.metrics) == {"eer", "min dcf 0.01", "min dcf 0.05"}
    folder = tmp_path / "speaker_verification/fbank/seed0"
    files = sorted((tiny_corpus / "audio").iterdir())[:3]
    found = infer(folder, files)
    matrix = np.array(found["cosine"])
    assert found["files"] == [str(f) for f in files]
    np.testing.assert_allclose(np.diag(matrix), 1.0, atol=1e-3)
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-3)
    with pytest.raises(SpeechsslError, match="at least two"):
        infer(folder, files[:1])
