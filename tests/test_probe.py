"""The probe: classes and numbers, utterances and segments, folds, groups, and the recipes for it."""

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from corpus_trees import put_list
from torch.nn import functional as F

from downstreams.probe.config import FOLDS, HEADS, PRESETS, ProbeConfig, heads_of
from downstreams.probe.data import check_groups, choose_numbered, cut_into_segments, read_everything
from downstreams.probe.folds import assign_folds
from downstreams.probe.head import StandardisedHead, cut_frames
from downstreams.probe.regress import regression_loss
from downstreams.probe.segments import SegmentProbe
from downstreams.probe.task import make_probe
from speechssl.config import load_config
from speechssl.data.corpora.prepare import prepare_corpus
from speechssl.data.corpus import Corpus, open_corpus
from speechssl.errors import ConfigError, ManifestError, UnknownNameError
from speechssl.inference import infer
from speechssl.jobs import RunOptions
from speechssl.metric.regression import regression_metrics
from speechssl.result import RunResult
from speechssl.runner import run
from speechssl.task import FeatureConfig, TrainConfig
from speechssl.types import Utterance
from speechssl.variants import make_variants

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "recipes" / "probe").glob("*.yaml"))
TRAIN = TrainConfig(steps=60, batch_seconds=40.0, max_batch_size=16, learning_rate=3e-3, evaluate_every=20)
CLASSES = ProbeConfig(train=TRAIN, fields=("tongue",), metric="accuracy")
SEGMENTS = ProbeConfig(
    train=TRAIN, level="segment", fields=("letter",), features=FeatureConfig(), balance="loss", group="speaker"
)
NUMBERS = ProbeConfig(train=TRAIN, kind="regression", fields=("pitch",), metric="ccc", system="speaker")


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> RunOptions:
    return RunOptions(cache_folder=str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def corpus(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Prepared from a table: the pitch that each voice was made with, and where in an utterance which letter is."""
    source = tmp_path_factory.mktemp("source")
    rows, segments = ["path,id,split,speaker,tongue,pitch"], ["id;start;end;letter"]
    for split in ("train", "dev", "test"):
        for utterance in open_corpus(tiny_corpus).utterances(split):
            speaker, text = utterance.labels["speaker"], utterance.labels.get("text", "")
            number = 4 * (speaker[:2] == "bb") + int(speaker[2])
            pitch = 90 + 22 * number if text else ""
            rows.append(f"{utterance.path},{utterance.id},{split},{speaker},{speaker[:2]},{pitch}")
            for place, letter in enumerate(text):
                if letter in "aeo":
                    segments.append(f"{utterance.id};{0.11 * (place + 1):.2f};{0.11 * (place + 2):.2f};{letter}")
    put_list(source / "mine.csv", rows, bom=True, end="\r\n")
    put_list(source / "segments.csv", segments)
    folder = tmp_path_factory.mktemp("prepared")
    prepare_corpus("table", source, folder)
    return open_corpus(folder)


def once(corpus: Corpus, config: ProbeConfig, folder: Path, options: RunOptions, **changes: Any) -> RunResult:
    arguments: dict[str, Any] = {"upstream": "hubert_tiny:random", "config": config, "out": folder} | changes
    (result,) = run("probe", corpus=corpus, options=options, **arguments)
    return result


def folder_of(out: Path) -> Path:
    (folder,) = out.glob("probe_*/hubert_tiny_random/seed0")
    return folder


def said(out: Path) -> list[list[str]]:
    text = (folder_of(out) / "predictions.tsv").read_text(encoding="utf-8")
    return [line.split("\t") for line in text.splitlines()]


def test_classes_are_told_and_files_get_the_labels_of_the_test(
    corpus: Corpus, tmp_path: Path, options: RunOptions
) -> None:
    result = once(corpus, CLASSES, tmp_path, options)
    assert result.test.metrics["accuracy"].value > 0.8
    paths = {u.id: u.path for u in corpus.utterances("test")}
    rows = said(tmp_path)[1:]
    assert len(rows) == result.test.metrics["accuracy"].n == 16
    found = infer(folder_of(tmp_path), [paths[rows[0][0]]])
    assert found[paths[rows[0][0]]]["tongue"]["label"] == rows[0][2]


def test_numbers_are_told_and_measured_by_utterance_and_system(
    corpus: Corpus, tmp_path: Path, options: RunOptions
) -> None:
    result = once(corpus, NUMBERS, tmp_path, options)
    rows = said(tmp_path)
    assert rows[0] == ["utterance", "pitch reference", "pitch"]
    references, hypotheses = (np.array([float(row[k]) for row in rows[1:]]) for k in (1, 2))
    systems = [u.labels["speaker"] for u in corpus.utterances("test")]
    expected = regression_metrics(references, hypotheses, systems=systems)
    assert {k: v.value for k, v in result.test.metrics.items()} == pytest.approx(
        {k: v.value for k, v in expected.items()}, abs=1e-5
    )
    assert result.test.metrics["ccc"].value > 0.4
    assert result.metric == "ccc" and result.higher_is_better
    assert result.column == "probe of pitch" and folder_of(tmp_path).parts[-3] == "probe_pitch"
    path = corpus.utterances("test")[0].path
    found = infer(folder_of(tmp_path), [path])
    assert found[path]["pitch"] == pytest.approx(hypotheses[0], abs=0.05)


def test_segments_are_told_from_the_frames_within_them(corpus: Corpus, tmp_path: Path, options: RunOptions) -> None:
    result = once(corpus, dataclasses.replace(SEGMENTS, group=None), tmp_path, options)
    assert result.test.metrics["uar"].value > 0.75
    entries = [entry for u in corpus.utterances("test") for entry in u.labels["letter"]]
    assert result.test.metrics["uar"].n == len(entries)
    assert [row[1] for row in said(tmp_path)[1:]] == [entry["value"] for entry in entries]
    path = corpus.utterances("test")[0].path
    (found,) = infer(folder_of(tmp_path), [path])[path]  # of a file nobody has cut, all of it
    assert found["start"] == 0.0 and found["letter"]["label"] in "aeo"


def test_numbers_of_segments_are_regressed_with_attention(corpus: Corpus, tmp_path: Path, options: RunOptions) -> None:
    numbers = {"a": 1.0, "e": 2.0, "o": 3.0}

    class Numbered(Corpus):
        def utterances(self, split: str) -> list[Utterance]:
            return [
                dataclasses.replace(
                    u, labels={"value": [{**e, "value": numbers[e["value"]]} for e in u.labels.get("letter", [])]}
                )
                for u in super().utterances(split)
            ]

    config = dataclasses.replace(
        SEGMENTS, head="attentive", kind="regression", fields=("value",), metric="mae", balance="none", group=None
    )
    result = once(Numbered(**vars(corpus)), config, tmp_path, options)
    assert result.test.metrics["lcc"].value > 0.6 and not result.higher_is_better


def test_five_folds_are_run_by_one_command(corpus: Corpus, tmp_path: Path, options: RunOptions) -> None:
    train = dataclasses.replace(TRAIN, steps=4, evaluate_every=4)
    config = dataclasses.replace(NUMBERS, train=train, system=None)
    results = run(
        "probe",
        upstream="hubert_tiny:random",
        corpus=corpus,
        config=config,
        folds=["all"],
        out=tmp_path,
        options=options,
    )
    assert [result.fold for result in results] == [1, 2, 3, 4, 5]
    assert sum(result.test.metrics["ccc"].n for result in results) == 80


def test_pooled_features_give_what_frames_give() -> None:
    generator = torch.Generator().manual_seed(0)
    features, lengths = torch.randn(5, 9, 6, generator=generator), torch.tensor([9, 4, 7, 1, 5])
    for row, length in enumerate(lengths.tolist()):
        features[row, length:] = 0
    pooled = features.sum(1) / lengths[:, None]
    for kind in ("linear", "mlp"):
        head = StandardisedHead(kind, 6, 3, hidden_size=8, dropout=0.0)  # type: ignore[arg-type]
        for _ in range(3):
            torch.testing.assert_close(head(pooled, lengths), head(features, lengths), atol=1e-5, rtol=0)
        head.eval()
        torch.testing.assert_close(head(pooled, lengths), head(features, lengths), atol=1e-5, rtol=0)
        for row, length in enumerate(lengths.tolist()):
            alone = head(features[row : row + 1, :length], lengths[row : row + 1])
            torch.testing.assert_close(head(features, lengths)[row : row + 1], alone, atol=1e-5, rtol=0)


def test_a_linear_head_is_two_products_of_what_is_standardised() -> None:
    pooled = torch.randn(40, 6, generator=torch.Generator().manual_seed(1)) * 3 + 2
    head = StandardisedHead("linear", 6, 3, hidden_size=8, dropout=0.0)
    weights = dict(head.named_parameters())
    x = (pooled - pooled.mean(0)) / (pooled.var(0, correction=0) + 1e-5).sqrt()
    for name in ("head.project.0", "head.output"):
        x = x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]
    torch.testing.assert_close(head(pooled, torch.ones(40)), x, atol=1e-5, rtol=0)


def test_frames_of_segments_are_those_of_a_slow_loop() -> None:
    features = torch.randn(3, 11, 4, generator=torch.Generator().manual_seed(2))
    lengths = torch.tensor([11, 5, 8])
    owners = [0, 0, 1, 2, 2, 1]
    spans = [(0.0, 0.02), (0.031, 0.19), (0.02, 0.5), (0.079, 0.0791), (0.155, 0.16), (0.3, 0.4)]
    cut, sizes = cut_frames(features, lengths, owners, spans, frame_rate=50.0)
    for row, (owner, (begin, end)) in enumerate(zip(owners, spans, strict=True)):
        inside = [k for k in range(int(lengths[owner])) if begin <= (k + 0.5) / 50 < end]
        after = next((k for k in range(int(lengths[owner])) if (k + 0.5) / 50 >= begin), int(lengths[owner]) - 1)
        first, last = (inside[0], inside[-1] + 1) if inside else (after, after + 1)
        assert int(sizes[row]) == last - first >= 1
        torch.testing.assert_close(cut[row, : last - first], features[owner, first:last], atol=0, rtol=0)
        assert not cut[row, last - first :].any()


@pytest.mark.parametrize("kind", ["mse", "mae", "ccc"])
def test_losses_are_the_measures(kind: str) -> None:
    rng = np.random.default_rng(0)
    wanted, given = rng.normal(size=30), rng.normal(size=30) + 0.4
    found = regression_metrics(wanted, given)[kind].value
    loss = float(regression_loss(kind, torch.tensor(given), torch.tensor(wanted))) / 30
    assert (1 - loss if kind == "ccc" else loss) == pytest.approx(found, abs=1e-6)
    alone = torch.tensor([1.0], requires_grad=True)
    value = regression_loss(kind, alone, torch.tensor([2.0]))
    value.backward()  # type: ignore[no-untyped-call]  # torch does not annotate it
    assert value.isfinite() and alone.grad is not None and alone.grad.isfinite().all()


def test_a_loss_of_segments_weighs_every_segment_once(corpus: Corpus) -> None:
    task = make_probe(dataclasses.replace(SEGMENTS, balance="none", group=None, standardise=False))
    assert isinstance(task, SegmentProbe)
    data = task.prepare(corpus)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head: Any = task.build_head(4, 50.0, data)
    utterances = data.splits["train"][:3]
    lengths = torch.tensor([int((u.duration or 0) * 50) for u in utterances])
    features = torch.randn(3, int(lengths.max()), 4, generator=torch.Generator().manual_seed(3))
    out = task.loss(head, features, lengths, utterances, data, torch.Generator())
    total, count = 0.0, 0
    for utterance, frames, length in zip(utterances, features, lengths.tolist(), strict=True):
        for entry in utterance.labels["letter"]:
            inside = [k for k in range(length) if entry["start"] - 1e-9 <= (k + 0.5) / 50 < entry["end"] - 1e-9]
            mean = frames[inside].mean(0, keepdim=True)
            scores = head.head(mean, torch.ones(1))
            total += float(F.cross_entropy(scores, torch.tensor(["aeo".index(entry["value"])])).detach())
            count += 1
    assert int(out.sample_size) == count
    assert float(out.loss_sum.detach()) == pytest.approx(total, abs=1e-4)


def test_folds_hold_whole_groups_and_like_shares() -> None:
    rng = np.random.default_rng(0)
    groups = [f"s{k}" for k in rng.integers(0, 60, 900)]
    kind_of = {name: str(rng.choice(["a", "a", "b", "c"])) for name in sorted(set(groups))}
    strata = [kind_of[g] if rng.random() < 0.7 else str(rng.choice(["a", "b"])) for g in groups]
    folds = assign_folds(groups, strata, 5)
    assert set(folds) == {1, 2, 3, 4, 5}
    assert all(len({f for f, g in zip(folds, groups, strict=True) if g == name}) == 1 for name in groups)
    for name, total in Counter(strata).items():
        held = [sum(f == k and s == name for f, s in zip(folds, strata, strict=True)) for k in range(1, 6)]
        assert max(held) - min(held) < 0.12 * total
    backwards = assign_folds(groups[::-1], strata[::-1], 5)[::-1]
    assert backwards == folds  # whatever the order of the corpus
    with pytest.raises(ManifestError, match="3 groups, too few for 5 folds"):
        assign_folds(["a", "b", "c"], ["x", "x", "y"], 5)


def test_every_utterance_is_tested_on_in_one_fold(corpus: Corpus) -> None:
    tested: Counter[str] = Counter()
    for fold in range(1, FOLDS + 1):
        config = dataclasses.replace(NUMBERS, fold=fold, system=None, group="speaker")
        splits = read_everything(corpus, config)
        check_groups(splits, config, corpus.root)
        assert sum(len(part) for part in splits.values()) == 80
        tested.update(u.id for u in splits["test"])
    assert len(tested) == 80 and set(tested.values()) == {1}


def test_splits_may_have_other_names_and_missing_ones_are_named(corpus: Corpus) -> None:
    config = dataclasses.replace(CLASSES, splits={"dev": "test", "test": "dev"})
    swapped = read_everything(corpus, config)
    assert [u.id for u in swapped["dev"]] == [u.id for u in corpus.utterances("test")]
    with pytest.raises(ManifestError, match=r"no split 'valid', it has 'dev', 'test', 'train'.*--folds all"):
        read_everything(corpus, dataclasses.replace(CLASSES, splits={"dev": "valid"}))
    with pytest.raises(ManifestError, match="no utterance with 'mood'"):
        read_everything(corpus, dataclasses.replace(CLASSES, fields=("mood",), fold=1))


def test_shared_groups_are_refused_or_warned_of(corpus: Corpus, caplog: pytest.LogCaptureFixture) -> None:
    config = dataclasses.replace(NUMBERS, group="speaker", system=None)
    splits = read_everything(corpus, config)
    with pytest.raises(ManifestError, match=r"'train' and 'dev' of .* share 8 values of 'speaker', such as aa0"):
        check_groups(splits, config, corpus.root)
    check_groups(splits, dataclasses.replace(config, overlap="warn"), corpus.root)
    assert "share 8 values of 'speaker'" in caplog.text
    with pytest.raises(ManifestError, match=r"'aa0-00' of .*line 1\) is the first of 50 of 50 that have no 'city'"):
        check_groups(splits, dataclasses.replace(config, group="city"), corpus.root)


def test_labels_that_are_no_numbers_are_named(corpus: Corpus) -> None:
    everything = read_everything(corpus, NUMBERS)
    chosen = choose_numbered(everything, NUMBERS, corpus.root)
    assert len(chosen["train"]) == len(everything["train"]) - 2  # without a label
    for bad in ("old", "nan", "inf"):
        first = dataclasses.replace(everything["dev"][0], labels={"pitch": bad})
        with pytest.raises(ManifestError, match=rf"'{first.id}' of .* has '{bad}' as 'pitch'"):
            choose_numbered({**everything, "dev": [first]}, NUMBERS, corpus.root)
    same = [dataclasses.replace(u, labels={"pitch": 3}) for u in everything["train"]]
    with pytest.raises(ManifestError, match=r"one value of 'pitch' in 'train': 3\.0"):
        choose_numbered({**everything, "train": same}, NUMBERS, corpus.root)
    with pytest.raises(ManifestError, match="no utterance in 'test' with 'pitch': its labels are 'speaker'"):
        blank = [dataclasses.replace(u, labels={"speaker": "a"}) for u in everything["test"]]
        choose_numbered({**everything, "test": blank}, NUMBERS, corpus.root)
    few = choose_numbered(everything, dataclasses.replace(NUMBERS, max_train_utterances=7), corpus.root)
    assert len(few["train"]) == 7


@pytest.mark.parametrize(
    ("label", "reason"),
    [
        ("2", "no list of"),
        ([{"start": 0.1, "end": 0.2}], "a segment is"),
        ([{"start": 0.3, "end": 0.2, "value": "1"}], r"from 0\.3 s to 0\.2 s"),
        ([{"start": 0.9, "end": 2.0, "value": "1"}], r"is 1 s long, but has 'tone' from 0\.9 s to 2 s"),
    ],
)
def test_segments_that_do_not_fit_are_named(label: Any, reason: str) -> None:
    utterance = Utterance("u", "u.wav", 3.0, 1.0, {"tone": label})
    with pytest.raises(ManifestError, match=f"'u' of corpus .*{reason}"):
        cut_into_segments(utterance, "tone", Path("corpus"))


def test_segments_begin_where_their_utterance_does() -> None:
    entries = [{"start": 0.25, "end": 0.5, "value": 4}, {"start": 0.5, "end": 1.04, "value": 1}]
    found = cut_into_segments(Utterance("u", "u.wav", 3.0, 1.0, {"tone": entries}), "tone", Path())
    assert [(u.id, u.start, u.duration, u.labels["tone"]) for u in found] == [
        ("u#0", 3.25, 0.25, 4),
        ("u#1", 3.5, 0.54, 1),
    ]
    assert cut_into_segments(Utterance("u", "u.wav"), "tone", Path()) == []


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_a_recipe_is_a_config_of_a_probe_with_every_head(path: Path) -> None:
    config = load_config(PRESETS["probe"], yaml=path)
    assert config.fields != PRESETS["probe"].fields
    assert f"--config recipes/probe/{path.name}" in path.read_text(encoding="utf-8")
    for settings in heads_of(config).values():
        assert make_probe(load_config(config, overrides=settings)).metric == config.metric


def test_the_preset_of_frames_is_the_recipe_for_phones_and_has_no_head_that_joins_them() -> None:
    recipe = next(path for path in RECIPES if path.stem == "phones")
    preset = load_config(PRESETS["probe_frame"], overrides=["fields=[phone]"])
    assert preset == load_config(PRESETS["probe"], yaml=recipe)
    assert [v.head for v in make_variants("probe", preset, heads=["all"])] == ["linear", "mlp"]
    assert [v.head for v in make_variants("probe", PRESETS["probe"], heads=["all"])] == list(HEADS)
    with pytest.raises(UnknownNameError, match=r"head of 'probe' 'attentive'.*linear, mlp"):
        make_variants("probe", preset, heads=["attentive"])


def test_there_is_a_recipe_for_each_kind_of_label() -> None:
    wanted = {"emotion", "depression", "lexical_tone", "animal_calls", "children_speech", "mispronunciation", "mos"}
    assert {path.stem for path in RECIPES} >= wanted


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (["metric=mse"], "`metric` of a classification must be one of accuracy, uar, macro f1, but is mse"),
        (["kind=regression"], "`metric` of a regression must be one of mse, .*system ktau, but is uar"),
        (["kind=regression", "metric=ccc", "balance=loss"], "`balance` must be none"),
        (["kind=regression", "metric=ccc", "balance=none", "fields=[a,b]"], "is of one field"),
        (["kind=regression", "metric=system lcc", "balance=none"], "set `system`"),
        (["system=x"], "belong to `kind=regression`"),
        (["level=segment"], "set `features.pooling=none`"),
        (["level=segment", "features.pooling=none", "balance=draws"], "must not be draws"),
        (["fold=6"], "from 1 to 5, but is 6"),
        (["splits={valid: dev}"], "but has 'valid'"),
        (["head=attentive"], "needs frames"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: list[str], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        load_config(PRESETS["probe"], overrides=settings)


def test_what_inference_needs_is_json(corpus: Corpus) -> None:
    for config in (CLASSES, NUMBERS, dataclasses.replace(SEGMENTS, group=None)):
        task = make_probe(config)
        data = task.prepare(corpus)
        state = json.loads(json.dumps(task.state(data)))
        restored = task.restore(state)
        assert task.state(restored) == state
        sizes = [sum(p.numel() for p in task.build_head(8, 50.0, d).parameters()) for d in (data, restored)]
        assert sizes[0] == sizes[1]
