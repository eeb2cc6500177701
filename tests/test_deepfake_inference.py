"""`infer` puts a user's files through the conditioning of deepfake detection, so that their scores compare."""

import dataclasses
import shutil
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file
from test_deepfake_backends import SMALL, drawn

from downstreams.deepfake_detection import inference
from downstreams.deepfake_detection.backends.build import build_detector
from downstreams.deepfake_detection.conditioning import MARGIN, windows
from downstreams.deepfake_detection.config import HEADS, PRESETS, ConditioningConfig, SplitSize, SpoofConfig
from downstreams.deepfake_detection.data import prepare_set
from downstreams.deepfake_detection.task import DeepfakeDetection
from downstreams.voice_conversion import artifacts
from downstreams.voice_conversion.config import PRESETS as CONVERSION
from downstreams.voice_conversion.task import VoiceConversion
from speechssl.audio import read_audio
from speechssl.config import load_config
from speechssl.data.corpus import open_corpus
from speechssl.errors import AudioError, ManifestError, SpeechsslError
from speechssl.extraction import extract
from speechssl.inference import infer
from speechssl.jobs import RunOptions
from speechssl.loading import load_upstream
from speechssl.metric.calibration import Calibration
from speechssl.runner import run
from speechssl.task import TaskData, TrainConfig
from speechssl.types import Utterance

RATE = 16_000
CONDITIONING = ConditioningConfig(seconds=0.6)
SPOOF = SpoofConfig(
    seen=("world",),
    unseen=("lpc",),
    train=SplitSize(real=12, per_attack=12),
    dev=SplitSize(real=6, per_attack=6),
    test=SplitSize(real=10, per_attack=8),
    conditioning=CONDITIONING,
    processes=1,
)


def _tones(seconds: float) -> torch.Tensor:
    """A buzz whose level rises and falls four times a second."""
    time = torch.arange(round(seconds * RATE)) / RATE
    buzz = torch.sin(6.2832 * 120 * torch.arange(1, 25)[:, None] * time).sum(dim=0)
    return 0.02 * buzz * (1.2 + torch.sin(6.2832 * 4 * time))


