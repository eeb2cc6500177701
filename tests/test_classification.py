"""Tasks with one label per utterance, or one per field: data, heads, balance, results, and inference."""

import dataclasses
import logging
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from downstreams.emotion_recognition.config import EmotionRecognitionConfig
from speechssl.classification.config import ClassificationConfig
from speechssl.classification.data import label_of, make_classes, read_splits
from speechssl.classification.task import Classification
from speechssl.cli import main
from speechssl.data.corpus import open_corpus
from speechssl.errors import ConfigError, ManifestError, SpeechsslError, UnknownNameError
from speechssl.fitting import Fit
from speechssl.head.utterance import build_utterance_head
from speechssl.inference import infer
from speechssl.jobs import RunOptions, build_task
from speechssl.report.collect import collect
from speechssl.report.provenance import mixed_configs
from speechssl.report.summary import group_runs
from speechssl.report.table import main_table
from speechssl.result import RunResult, load_result
from speechssl.runner import resolve_config, run
from speechssl.task import FeatureConfig, TaskData, TrainConfig
from speechssl.types import Utterance

TASKS = (
    "keyword_spotting",
    "speaker_identification",
    "intent_classification",
    "emotion_recognition",
    "language_identification",
)
LANGUAGES = ClassificationConfig(
    train=TrainConfig(steps=60, batch_seconds=40.0, max_batch_size=16, learning_rate=3e-3, evaluate_every=20),
    fields=("language",),
)


def once(corpus: Path, folder: Path, config: ClassificationConfig, **changes: Any) -> RunResult:
    arguments: dict[str, Any] = {
        "upstream": "hubert_tiny:random",
        "corpus": corpus,
        "config": config,
        "out": folder / "exp",
    } | changes
    (result,) = run("language_identification", options=RunOptions(cache_folder=str(folder / "cache")), **arguments)
    return result


