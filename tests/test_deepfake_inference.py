"""`infer` puts a user's files through the conditioning of deepfake detection, so that their scores compare."""

import dataclasses
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from downstreams.deepfake_detection.conditioning import MARGIN, windows
from downstreams.deepfake_detection.config import PRESETS, ConditioningConfig, SplitSize, SpoofConfig
from downstreams.deepfake_detection.data import prepare_set
from downstreams.voice_conversion import artifacts
from downstreams.voice_conversion.config import PRESETS as CONVERSION
from downstreams.voice_conversion.task import VoiceConversion
from speechssl.data.corpus import open_corpus
from speechssl.errors import AudioError, ManifestError
from speechssl.inference import infer
from speechssl.jobs import RunOptions
from speechssl.runner import run
from speechssl.task import TrainConfig

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
    found = infer(trained, list(files.values()))
    given = np.array([found[files[u.id]]["score"] for u in real])
    expected = np.array([scores[u.id] for u in real])
    # The run heard 0.6 s from a random place, infer all stretches; the noise differs too.
    assert np.abs(given - expected).mean() < 0.25 * np.std(list(scores.values()))


def test_level_and_silence_do_not_change_what_infer_says(trained: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    path = tiny_corpus / "audio/aa0-03.flac"
    plain = soundfile.read(path, dtype="float32")[0]
    silence = np.zeros(RATE // 2, dtype=np.float32)
    forms = {"plain": plain, "soft": 0.05 * plain, "silence": np.concatenate([silence, plain, silence[:777]])}
    for name, waveform in forms.items():
        soundfile.write(tmp_path / f"{name}.wav", waveform, RATE, subtype="FLOAT")
    found = infer(trained, [tmp_path / f"{name}.wav" for name in forms])
    scores = {name: found[str(tmp_path / f"{name}.wav")]["score"] for name in forms}
    assert scores["silence"] == pytest.approx(scores["plain"], abs=0.01)
    assert scores["soft"] == pytest.approx(scores["plain"], abs=0.01)


def test_a_file_with_less_speech_than_a_stretch_is_refused(trained: Path, tmp_path: Path) -> None:
    padded = torch.cat([torch.zeros(RATE), _tones(0.5), torch.zeros(RATE)])
    soundfile.write(tmp_path / "short.wav", padded.numpy(), RATE)
    with pytest.raises(AudioError, match=r"short\.wav holds no 0\.6 s of speech"):
        infer(trained, [tmp_path / "short.wav"])


def test_stretches_cover_a_recording_and_have_the_common_form() -> None:
    speech = _tones(5.0)
    found = windows(torch.cat([torch.zeros(8_000), speech, torch.zeros(8_000)]), CONDITIONING)
    starts = [start for start, _ in found]
    assert starts[0] == pytest.approx(0.5, abs=0.03)
    assert all(b - a <= 0.6 + 1e-6 for a, b in pairwise(starts))
    assert starts[-1] + 0.6 + MARGIN >= 5.5 - 0.03
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


def test_a_detector_that_is_none_is_refused_before_anything_is_computed(tiny_corpus: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(CONVERSION["voice_conversion_demo"], vocoder="griffin_lim", detector=str(tmp_path))
    with pytest.raises(ManifestError, match="holds no finished run"):
        VoiceConversion(config).prepare(open_corpus(tiny_corpus))