@pytest.fixture(scope="module")
def trained(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on the made set."""
    out = tmp_path_factory.mktemp("deepfake_run")
    pytest.importorskip("pyworld")
    config = dataclasses.replace(
        PRESETS["deepfake_detection_demo"],
        train=TrainConfig(steps=80, batch_seconds=12.0, evaluate_every=40),
        spoof=SPOOF,
    )
    options = RunOptions(cache_folder=str(out / "cache"))
    run("deepfake_detection", upstream="fbank", corpus=tiny_corpus, config=config, out=out, options=options)
    return out / "deepfake_detection/fbank/seed0"


def test_infer_scores_a_source_as_the_run_scored_what_was_made_of_it(trained: Path, tiny_corpus: Path) -> None:
    made = prepare_set(open_corpus(tiny_corpus), SPOOF)
    rows = [line.split("\t") for line in (trained / "scores.tsv").read_text().splitlines()[1:]]
    scores = {name: float(score) for name, _, _, score in rows}
    real = [u for u in made.utterances("test") if u.labels["attack"] == "bonafide"]
    files = {u.id: str(tiny_corpus / "audio" / f"{u.labels['original']}.flac") for u in real}
    found = infer(trained, list(files.values()), settings={"hop": "0.6"})
    given = np.array([found[files[u.id]]["score"] for u in real])
    expected = np.array([scores[u.id] for u in real])
    # The run heard 0.6 s from a random place, infer one stretch after the other; the noise differs too.
    assert np.abs(given - expected).mean() < 0.25 * np.std(list(scores.values()))


def test_level_and_silence_do_not_change_what_infer_says(trained: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    path = tiny_corpus / "audio/aa0-03.flac"
    plain = soundfile.read(path, dtype="float32")[0]
    silence = np.zeros(RATE // 2, dtype=np.float32)
    forms = {"plain": plain, "soft": 0.05 * plain, "silence": np.concatenate([silence, plain, silence[:777]])}
    forms["offset"] = 0.5 * forms["silence"] + 0.4
    for name, waveform in forms.items():
        soundfile.write(tmp_path / f"{name}.wav", waveform, RATE, subtype="FLOAT")
    found = infer(trained, [tmp_path / f"{name}.wav" for name in forms])
    scores = {name: found[str(tmp_path / f"{name}.wav")]["score"] for name in forms}
    assert scores["silence"] == pytest.approx(scores["plain"], abs=0.01)
    # The codec of the conditioning decides by rounded numbers; the scores of the test set spread by more than 4.
    for name in ("soft", "offset"):
        assert scores[name] == pytest.approx(scores["plain"], abs=0.05)


def test_less_speech_than_a_window_is_repeated_and_the_output_says_so(trained: Path, tmp_path: Path) -> None:
    padded = torch.cat([torch.zeros(RATE), _tones(0.5), torch.zeros(RATE)])
    soundfile.write(tmp_path / "short.wav", padded.numpy(), RATE)
    (found,) = infer(trained, [tmp_path / "short.wav"]).values()
    (window,) = found["curve"]
    assert window["start"] == pytest.approx(1.0, abs=0.03) and window["end"] == pytest.approx(1.5, abs=0.03)
    assert found["notes"] == ["0.50 s of speech are shorter than the window and were repeated to fill it."]


def test_zeros_around_a_file_do_not_change_its_score(trained: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    # Zeros of any number are cut off before anything is measured, so a file may be shifted by any number of samples.
    speech = soundfile.read(tiny_corpus / "audio/aa0-03.flac", dtype="float32")[0]
    shifts = {"plain": (0, 0), "delayed": (777, 0), "padded": (0, 8_001), "both": (RATE, RATE + 13)}
    for name, (before, after) in shifts.items():
        soundfile.write(tmp_path / f"{name}.wav", np.pad(speech, (before, after)), RATE, subtype="FLOAT")
    found = {name: infer(trained, [tmp_path / f"{name}.wav"])[str(tmp_path / f"{name}.wav")] for name in shifts}
    for name, (before, _) in shifts.items():
        assert found[name]["score"] == pytest.approx(found["plain"]["score"], abs=1e-4)
        starts = [window["start"] - before / RATE for window in found[name]["curve"]]
        assert starts == pytest.approx([window["start"] for window in found["plain"]["curve"]], abs=2e-3)


def test_the_made_half_of_a_recording_is_named(trained: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    test = prepare_set(open_corpus(tiny_corpus), SPOOF).utterances("test")
    parts = {attack: [u.path for u in test if u.labels["attack"] == attack][:4] for attack in ("bonafide", "world")}
    halves = {a: np.concatenate([soundfile.read(p, dtype="float32")[0] for p in paths]) for a, paths in parts.items()}
    soundfile.write(tmp_path / "half.wav", np.concatenate([halves["bonafide"], halves["world"]]), RATE)
    (found,) = infer(trained, [tmp_path / "half.wav"], settings={"hop": "0.15"}).values()
    border = len(halves["bonafide"]) / RATE
    named = sum(s["end"] - s["start"] for s in found["suspicious"])
    late = sum(max(0.0, s["end"] - max(s["start"], border)) for s in found["suspicious"])
    assert late > 0.5 * border and late > 0.7 * named  # most of the made half, and little else
    early = [w["probability_spoofed"] for w in found["curve"] if w["end"] <= border]
    made = [w["probability_spoofed"] for w in found["curve"] if w["start"] >= border]
    assert np.mean(early) < 0.4 and np.mean(made) > 0.6


SPEECHLESS = {
    "zeros": (np.zeros(RATE, dtype=np.float32), "is silent"),
    "hum": (1e-5 * np.sin(np.arange(RATE) / 9).astype(np.float32), "is silent"),
    "click": (np.pad(_tones(0.05).numpy(), RATE // 2), r"holds 0\.0\d s of sound"),
    "noise": (0.1 * np.random.default_rng(0).standard_normal(RATE).astype(np.float32), "holds no voiced sound"),
}


@pytest.mark.parametrize("kind", list(SPEECHLESS))
def test_a_file_without_speech_is_refused_in_one_sentence(trained: Path, tmp_path: Path, kind: str) -> None:
    waveform, reason = SPEECHLESS[kind]
    soundfile.write(tmp_path / f"{kind}.wav", waveform, RATE, subtype="FLOAT")
    with pytest.raises(AudioError, match=rf"^\S+{kind}\.wav {reason}[^.]*(\.\d[^.]*)*\.$"):
        infer(trained, [tmp_path / f"{kind}.wav"])


def test_a_folder_is_judged_whole_and_what_can_not_be_judged_is_named(trained: Path, tmp_path: Path) -> None:
    for name in ("b", "sub/a"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        soundfile.write(tmp_path / f"{name}.wav", _tones(1.6).numpy(), RATE)
    soundfile.write(tmp_path / "silent.wav", np.zeros(RATE), RATE)
    (tmp_path / "text.wav").write_text("no audio")
    found = infer(trained, [tmp_path], settings={"hop": "0.2"})
    assert list(found) == [str(tmp_path / f"{name}.wav") for name in ("b", "silent", "sub/a", "text")]
    judged, silent, twin, text = found.values()
    assert "is silent" in silent["error"] and "is a text file" in text["error"]
    assert judged["score"] == pytest.approx(twin["score"], abs=1e-4)
    assert 5 <= len(judged["curve"]) <= 6  # one every 0.2 s while 0.6 s are left, of which a pause may cut some off
    probabilities = [p["probability_spoofed"] for p in judged["curve"]]
    assert all(0.0 < p < 1.0 for p in probabilities)
    # Both fall or rise together: a higher score is more likely a person's.
    order = np.argsort([p["score"] for p in judged["curve"]])
    assert np.all(np.diff(np.array(probabilities)[order]) <= 1e-9)
    header, rows = DeepfakeDetection(PRESETS["deepfake_detection"]).table(found)
    assert len(rows) == 4 and {len(row) for row in rows} == {len(header)}


@pytest.mark.parametrize(
    ("settings", "message"), [({"hopp": "1"}, "'hop'"), ({"hop": "0"}, "above 0"), ({"prior": "1"}, "below 1")]
)
def test_settings_that_do_not_fit_are_refused(trained: Path, settings: dict[str, str], message: str) -> None:
    with pytest.raises(SpeechsslError, match=message):
        infer(trained, [trained / "scores.tsv"], settings=settings)


def test_heads_of_before_calibration_still_judge(trained: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    shutil.copytree(trained, old)
    weights = load_file(old / "head.safetensors")
    assert bool(weights.pop("head.calibration").isfinite().all())
    save_file(weights, old / "head.safetensors")
    soundfile.write(tmp_path / "a.wav", _tones(1.0).numpy(), RATE)
    new, before = (infer(folder, [tmp_path / "a.wav"])[str(tmp_path / "a.wav")] for folder in (trained, old))
    assert before["score"] == new["score"] and before["probability_spoofed"] is None
    assert "run it again" in before["notes"][-1]


def test_probabilities_are_those_of_the_calibration_and_the_prior() -> None:
    generator = np.random.default_rng(0)
    # Scores whose log-likelihood ratio is known: unit normals at +1 and -1 have the ratio 2 * score.
    found = inference.calibrate(generator.normal(1, 1, 20_000).tolist(), generator.normal(-1, 1, 20_000).tolist())
    assert (found.scale, found.offset) == pytest.approx((2.0, 0.0), abs=0.05)
    assert inference.probability(0.7, Calibration(2.0, 0.0), 0.5) == pytest.approx(1 / (1 + np.exp(1.4)))
    # Nine bona fide files to a spoofed one: the odds are nine times smaller.
    odds = np.exp(-1.4) / 9
    assert inference.probability(0.7, Calibration(2.0, 0.0), 0.1) == pytest.approx(odds / (1 + odds))
    apart = inference.calibrate([5.0, 6.0, 7.0], [-5.0, -6.0, -7.0])
    spoofed = inference.probability(-6.0, apart, 0.5)
    assert spoofed is not None and 0.6 < spoofed < 0.9  # three trials a side can't make anybody sure


def _curve(*scores: float, hop: float = 1.0) -> list[dict[str, float]]:
    return [
        {"start": hop * n, "end": hop * n + 2.0, "score": s, "probability_spoofed": 1 / (1 + np.exp(s))}
        for n, s in enumerate(scores)
    ]


def test_suspicious_stretches_are_merged_and_lie_where_the_windows_say() -> None:
    curve = _curve(3.0, 2.0, -1.0, -2.0, 1.5, -4.0)
    first, last = inference.suspicious(curve, threshold=0.0)
    # Windows of 2 s, one each second: each stands for the second around its middle, the last one for all to its end.
    assert (first["start"], first["end"], first["windows"]) == (2.5, 4.5, 2)
    expected = np.mean([1 / (1 + np.exp(s)) for s in (-1.0, -2.0)])
    assert first["probability_spoofed"] == pytest.approx(expected)
    assert (last["start"], last["end"]) == (5.5, 7.0)
    (whole,) = inference.suspicious(_curve(-1.0, -2.0), threshold=0.0)
    assert (whole["start"], whole["end"]) == (0.0, 3.0)
    apart = inference.suspicious(_curve(-1.0, -1.0, hop=5.0), threshold=0.0)  # silence between them
    assert [(s["start"], s["end"]) for s in apart] == [(0.0, 2.0), (5.0, 7.0)]
    assert inference.suspicious(_curve(1.0), threshold=0.0) == []


def test_a_detector_of_labelled_corpora_hears_files_as_they_are(tmp_path: Path) -> None:
    config = dataclasses.replace(PRESETS["deepfake_detection"], labels="corpus")
    speech = torch.cat([_tones(1.0), torch.zeros(RATE // 2), _tones(1.5)])
    soundfile.write(tmp_path / "a.wav", speech.numpy(), RATE, subtype="FLOAT")
    listening = inference.Listening(hop=0.5, window=1.0)
    parts = inference.prepare_files([Utterance("a", str(tmp_path / "a.wav"))], tmp_path, config, listening).utterances
    assert [(u.start, u.duration) for u in parts[:-1]] == [(s, 1.0) for s in (0.0, 0.5, 1.0, 1.5, 2.0)]
    assert parts[-1].labels["whole"] and (parts[-1].start, parts[-1].duration) == (0.0, 3.0)
    # Shifted by one hop, with anything before it, the same windows are heard, one later.
    soundfile.write(tmp_path / "b.wav", torch.cat([_tones(0.5), speech]).numpy(), RATE, subtype="FLOAT")
    later = inference.prepare_files([Utterance("b", str(tmp_path / "b.wav"))], tmp_path, config, listening).utterances
    for one, other in zip(parts[:-1], later[1:-1], strict=True):
        heard = [read_audio(u.path, sample_rate=RATE, start=u.start, duration=u.duration) for u in (one, other)]
        torch.testing.assert_close(heard[0], heard[1], atol=1e-6, rtol=0)
    windowed = load_config(config, overrides=["head.window=4.0"])
    (short,) = inference.prepare_files(parts[:1], tmp_path, windowed, inference.Listening()).utterances
    assert short.labels["repeated"] == pytest.approx(1.0)  # a network of 4 s hears the second four times


@pytest.mark.parametrize("head", list(HEADS))
def test_a_score_does_not_depend_on_what_it_is_padded_or_batched_with(head: str, tmp_path: Path) -> None:
    kind = HEADS[head][0].removeprefix("head.kind=")
    config = load_config(PRESETS["deepfake_detection"], overrides=[*HEADS[head], *SMALL[kind]])
    task, upstream = DeepfakeDetection(config), load_upstream("hubert_tiny", random_weights=0)
    network = drawn(build_detector(config, upstream.hidden_sizes[-1], frame_rate=upstream.frame_rate))
    files = []
    for number, seconds in enumerate((2.0, 0.6, 1.1)):
        files.append(Utterance(str(number), str(tmp_path / f"{number}.wav")))
        soundfile.write(files[-1].path, _tones(seconds).numpy(), RATE, subtype="FLOAT")
    data = TaskData({})

    def scores(group: Sequence[Utterance]) -> dict[str, float]:
        features = {u.id: states[-1] for u, states in extract(upstream, group, in_order=True)}
        padded = torch.nn.utils.rnn.pad_sequence([features[u.id] for u in group], batch_first=True)
        lengths = torch.tensor([len(features[u.id]) for u in group])
        with torch.no_grad():
            return dict(zip((u.id for u in group), task.predict(network, padded, lengths, group, data), strict=True))

    together = scores(files)
    for file in files:
        assert scores([file])[file.id] == pytest.approx(together[file.id], abs=1e-4, rel=1e-5)


def test_stretches_cover_a_recording_and_have_the_common_form() -> None:
    speech = _tones(5.0)
    found = windows(torch.cat([torch.zeros(8_000), speech, torch.zeros(8_000)]), CONDITIONING)
    starts = [start for start, _ in found]
    assert 0.5 - 0.03 <= starts[0] <= 0.5 + MARGIN
    assert all(b - a <= 0.6 + MARGIN + 1e-6 for a, b in pairwise(starts))
    assert starts[-1] + 0.6 + MARGIN >= 5.5 - 0.03
    dense = windows(torch.cat([torch.zeros(8_000), speech]), CONDITIONING, hop=0.15)
    assert len(dense) == 30 and [start for start, _ in dense] == sorted(start for start, _ in dense)
    for _, stretch in found:
        assert stretch.numel() == 9_600
        assert 10 * float(stretch.square().mean().log10()) == pytest.approx(-26.0, abs=0.01)


def test_a_detector_is_asked_about_the_examples_of_another_run(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "audio").mkdir()
    example = {"title": "two buzzes"}
    for number, clip in enumerate(artifacts.CLIPS):
        example[clip] = f"audio/{clip}.flac"
        soundfile.write(tmp_path / example[clip], _tones(1.0 + 0.2 * number).numpy(), RATE)
    (found,) = artifacts.detect([example], str(trained), tmp_path)
    alone = infer(trained, [tmp_path / example["converted"]])[str(tmp_path / example["converted"])]
    assert found["converted_detector"].startswith(f"{alone['verdict']}: {alone['score']:.2f}, ")
    assert {k for k in found if k.endswith("_detector")} == {f"{clip}_detector" for clip in artifacts.CLIPS}
    assert {k: found[k] for k in example} == example
    soundfile.write(tmp_path / example["source"], np.zeros(RATE), RATE)
    (found,) = artifacts.detect([example], str(trained), tmp_path)
    assert found["source_detector"].endswith("is silent: give a recording of speech.")


def test_a_detector_that_is_none_is_refused_before_anything_is_computed(tiny_corpus: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(CONVERSION["voice_conversion_demo"], vocoder="griffin_lim", detector=str(tmp_path))
    with pytest.raises(ManifestError, match="holds no finished run"):
        VoiceConversion(config).prepare(open_corpus(tiny_corpus))