def frames(lengths: list[int], size: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(len(lengths), max(lengths), size, generator=generator)
    for row, length in enumerate(lengths):
        features[row, length:] = 0
    return features, torch.tensor(lengths)


@pytest.mark.parametrize("task", TASKS)
def test_the_tasks_have_the_head_and_the_optimisation_of_superb(task: str) -> None:
    _, config = resolve_config(task)
    head = build_utterance_head(config.head, 768, 12, hidden_size=config.hidden_size, dropout=config.dropout)
    assert sum(p.numel() for p in head.parameters()) == 768 * 256 + 256 + 256 * 12 + 12
    assert config.train.learning_rate == 1e-4
    assert config.train.max_batch_size == 32
    assert config.train.optimizer == "adam"
    assert config.features.pooling == "mean"


def test_the_mean_of_the_features_gives_the_scores_of_the_frames() -> None:
    """As SUPERB computes them: linear over frames, mean over valid ones, linear; to rounding."""
    features, lengths = frames([7, 30, 1], 20)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = build_utterance_head("linear", 20, 5, hidden_size=16, dropout=0.0).eval()
    project, output = head.project[0], head.output  # type: ignore[index, union-attr]
    slow = torch.stack([output(project(x[:n]).mean(dim=0)) for x, n in zip(features, lengths, strict=True)])
    torch.testing.assert_close(head(features, lengths), slow, atol=1e-6, rtol=1e-5)
    pooled = torch.stack([x[:n].mean(dim=0) for x, n in zip(features, lengths, strict=True)])
    torch.testing.assert_close(head(pooled, lengths), slow, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", ["linear", "mlp", "attentive"])
def test_padding_does_not_change_the_scores(kind: Any) -> None:
    features, lengths = frames([7, 30, 12], 20)
    head = build_utterance_head(kind, 20, 5, hidden_size=16, dropout=0.5).eval()
    together = head(features, lengths)
    for row, length in enumerate(lengths.tolist()):
        alone = head(features[row : row + 1, :length], lengths[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-6, rtol=1e-5)


def test_attentive_statistics_are_the_weighted_mean_and_deviation() -> None:
    features, lengths = frames([6, 4], 8)
    head = build_utterance_head("attentive", 8, 3, hidden_size=6, dropout=0.0).eval()
    for row, length in enumerate(lengths.tolist()):
        states = F.relu(head.project(features[row, :length]))  # type: ignore[operator]
        weights = torch.softmax(head.attention(states)[:, 0], dim=0)  # type: ignore[operator]
        mean = sum(w * s for w, s in zip(weights, states, strict=True))
        variance = sum(w * (s - mean) ** 2 for w, s in zip(weights, states, strict=True))
        pooled = torch.cat((mean, variance.clamp(min=1e-9).sqrt()))  # type: ignore[union-attr]
        torch.testing.assert_close(head(features, lengths)[row], head.output(pooled), atol=1e-5, rtol=1e-4)  # type: ignore[operator]


def test_a_batch_of_one_utterance_can_be_trained_on() -> None:
    features, lengths = frames([9], 8)
    head = build_utterance_head("mlp", 8, 3, hidden_size=6, dropout=0.1).train()
    assert head(features, lengths).isfinite().all()


def test_languages_are_told_apart_and_everything_is_written(tiny_corpus: Path, tmp_path: Path) -> None:
    attentive = dataclasses.replace(LANGUAGES, head="attentive", features=FeatureConfig())
    result = once(tiny_corpus, tmp_path, attentive, upstream="fbank")
    assert result.test.metrics["accuracy"].value > 0.9
    assert result.test.metrics["accuracy"].n == 16
    assert set(result.test.breakdown["recall by language"]) == {"aa", "bb"}
    folder = tmp_path / "exp/language_identification/fbank/seed0"
    rows = (folder / "predictions.tsv").read_text().splitlines()
    assert rows[0].split("\t") == ["utterance", "language reference", "language hypothesis", "language probability"]
    assert len(rows) == 17
    assert load_result(folder).test.metrics.keys() == {"accuracy", "uar", "macro f1"}


def test_inference_gives_the_labels_of_the_test(tiny_corpus: Path, tmp_path: Path) -> None:
    once(tiny_corpus, tmp_path, LANGUAGES)
    folder = tmp_path / "exp/language_identification/hubert_tiny_random/seed0"
    rows = [line.split("\t") for line in (folder / "predictions.tsv").read_text().splitlines()[1:]]
    files = {u.id: u.path for u in open_corpus(tiny_corpus).utterances("test")}
    found = infer(folder, list(files.values()))
    for name, _, label, probability in rows:
        assert found[files[name]]["language"]["label"] == label
        assert found[files[name]]["language"]["probability"] == pytest.approx(float(probability), abs=2e-3)


def test_pooled_features_train_the_head_that_frames_train(tiny_corpus: Path, tmp_path: Path) -> None:
    """The same batches, weights and losses; frames are kept in bfloat16, which is what is left of a difference."""
    train = dataclasses.replace(LANGUAGES.train, max_batch_size=None, steps=20)
    config = dataclasses.replace(LANGUAGES, train=train)
    pooled = once(tiny_corpus, tmp_path / "a", config)
    whole = once(tiny_corpus, tmp_path / "b", dataclasses.replace(config, features=FeatureConfig()))
    for (_, a), (_, b) in zip(pooled.curves["train loss"], whole.curves["train loss"], strict=True):
        assert a == pytest.approx(b, rel=2e-2)


def test_several_fields_are_right_together_or_not_at_all(tiny_corpus: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(LANGUAGES, fields=("speaker", "language"))
    result = once(tiny_corpus, tmp_path, config)
    fields = result.test.breakdown["accuracy by field"]
    assert result.test.metrics.keys() == {"accuracy"}
    assert result.test.metrics["accuracy"].value <= min(fields["speaker"].value, fields["language"].value)


def test_the_loss_of_several_fields_is_the_sum_of_their_cross_entropies() -> None:
    classes = make_classes(
        [_labelled("a", x="1", y="u"), _labelled("b", x="2", y="v"), _labelled("c", x="3", y="u")], ("x", "y")
    )
    task = Classification(ClassificationConfig(fields=("x", "y")))
    scores = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    batch = [_labelled("d", x="3", y="v"), _labelled("e", x="1", y="u")]
    data = TaskData({}, {"classes": classes, "weights": [None, None]})
    out = task.loss(lambda *_: scores, scores, torch.ones(2), batch, data, torch.Generator())  # type: ignore[arg-type]
    slow = sum(
        F.cross_entropy(part[None], torch.tensor([target]))
        for row, targets in zip(scores, ((2, 1), (0, 0)), strict=True)
        for part, target in zip(row.split([3, 2]), targets, strict=True)
    )
    torch.testing.assert_close(out.loss_sum, slow)
    assert int(out.sample_size) == 2


def test_balanced_draws_hear_rare_classes_as_often_as_common_ones(tmp_path: Path) -> None:
    utterances = [_labelled(f"c{n}", label="common") for n in range(90)] + [
        _labelled(f"r{n}", label="rare") for n in range(10)
    ]
    config = ClassificationConfig(train=TrainConfig(max_batch_size=20), balance="draws")
    heard = _heard(config, utterances, tmp_path, batches=50)
    assert 0.4 < heard["rare"] / heard.total() < 0.6
    plain = _heard(dataclasses.replace(config, balance="none"), utterances, tmp_path, batches=50)
    assert plain["rare"] / plain.total() == pytest.approx(0.1, abs=0.02)


def test_a_balanced_loss_weighs_each_class_alike() -> None:
    utterances = [_labelled(f"c{n}", label="common") for n in range(9)] + [_labelled("r", label="rare")]
    task = Classification(ClassificationConfig(balance="loss"))
    classes = make_classes(utterances, ("label",))
    (weights,) = task._weights(utterances, classes)
    assert weights is not None
    torch.testing.assert_close(weights * torch.tensor([9.0, 1.0]), torch.full((2,), 5.0))


def test_pooled_batches_are_of_one_size_whatever_the_durations(tmp_path: Path) -> None:
    utterances = [dataclasses.replace(_labelled(f"u{n}", label=str(n % 2)), duration=1.0 + n) for n in range(40)]
    fit = _fit(ClassificationConfig(train=TrainConfig(max_batch_size=8, batch_seconds=4.0)), utterances, tmp_path)
    plan = fit._batches(utterances).plan(0)
    assert {len(plan.indices(k)) for k in range(len(plan))} == {8}


def test_what_training_lacks_is_refused_or_left_out_and_counted(
    tiny_corpus: Path, caplog: pytest.LogCaptureFixture
) -> None:
    corpus = open_corpus(tiny_corpus)
    config = ClassificationConfig(fields=("sentence",))
    with pytest.raises(ManifestError, match=r"16 utterances in 'dev' of classes without a training example: '3', '8'"):
        read_splits(corpus, config)
    missing = dataclasses.replace(LANGUAGES, fields=("age",))
    with pytest.raises(ManifestError, match=r"no utterance in 'train' with 'age': its labels are .*'speaker'"):
        read_splits(corpus, missing)
    some = [u.id for u in corpus.utterances("train") if u.labels["speaker"] == "aa0"]
    left_out = dataclasses.replace(LANGUAGES, fields=("speaker",), leave_out_unknown=True)
    with caplog.at_level(logging.WARNING):
        splits = read_splits(corpus.without(some), left_out)
    assert "aa0" not in {label_of(u, "speaker") for u in splits["test"]}
    assert "is the first of 2 utterances in 'dev' of classes without a training example" in caplog.text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"head": "attentive"}, "needs frames"),
        ({"fields": ()}, "at least one"),
        ({"fields": ("a", "b"), "metric": "uar"}, "is of one field"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ClassificationConfig(**changes)


def test_an_attentive_head_says_that_it_needs_frames() -> None:
    head = build_utterance_head("attentive", 8, 3, hidden_size=6, dropout=0.0)
    with pytest.raises(SpeechsslError, match=r"set `features\.pooling` to 'none'"):
        head(torch.zeros(2, 8), torch.ones(2))


def test_long_training_utterances_are_heard_in_crops(tiny_corpus: Path, tmp_path: Path) -> None:
    train = dataclasses.replace(LANGUAGES.train, max_duration=1.0)
    config = dataclasses.replace(LANGUAGES, train=train, features=FeatureConfig(pooling="mean", crops=2))
    result = once(tiny_corpus, tmp_path, config)
    corpus = open_corpus(tiny_corpus)
    longer = [u for u in corpus.utterances("train") if (u.duration or 0) > 1.0]
    splits = sum(len(corpus.utterances(s)) for s in ("train", "dev", "test"))
    assert result.features["computed"] == splits + len(longer)
    assert result.test.metrics["accuracy"].value > 0.6


def _labelled(name: str, **labels: str) -> Utterance:
    return Utterance(name, f"{name}.flac", duration=1.0, labels=labels)


def test_a_fold_of_emotions_is_read_from_its_own_splits(tiny_corpus: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_corpus, tmp_path / "corpus")
    folder = tmp_path / "corpus" / "manifests"
    for split in ("train", "dev", "test"):
        shutil.copy(folder / f"{split}.jsonl.gz", folder / f"fold3_{split}.jsonl.gz")
    config = EmotionRecognitionConfig(fields=("language",), fold=3)
    data = build_task("emotion_recognition", config).prepare(open_corpus(tmp_path / "corpus"))
    assert {split: len(part) for split, part in data.splits.items()} == {"train": 50, "dev": 16, "test": 16}
    with pytest.raises(ManifestError, match="no split 'fold2_train'"):
        build_task("emotion_recognition", dataclasses.replace(config, fold=2)).prepare(open_corpus(tmp_path / "corpus"))
    with pytest.raises(ConfigError, match="`fold` must be from 1 to 5, but is 6"):
        EmotionRecognitionConfig(fold=6)


def test_heads_are_run_side_by_side_and_shown_so(tiny_corpus: Path, tmp_path: Path) -> None:
    options = RunOptions(cache_folder=str(tmp_path / "cache"))
    config = dataclasses.replace(LANGUAGES, train=dataclasses.replace(LANGUAGES.train, steps=4, evaluate_every=4))
    arguments: dict[str, Any] = {"corpus": tiny_corpus, "config": config, "out": tmp_path / "exp", "options": options}
    found = run("language_identification", upstream=["fbank", "mfcc"], heads=["all"], seeds=[0, 1], **arguments)
    linear = [("linear", label, seed) for label in ("fbank", "mfcc") for seed in (0, 1)]
    assert [(r.head, r.upstream.label, r.seed) for r in found[:5]] == [*linear, ("mlp", "fbank", 0)]
    assert len(found) == 12
    assert found[-1].config["features"]["pooling"] == "none"
    assert (tmp_path / "exp/language_identification/mfcc/head_attentive/seed1/result.json").exists()
    titles = [cell.text for cell in main_table(group_runs(found)).header]
    assert titles[1:] == [f"Language identification, {head} head" for head in ("attentive", "linear", "mlp")]
    kept = collect([tmp_path / "exp"])
    assert (len(kept.runs), kept.problems) == (12, [])
    (again,) = run("language_identification", upstream="mfcc", heads=["mlp"], **arguments)
    assert again.date == found[6].date  # finished, and not run again
    with pytest.raises(UnknownNameError, match="Unknown head of 'language_identification' 'linea'"):
        run("language_identification", upstream="mfcc", heads=["linea"], **arguments)
    with pytest.raises(ConfigError, match="`--folds` can't be all for the task 'language_identification': it has none"):
        run("language_identification", upstream="mfcc", folds=["all"], **arguments)


def test_the_score_over_folds_is_their_mean(
    tiny_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny_corpus, tmp_path / "corpus")
    folder = tmp_path / "corpus" / "manifests"
    for fold in range(1, 6):
        for split in ("train", "dev", "test"):
            shutil.copy(folder / f"{split}.jsonl.gz", folder / f"fold{fold}_{split}.jsonl.gz")
    words = [
        "run",
        "emotion_recognition",
        "-u",
        "mfcc",
        "--corpus",
        str(tmp_path / "corpus"),
        "-o",
        str(tmp_path / "exp"),
    ]
    settings = ["-s", "fields=[language]", "-s", "train.steps=4", "-s", "train.evaluate_every=4"]
    with pytest.raises(SystemExit) as ended:
        main([*words, *settings, "--folds", "all", "--cache", str(tmp_path / "cache")])
    assert not ended.value.code
    shown = capsys.readouterr().out
    assert "0, fold 5" in shown
    assert "mean ± sd" in shown
    kept = collect([tmp_path / "exp"])
    assert [run.result.fold for run in kept.runs] == [1, 2, 3, 4, 5]
    (group,) = group_runs(run.result for run in kept.runs)
    values = [run.result.test.metrics["accuracy"].value for run in kept.runs]
    assert group.primary().mean == pytest.approx(sum(values) / 5)
    assert group.primary().seeds == 5
    assert mixed_configs([group]) == []
    with pytest.raises(SystemExit):
        main([*words, "--folds", "1,6"])
    assert "can't be 6 for the task 'emotion_recognition': they are 1 to 5" in capsys.readouterr().err


class _Store:
    frame_rate = 50.0
    num_layers = 2
    hidden_size = 4

    def get(self, utterance_id: str) -> torch.Tensor:
        raise NotImplementedError(utterance_id)

    def batch(self, utterance_ids: Any) -> tuple[torch.Tensor, torch.Tensor]:
        raise NotImplementedError(utterance_ids)


def _fit(config: ClassificationConfig, utterances: list[Utterance], folder: Path) -> Fit:
    task = build_task("keyword_spotting", config)
    classes = make_classes(utterances, config.fields)
    data = TaskData({"train": utterances}, {"classes": classes, "weights": [None]})
    return Fit(task, data, {"train": _Store()}, seed=0, folder=folder, identity="")


def _heard(config: ClassificationConfig, utterances: list[Utterance], folder: Path, *, batches: int) -> Counter[str]:
    stream = iter(_fit(config, utterances, folder)._batches(utterances))
    return Counter(label_of(utterances[i], "label") for _ in range(batches) for i in next(stream).indices)
