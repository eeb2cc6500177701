"""Suites: several tasks in one command, one table, one score."""

import dataclasses
import json
from pathlib import Path

import command_line
import pytest

from downstreams.superb import suite as superb
from speechssl.data.corpora.base import list_corpora
from speechssl.errors import ConfigError, ManifestError, UnknownNameError
from speechssl.fitting import Fit
from speechssl.jobs import RunOptions
from speechssl.registry import list_tasks
from speechssl.runner import resolve_config
from speechssl.suite import Entry, Reference, Suite, SuiteResult, find_suite, run_suite, suite_names, suite_score

SHORT = ["train.steps=4", "train.evaluate_every=2", "train.batch_seconds=8"]
PAIR = Suite(
    (
        Entry("language_identification_demo", "demo", {"accuracy": Reference(0.0, 1.0)}),
        Entry("asr_demo", "demo", {"wer": Reference(1.0, 0.0), "cer": Reference(1.0, 0.5)}),
    ),
    score="pair_s",
)


@pytest.fixture(autouse=True)
def pair(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(superb.SUITES, "superb_pair", PAIR)


def once(corpora: Path, tmp_path: Path, **changes: object) -> SuiteResult:
    arguments: dict[str, object] = {"upstream": ["fbank", "again=fbank"], "corpora": corpora, "out": tmp_path / "exp"}
    arguments |= {"overrides": SHORT, "options": RunOptions(cache_folder=str(tmp_path / "cache"))}
    return run_suite("superb_pair", **(arguments | changes))  # type: ignore[arg-type]


def test_a_suite_runs_each_task_on_each_upstream_and_scores_them(
    tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = once(tiny_corpus, tmp_path)
    assert list(outcome.results) == ["language_identification_demo", "asr_demo"]
    found = outcome.metrics["fbank"]
    errors = found["asr_demo"]
    expected = (
        1000
        * (found["language_identification_demo"]["accuracy"] + (1 - errors["wer"] + 2 * (1 - errors["cer"])) / 2)
        / 2
    )
    assert outcome.scores["fbank"] == pytest.approx(expected) == pytest.approx(outcome.scores["again"])
    saved = json.loads((tmp_path / "exp/superb_pair.json").read_text())
    assert saved["scores"] == outcome.scores and saved["score"] == "pair_s"
    monkeypatch.setattr(Fit, "run", None)  # whoever calls it fails
    assert once(tiny_corpus, tmp_path).scores == outcome.scores


def test_a_part_of_a_suite_has_no_score(tiny_corpus: Path, tmp_path: Path) -> None:
    outcome = once(tiny_corpus, tmp_path, only=["asr_demo"], upstream="fbank")
    assert list(outcome.results) == ["asr_demo"] and not outcome.scores
    with pytest.raises(UnknownNameError, match="Unknown task of 'superb_pair' 'asr'"):
        once(tiny_corpus, tmp_path, only=["asr"])


def test_settings_of_one_task_come_from_a_file(tiny_corpus: Path, tmp_path: Path) -> None:
    yaml = tmp_path / "settings.yaml"
    yaml.write_text("asr_demo: {train: {learning_rate: 0.25}, augment: null}\n")
    outcome = once(tiny_corpus, tmp_path, yaml=yaml, upstream="fbank")
    rates = {task: found[0].config["train"]["learning_rate"] for task, found in outcome.results.items()}
    assert rates["asr_demo"] == 0.25 != rates["language_identification_demo"]
    yaml.write_text("asr: {}\n")
    with pytest.raises(ConfigError, match="settings by task"):
        once(tiny_corpus, tmp_path, yaml=yaml)


def test_missing_corpora_are_named_before_anything_is_computed(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"lacks 8 corpora .*iemocap, .*`speechssl prepare NAME .*--only"):
        run_suite("superb", upstream="fbank", corpora=tmp_path, out=tmp_path / "exp")
    with pytest.raises(UnknownNameError, match="Did you mean 'superb'"):
        find_suite("suberb")


def test_the_score_places_an_upstream_between_two_references() -> None:
    entries = [
        Entry("a", "x", {"up": Reference(0.2, 0.6)}),
        Entry("b", "x", {"p": Reference(0.5, 0.1), "q": Reference(2, 4)}),
    ]
    low = {"a": {"up": 0.2}, "b": {"p": 0.5, "q": 2.0}}
    high = {"a": {"up": 0.6}, "b": {"p": 0.1, "q": 4.0}}
    assert suite_score(entries, low) == pytest.approx(0.0)
    assert suite_score(entries, high) == pytest.approx(1000.0)
    assert suite_score(entries, {"a": {"up": 0.4}, "b": {"p": 0.1, "q": 1.0}}) == pytest.approx(1000 * (0.5 + 0.25) / 2)
    assert suite_score(entries, {"a": {"up": 0.4}}) is None


def test_every_suite_names_tasks_and_corpora_that_exist() -> None:
    corpora = {*list_corpora(), "demo"}
    for name in suite_names():
        for entry in find_suite(name).entries:
            task, config = resolve_config(entry.task)
            assert task in list_tasks() and dataclasses.is_dataclass(config)
            assert entry.corpus in corpora, entry


def test_the_command_prints_one_table(tiny_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["run", "superb_pair", "-u", "fbank", "--corpus", str(tiny_corpus), "-o", str(tmp_path / "exp")]
    arguments += ["--cache", str(tmp_path / "cache"), *(part for text in SHORT for part in ("-s", text))]
    assert command_line.run(*arguments) == 0
    printed = capsys.readouterr().out
    assert "superb_pair: test" in printed and "pair_s" in printed
    assert "are of one task" in command_line.the_sentence(capsys, *arguments, "--heads", "all")
    assert "`--only` chooses" in command_line.the_sentence(capsys, "run", "asr_demo", "-u", "fbank", "--only", "asr")
