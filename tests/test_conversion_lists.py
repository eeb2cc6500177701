"""Corpora that come with lists of conversions, and targets who have said the words themselves."""

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from downstreams.voice_conversion import scoring
from downstreams.voice_conversion.config import PRESETS, VoiceConversionConfig
from downstreams.voice_conversion.data import Plan, make_data
from speechssl.audio import read_audio
from speechssl.data.corpus import open_corpus
from speechssl.data.pairs import LISTS, list_conversions
from speechssl.errors import ManifestError, SpeechsslError
from speechssl.metric.conversion import compare_recordings
from speechssl.metric.mel_cepstrum import find_f0_range

CONFIG = replace(
    PRESETS["voice_conversion_demo"], reference_seconds=3.0, profile_utterances=2, dev_pairs=6, test_pairs=7
)
TARGETS = ("aa0", "aa1", "bb0")


@pytest.fixture
def listed(tiny_corpus: Path, tmp_path: Path) -> Path:
    """The tiny corpus with lists that send everyone of 'aa' to three targets."""
    root = tmp_path / "corpus"
    shutil.copytree(tiny_corpus, root)
    corpus = open_corpus(root)
    (root / "lists").mkdir()
    for split, name in LISTS.items():
        told = [u for u in corpus.utterances(split) if u.labels["language"] == "aa"]
        lines = list_conversions([(u.id, u.labels["speaker"]) for u in told], TARGETS)
        (root / "lists" / f"{name}.txt").write_text("".join(line + "\r\n" for line in lines))
    info = json.loads((root / "corpus.json").read_text())
    info["files"] = {name: f"lists/{name}.txt" for name in LISTS.values()}
    (root / "corpus.json").write_text(json.dumps(info))
    return root


def _plan(root: Path, config: VoiceConversionConfig = CONFIG) -> Plan:
    plan: Plan = make_data(open_corpus(root), config).extra["plan"]
    return plan


def _lines(root: Path, split: str) -> list[tuple[str, ...]]:
    return [tuple(line.split()) for line in (root / "lists" / f"{LISTS[split]}.txt").read_text().splitlines()]


def test_conversions_are_the_beginning_of_the_lists(listed: Path) -> None:
    plan = _plan(listed)
    for split, count in (("dev", 6), ("test", 7)):
        assert [(p.source.id, p.target) for p in plan.pairs[split]] == _lines(listed, split)[:count]
    everything = _plan(listed, replace(CONFIG, dev_pairs=10_000, test_pairs=10_000))
    assert [(p.source.id, p.target) for p in everything.pairs["test"]] == _lines(listed, "test")


def test_targets_are_known_by_speech_that_is_neither_converted_nor_matched(listed: Path) -> None:
    plan = _plan(listed)
    sources = {p.source.id for pairs in plan.pairs.values() for p in pairs}
    assert set(plan.targets) <= set(TARGETS)
    train = {u.id for u in open_corpus(listed).utterances("train")}
    for name, target in plan.targets.items():
        reference, profile = ({u.id for u in us} for us in (target.reference, target.profile))
        assert len(profile) == 2 and reference and not reference & profile and not (reference | profile) & sources
        assert reference | profile <= train and {u.id for u in target.held_out}.isdisjoint(train)
        assert {u.labels["speaker"] for u in (*target.reference, *target.profile, *target.held_out)} == {name}
    assert set(plan.sources) == {str(p.source.labels["speaker"]) for ps in plan.pairs.values() for p in ps}
    assert all(plan.sources.values())


def test_references_come_from_a_split_of_their_own_where_there_is_one(listed: Path) -> None:
    manifests = listed / "manifests"
    shutil.copy(manifests / "train.jsonl.gz", manifests / "reference.jsonl.gz")
    shutil.copy(manifests / "dev.jsonl.gz", manifests / "train.jsonl.gz")
    data = make_data(open_corpus(listed), CONFIG)
    plan: Plan = data.extra["plan"]
    head = {u.id for u in data.splits["train"]}
    for target in plan.targets.values():
        assert not head & {u.id for u in (*target.reference, *target.profile)}
        assert {u.id for u in target.reference} <= {u.id for s in ("dev", "test") for u in data.splits[s]}


def test_lists_that_name_nobody_are_sentences(listed: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = listed / "lists" / "conversion_dev.txt"
    good = path.read_text()
    path.write_text(good + "unheard aa0\n")
    with caplog.at_level(logging.WARNING):
        _plan(listed)
    assert "1 of the" in caplog.text and "left out" in caplog.text
    path.write_text(good + "unheard nobody\n")
    with pytest.raises(ManifestError, match=r"conversion_dev.txt, line \d+, converts to 'nobody', of whom"):
        _plan(listed)
    path.write_text(good + "one\n")
    with pytest.raises(ManifestError, match=r"is 'one', but must be a source and a target speaker"):
        _plan(listed)
    path.write_text("unheard aa0\n")
    with pytest.raises(SpeechsslError, match="No conversion listed for dev of"):
        _plan(listed)
    path.write_text(good)
    with pytest.raises(SpeechsslError, match="but needs 101 and 1: lower `profile_utterances`"):
        _plan(listed, replace(CONFIG, profile_utterances=100))


def test_what_a_target_has_said_too_is_compared_with(listed: Path) -> None:
    plan = _plan(listed)
    parallel = {p.id: plan.parallels.get(p.id) for p in plan.pairs["test"]}
    for pair in plan.pairs["test"]:
        own = parallel[pair.id]
        if pair.target == "bb0":  # who speaks another language
            assert own is None
        elif own is not None:
            assert own.labels["text"] == pair.source.labels["text"] and own.labels["speaker"] == pair.target
            assert own.id not in {u.id for u in plan.targets[pair.target].reference}
    assert any(parallel.values())
    pair, own = next((p, u) for p in plan.pairs["test"] if (u := parallel[p.id]) is not None)
    plan = replace(plan, parallels={pair.id: own})
    waveforms = [read_audio(p.source.path) for p in plan.pairs["test"]]
    found = scoring.parallel_metrics(plan, "test", waveforms, 16_000)
    f0_range = find_f0_range([read_audio(u.path).double().numpy() for u in plan.targets[pair.target].profile], 16_000)
    assert f0_range is not None
    first, second = (read_audio(u.path).double().numpy() for u in (pair.source, own))
    expected = compare_recordings(first, second, 16_000, f0_range=f0_range)
    for name in ("mcd", "f0_rmse", "f0_correlation", "ddur"):
        assert found[name].value == pytest.approx(getattr(expected, name), rel=1e-9) and found[name].n == 1
    assert scoring.parallel_metrics(replace(plan, parallels={}), "test", waveforms, 16_000) == {}


def test_conversions_of_a_list_begin_with_every_source_and_repeat_none() -> None:
    sources = [("u1", "a"), ("u2", "b"), ("u3", "x"), ("u4", "a")]
    lines = [tuple(line.split()) for line in list_conversions(sources, ("a", "b", "c"))]
    speakers = dict(sources)
    assert set(lines) == {(u, t) for u, s in sources for t in "abc" if t != s} and len(lines) == len(set(lines))
    assert [u for u, _ in lines[:4]] == ["u1", "u2", "u3", "u4"] and len({t for _, t in lines[:4]}) > 1
    assert all(speakers[u] != t for u, t in lines)
    assert list_conversions(sources, ("a", "b", "c"), most=1) == [" ".join(line) for line in lines[:4]]
    assert list_conversions([], ("a",)) == []
