"""Finished detectors under disturbances, and what trivial cues alone would score."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from scipy.signal import welch
from test_deepfake_inference import RATE, _tones, trained

from downstreams.deepfake_detection.audit import CUES, SILENCE, TOGETHER, audited, shortcut_audit
from speechssl.augment.codec import CODECS, code
from speechssl.augment.disturbances import CLEAN, DISTURBANCES, disturb
from speechssl.cache import FeatureCache
from speechssl.cli import main
from speechssl.commands.robustness import score_robustness
from speechssl.data.corpus import open_corpus
from speechssl.errors import ConfigError, ManifestError, SpeechsslError, UnknownNameError
from speechssl.jobs import RunOptions, plain
from speechssl.report.collect import collect
from speechssl.report.cues import cues_table
from speechssl.report.robustness import robustness_tables
from speechssl.report.summary import group_runs
from speechssl.result import load_result
from speechssl.robustness import CHANGE, measure_robustness, read_robustness
from speechssl.runner import resolve_config
from speechssl.task import TaskData
from speechssl.types import Utterance

__all__ = ["trained"]  # the fixture


def _speech(seconds: float = 2.0) -> torch.Tensor:
    """A buzz with breath in it, so that there is something in every band."""
    noise = torch.randn(round(seconds * RATE), generator=torch.Generator().manual_seed(7))
    return _tones(seconds) + 0.003 * noise


def _after(condition: str, waveform: torch.Tensor) -> torch.Tensor:
    return disturb(waveform, condition, sample_rate=RATE, generator=torch.Generator().manual_seed(0))


def _power_above(waveform: torch.Tensor, hertz: float) -> float:
    frequencies, power = welch(waveform.numpy(), RATE, nperseg=512)
    return float(power[frequencies > hertz].sum() / power.sum())


@pytest.mark.parametrize("condition", list(DISTURBANCES))
def test_disturbances_are_the_same_each_time_and_stay_within_full_scale(condition: str) -> None:
    speech = torch.cat([torch.zeros(4_000), _speech()])
    once, again = _after(condition, speech), _after(condition, speech)
    assert torch.equal(once, again) and float(once.abs().max()) <= 1.0
    assert torch.equal(once, speech) == (condition == CLEAN)


def test_disturbances_do_what_they_say() -> None:
    speech = _speech()
    for condition, expected in (("noise_20", 20.0), ("noise_10", 10.0), ("noise_5", 5.0)):
        noise = _after(condition, speech) - speech
        assert 10 * float((speech.square().sum() / noise.square().sum()).log10()) == pytest.approx(expected, abs=0.01)
    assert _power_above(_after("narrowband", speech), 4_200) < 0.02 * _power_above(speech, 4_200)
    assert float(_after("reverberation", speech).square().sum()) == pytest.approx(
        float(speech.square().sum()), rel=1e-3
    )
    assert torch.equal(_after("delayed", speech), torch.cat([torch.zeros(1_600), speech]))
    assert torch.equal(_after("padded", speech), torch.cat([speech, torch.zeros(8_000)]))
    torch.testing.assert_close(_after("softer", speech), 0.1 * speech)
    silent = torch.cat([torch.zeros(4_000), speech, torch.zeros(4_000)])
    assert abs(_after("trimmed", silent).numel() - speech.numel()) < 800


@pytest.mark.parametrize("codec", list(CODECS))
def test_codecs_keep_length_and_delay_and_lose_more_the_more_they_compress(codec: str) -> None:
    speech = _speech()[:31_337]
    errors = []
    for compression in (0.2, 0.95):
        found = code(speech, codec, sample_rate=RATE, compression=compression)
        assert found.shape == speech.shape and found.dtype == torch.float32
        spectrum = torch.fft.rfft(found, n=65_536) * torch.fft.rfft(speech, n=65_536).conj()
        assert int(torch.fft.irfft(spectrum).argmax()) == 0
        errors.append(float((found - speech).square().mean()))
    assert errors[0] < errors[1] or codec == "narrowband"
    with pytest.raises(UnknownNameError, match="'opus'"):
        code(speech, "opuss", sample_rate=RATE)


@pytest.fixture(scope="module")
def tested(trained: Path, tiny_corpus: Path) -> Path:
    """The run, tested under three conditions."""
    options = RunOptions(cache_folder=str(trained.parents[2] / "cache"))
    measure_robustness(trained, open_corpus(tiny_corpus), conditions=["noise_5", "padded"], options=options)
    return trained


def test_the_clean_condition_is_the_result_of_the_run_and_noise_moves_scores(tested: Path) -> None:
    found, result = read_robustness(tested), load_result(tested)
    assert found is not None and list(found.conditions) == [CLEAN, "noise_5", "padded"]
    for name, value in result.test.metrics.items():
        assert found.conditions[CLEAN][name].value == pytest.approx(value.value, abs=1e-6)
    assert {"eer", "eer_all", "false_acceptance", "false_rejection"} <= set(found.conditions["noise_5"])
    assert found.conditions[CLEAN][CHANGE].value == 0.0 < found.conditions["noise_5"][CHANGE].value
    rows = (tested / "robustness/noise_5/scores.tsv").read_text().splitlines()
    clean = (tested / "scores.tsv").read_text().splitlines()
    assert len(rows) == len(clean) and rows != clean
    # One threshold for all conditions: that of the checkpoint.
    scores = np.array([float(row.split("\t")[3]) for row in rows[1:]])
    real = np.array([row.split("\t")[2] == "bonafide" for row in rows[1:]])
    from safetensors.torch import load_file

    threshold = float(load_file(tested / "head.safetensors")["head.threshold"])
    assert found.conditions["noise_5"]["false_rejection"].value == pytest.approx((scores[real] <= threshold).mean())
    assert found.conditions["noise_5"]["false_acceptance"].value == pytest.approx((scores[~real] > threshold).mean())


def test_a_second_test_computes_no_feature_again(tested: Path, tiny_corpus: Path) -> None:
    folder = tested.parents[2] / "cache"
    before = [entry.packs for entry in FeatureCache(folder).entries()]
    again = measure_robustness(
        tested, open_corpus(tiny_corpus), conditions=["padded", "noise_5"], options=RunOptions(cache_folder=str(folder))
    )
    assert [entry.packs for entry in FeatureCache(folder).entries()] == before
    kept = read_robustness(tested)
    assert kept is not None and kept.conditions == again.conditions


def test_a_test_of_an_earlier_run_is_no_test_of_the_one_that_took_its_place(tested: Path, tmp_path: Path) -> None:
    shutil.copytree(tested, tmp_path / "run")
    dataclasses.replace(load_result(tested), date="2000-01-01T00:00:00+00:00").save(tmp_path / "run")
    with pytest.raises(ManifestError, match="about an earlier run than"):
        read_robustness(tmp_path / "run")
    problems: list[str] = []
    runs = collect([tmp_path / "run"]).runs
    assert robustness_tables(group_runs([run.result for run in runs]), runs, problems) == [] and len(problems) == 1


def test_runs_that_can_not_be_tested_are_refused(tested: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    corpus = open_corpus(tiny_corpus)
    with pytest.raises(UnknownNameError, match="noise_5"):
        measure_robustness(tested, corpus, conditions=["noise_6"])
    with pytest.raises(ManifestError, match="another corpus"):
        measure_robustness(tested, dataclasses.replace(corpus, fingerprint="another"))
    with pytest.raises(SpeechsslError, match=r"no finished run|no result"):
        measure_robustness(tmp_path, corpus)
    for setting, says in (("precision=half", "float32 or bf16"), ("limit=0", "number of utterances")):
        with pytest.raises(ConfigError, match=says):
            score_robustness([tested], conditions=[], settings=[setting], device="cpu")


def test_the_command_writes_what_the_report_shows(
    tested: Path, tiny_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    for name in ("run", "other"):
        shutil.copytree(tested, tmp_path / name, ignore=shutil.ignore_patterns("robustness*"))
    other = dataclasses.replace(load_result(tested), task="asr", config=plain(resolve_config("asr_demo")[1]))
    other.save(tmp_path / "other")
    settings = [f"corpus={tiny_corpus}", "limit=20", f"cache={tested.parents[2] / 'cache'}"]
    with pytest.raises(SystemExit) as end:
        main(["score", "robustness", str(tmp_path), "-m", "louder,mp3", *(f"--set={s}" for s in settings)])
    assert end.value.code == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    assert "Robustness: EER" in printed and "Mp3" in printed and "False acceptance" in printed
    assert "Left out: 1 runs of tasks" in caplog.text and "(asr)" in caplog.text
    assert read_robustness(tmp_path / "other") is None
    found = read_robustness(tmp_path / "run")
    assert found is not None and list(found.conditions) == [CLEAN, "mp3", "louder"]
    assert found.conditions["mp3"][CHANGE].n == 20
    with pytest.raises(SystemExit) as end:
        main(["report", str(tmp_path / "run"), "-o", str(tmp_path / "page")])
    assert end.value.code == 0
    page = (tmp_path / "page/index.html").read_text()
    assert "Robustness: errors at one threshold" in page and 'class="bar"' in page


def test_tables_hold_the_measured_numbers(tested: Path) -> None:
    runs = collect([tested]).runs
    groups = group_runs([run.result for run in runs])
    measured = read_robustness(tested)
    assert measured is not None
    first, second = robustness_tables(groups, runs, [])
    shown = {row[0].text: row[1].text for row in first.rows}
    value = 100 * measured.conditions["noise_5"]["eer"].value
    assert float(shown["Noise 5"].removesuffix(" %")) == pytest.approx(value, abs=0.051)
    assert [cell.text for cell in second.header[1:]][:1] == ["EER all ↓"]
    cues = cues_table(groups)
    assert cues is not None and {row[0].text.lower() for row in cues.rows} == {
        n.lower() for n in (*CUES, SILENCE, TOGETHER)
    }
    for row in cues.rows:
        rate = float(row[2].text.removesuffix(" %")) / 100
        assert row[2].bar == pytest.approx(2 * abs(0.5 - rate), abs=2e-3)


def _planted(folder: Path, count: int) -> TaskData:
    """The same buzz in both classes; real files are longer, and their silence is brighter than that of spoofed ones."""
    generator = torch.Generator().manual_seed(0)
    splits: dict[str, list[Utterance]] = {}
    for split in ("train", "dev", "test"):
        splits[split] = []
        for number in range(2 * count):
            real = number % 2 == 0
            noise = 1e-3 * torch.randn(RATE, generator=generator)
            dull = torch.nn.functional.avg_pool1d(noise[None], 9, stride=1, padding=4)[0]
            speech = _tones(0.5 + 0.3 * float(torch.rand((), generator=generator)) + 0.4 * real)
            waveform = torch.cat([noise if real else dull, speech * (0.5 + float(torch.rand((), generator=generator)))])
            path = folder / f"{split}{number}.wav"
            soundfile.write(path, waveform.numpy(), RATE, subtype="FLOAT")
            labels = {"attack": "bonafide" if real else "tts", "seen": True}
            splits[split].append(Utterance(path.stem, str(path), labels=labels))
    return TaskData(splits)


def test_the_audit_finds_planted_cues_and_their_direction(tmp_path: Path) -> None:
    data = _planted(tmp_path, 40)
    cues = shortcut_audit(data)
    assert cues["duration"].rate < 0.05 and cues["duration"].says == "longer is real"
    assert cues[SILENCE].rate < 0.05 and cues[TOGETHER].rate < 0.05
    # Three standard deviations of a rate over 80 utterances are 0.168.
    assert abs(cues["level of silence"].rate - 0.5) > 0.3  # what is dull is softer too
    assert abs(cues["leading silence"].rate - 0.5) < 0.17
    turned = dataclasses.replace(data, splits={**data.splits, "test": [_turned(u) for u in data.splits["test"]]})
    assert shortcut_audit(turned)["duration"].rate > 0.95  # on test it is the other way round, and this shows


def _turned(utterance: Utterance) -> Utterance:
    attack = "tts" if utterance.labels["attack"] == "bonafide" else "bonafide"
    return dataclasses.replace(utterance, labels={**utterance.labels, "attack": attack})


def test_an_audit_is_kept_until_the_audio_is_another(tmp_path: Path) -> None:
    data = _planted(tmp_path, 4)
    found = audited(data, tmp_path)
    path = tmp_path / "audit.json"
    kept = json.loads(path.read_text())
    kept["cues"]["duration"]["rate"] = 0.123
    path.write_text(json.dumps(kept))
    assert audited(data, tmp_path)["duration"].rate == 0.123
    fewer = dataclasses.replace(data, splits={**data.splits, "test": data.splits["test"][:6]})
    assert audited(fewer, tmp_path)["duration"].n == 6
    path.write_text("{")
    assert audited(data, tmp_path) == found


def test_a_task_whose_labels_are_in_time_is_not_disturbed(
    tested: Path, tiny_corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("downstreams.deepfake_detection.task.DeepfakeDetection.labels_whole", False)
    with pytest.raises(ConfigError, match="would not fit audio"):
        measure_robustness(tested, open_corpus(tiny_corpus))
