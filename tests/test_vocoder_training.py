"""Training of vocoders: what is learnt, what is written, exact resumption, and one sentence for what can't be."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file
from torch import Tensor

from speechssl import cli
from speechssl.audio import read_audio
from speechssl.data.corpus import open_corpus
from speechssl.errors import ConfigError, SpeechsslError, UnknownNameError
from speechssl.loading import load_upstream
from speechssl.train.watch import TrainingError
from speechssl.types import Utterance
from speechssl.vocoder import data as vocoder_data
from speechssl.vocoder import load_vocoder, log_mel, synthesise
from speechssl.vocoder import train as training
from speechssl.vocoder.config import PRESETS, VocoderTrainConfig
from speechssl.vocoder.frames import FrameReader, find_neighbours
from speechssl.vocoder.run import VocoderOutcome, train_vocoder
from speechssl.vocoder.train import learning_rate

LOOP = ("train.batch_size=2", "train.log_every=1", "train.threads=1", "train.accelerator=cpu", "train.num_workers=0")
GAN = (
    *LOOP, "model.channels=16", "model.block_kernels=[3]", "model.dilations=[1]", "train.segment=1280",
    "train.discriminator_divisor=8",
)  # fmt: skip
MEL = (*GAN, "model.mel.sample_rate=16000")
ISTFT = (*LOOP, "model.width=32", "model.inner=48", "model.blocks=2", "train.segment=6400")

FBANK = ("model.mel.hop=160", "model.mel.n_fft=512")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPEECHSSL_CACHE", str(tmp_path_factory.getbasetemp() / "vocoder_cache"))


def _log(folder: Path) -> list[dict[str, Any]]:
    timed = ("seconds", "device_use", "audio_per_second")
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in timed} for line in lines]


def _manifest(folder: Path, waveforms: list[np.ndarray], *, rate: int = 16_000) -> Path:
    from lhotse import CutSet, Recording

    cuts = []
    for number, waveform in enumerate(waveforms):
        path = folder / f"{number}.wav"
        soundfile.write(path, waveform, rate)
        cuts.append(Recording.from_file(path).to_cut())
    CutSet.from_cuts(cuts).to_file(folder / "cuts.jsonl.gz")
    return folder / "cuts.jsonl.gz"


def _vowel(seconds: float = 1.2) -> np.ndarray:
    time = np.arange(round(seconds * 16_000)) / 16_000
    tones = sum(np.sin(2 * np.pi * 140 * n * time) / n for n in range(1, 12))
    return 0.1 * np.asarray(tones) * (0.7 + 0.3 * np.sin(2 * np.pi * 3 * time))


@pytest.mark.parametrize("preset", ["istft_demo", "hifigan_v1"])
def test_some_steps_lower_the_mel_distance_of_one_utterance(preset: str, tmp_path: Path) -> None:
    manifest = _manifest(tmp_path, [_vowel()])
    alone = ("train.segment=5120", "train.adversarial_from=null", "train.learning_rate=2e-3")
    settings = (*ISTFT, "train.steps=25") if preset == "istft_demo" else (*MEL, *alone, "train.steps=60")
    train_vocoder(preset, corpus=manifest, output=tmp_path / "out", overrides=settings)
    mel = [line["mel"] for line in _log(tmp_path / "out")]
    assert np.mean(mel[-3:]) < 0.75 * np.mean(mel[:3])
    vocoder = load_vocoder(tmp_path / "out")
    heard = torch.tensor(_vowel(), dtype=torch.float32)
    frames = log_mel(0.95 * heard[None] / heard.abs().max(), 16_000, vocoder.mel)[0]
    waveform = synthesise(vocoder, frames)
    assert waveform.shape == (len(frames) * vocoder.mel.hop,)
    assert float(waveform.abs().max()) <= 1.0
    again = log_mel(waveform[None], 16_000, vocoder.mel)[0]
    # As far from the truth as the log says, where it is about segments and all frequencies.
    assert float((again - frames).abs().mean()) < 2 * np.mean(mel[-3:])


def test_every_term_is_logged_and_discriminators_come_in_when_they_should(tiny_corpus: Path, tmp_path: Path) -> None:
    out = train_vocoder(
        "hifigan_v1",
        corpus=tiny_corpus,
        output=tmp_path,
        overrides=(*MEL, "train.steps=3", "train.adversarial_from=1", "train.stft_weight=2"),
    )
    lines = _log(tmp_path)
    assert out.finished and [line["step"] for line in lines] == [1, 2, 3]
    assert "adversarial" not in lines[0] and "discriminator" not in lines[0]
    for line in lines[1:]:
        expected = 45 * line["mel"] + 2 * line["stft"] + line["adversarial"] + 2 * line["feature_matching"]
        assert line["loss"] == pytest.approx(expected, rel=1e-5)
        assert line["discriminator"] > 0 and line["discriminator_grad_norm"] > 0 and line["silent"] == 0
    assert list((tmp_path / "tensorboard").iterdir())
    assert "3 of 3 steps" in json.loads((tmp_path / "config.json").read_text())["weights"]


@pytest.mark.parametrize("preset", ["hifigan_v1", "istft_demo"])
def test_an_interrupted_run_ends_as_the_undisturbed_one(
    preset: str, tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = (*(MEL if preset == "hifigan_v1" else ISTFT), "train.steps=4", "train.save_every=2", "train.log_every=3")

    def run(folder: str) -> VocoderOutcome:
        return train_vocoder(preset, corpus=tiny_corpus, output=tmp_path / folder, overrides=settings)

    run("whole")
    update = training.VocoderTraining._update

    def disturbed(self: training.VocoderTraining, batches: Any) -> None:
        if self.step == 3:
            raise RuntimeError("power cut")
        update(self, batches)
        if self.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(training.VocoderTraining, "_update", disturbed)
    stopped = run("parts")
    assert (stopped.step, stopped.finished) == (1, False)
    with pytest.raises(RuntimeError, match="power cut"):
        run("parts")
    monkeypatch.setattr(training.VocoderTraining, "_update", update)
    assert run("parts").finished
    for file in ("model.safetensors", "checkpoints/step-00000004/tensors.safetensors"):
        one, two = load_file(tmp_path / "whole" / file), load_file(tmp_path / "parts" / file)
        assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    assert _log(tmp_path / "whole") == _log(tmp_path / "parts")


def test_a_run_goes_on_only_with_the_settings_that_it_was_begun_with(tiny_corpus: Path, tmp_path: Path) -> None:
    def run(*settings: str) -> VocoderOutcome:
        return train_vocoder("hifigan_v1", corpus=tiny_corpus, output=tmp_path, overrides=(*MEL, *settings))

    run("train.steps=1")
    assert run("train.steps=2").step == 2  # the rate of a step does not depend on how many there will be
    with pytest.raises(ConfigError, match=r"train.mel_weight=45.0, not 40.0"):
        run("train.steps=3", "train.mel_weight=40")


class _Frames:
    """Features of one layer by utterance, in memory."""

    frame_rate, layers, num_layers = 50.0, (0,), 1

    def __init__(self, arrays: dict[str, Tensor]) -> None:
        self._arrays = arrays
        self.hidden_size = next(iter(arrays.values())).size(1)

    def get(self, name: str) -> Tensor:
        return self._arrays[name][None]


def test_prematched_frames_are_means_of_the_nearest_of_the_speakers_other_utterances(
    caplog: pytest.LogCaptureFixture,
) -> None:
    generator = torch.Generator().manual_seed(0)
    spoken = {"a1": "a", "b1": "b", "a2": "a", "c1": "c", "a3": "a", "b2": "b"}
    arrays = {name: torch.randn(5 + 3 * i, 6, generator=generator) for i, name in enumerate(spoken)}
    utterances = [Utterance(name, "x.wav", labels={"speaker": speaker}) for name, speaker in spoken.items()]
    features: Any = _Frames(arrays)
    found = find_neighbours(features, utterances, k=3, least=10, device=torch.device("cpu"))
    reader = FrameReader(features, list(spoken), found)
    assert "'c'" in caplog.text and "'b'" in caplog.text and "'a'" not in caplog.text  # b1 has 20 others, b2 only 8
    for number, (name, speaker) in enumerate(spoken.items()):
        others = [arrays[n] for n, s in spoken.items() if s == speaker and n != name]
        own = arrays[name]
        assert reader.length(number) == len(own)
        if sum(map(len, others)) < 10:
            torch.testing.assert_close(reader.read(number, 1, 3), own[1:4], atol=1e-6, rtol=0)
            continue
        pool = torch.cat(others)
        for t in range(len(own)):
            similarity = [float(torch.cosine_similarity(own[t], frame, dim=0)) for frame in pool]
            best = sorted(range(len(pool)), key=similarity.__getitem__)[-3:]
            expected = sum(pool[i] for i in best) / 3
            torch.testing.assert_close(reader.read(number, t, 1)[0], expected, atol=1e-6, rtol=0)


def test_prematching_wants_speakers_that_say_enough() -> None:
    features: Any = _Frames({"x": torch.randn(9, 4), "y": torch.randn(9, 4)})
    with pytest.raises(SpeechsslError, match="'x' has no 'speaker'"):
        find_neighbours(features, [Utterance("x", "x.wav")], k=2, least=1, device=torch.device("cpu"))
    apart = [Utterance(n, "x.wav", labels={"speaker": n}) for n in ("x", "y")]
    with pytest.raises(SpeechsslError, match=r"lower `train\.least_pool`"):
        find_neighbours(features, apart, k=2, least=1, device=torch.device("cpu"))


@pytest.mark.parametrize("prematch", [False, True])
def test_a_vocoder_of_features_says_which_and_reads_them(
    prematch: bool, tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "hubert_tiny:random"
    settings = (*GAN, "model.projection=12", "train.steps=2", "train.least_pool=0.5")

    def run() -> VocoderOutcome:
        return train_vocoder(
            "knnvc", corpus=tiny_corpus, output=tmp_path, upstream=name, layer=2, prematch=prematch,
            match_layer=1 if prematch else None, overrides=settings,
        )  # fmt: skip

    compared = []
    search = vocoder_data.find_neighbours

    def watched(features: Any, *arguments: Any, **settings: Any) -> torch.Tensor:
        compared.append(features.get("aa0-00")[0])
        return search(features, *arguments, **settings)

    monkeypatch.setattr(vocoder_data, "find_neighbours", watched)
    run()
    vocoder = load_vocoder(tmp_path)
    upstream = load_upstream("hubert_tiny", random_weights=0)
    assert vocoder.source is not None
    assert (vocoder.source.upstream, vocoder.source.layer, vocoder.source.prematched) == (name, 2, prematch)
    assert vocoder.source.fingerprint == upstream.fingerprint()
    waveform = torch.tensor(_vowel(), dtype=torch.float32)
    assert vocoder.source.matching == (1 if prematch else None)
    spoken, _ = soundfile.read(tiny_corpus / "audio" / "aa0-00.flac", dtype="float32")
    (first,) = upstream(torch.from_numpy(spoken)[None], layers=[1]).hidden_states[1]
    assert len(compared) == int(prematch)
    for frames in compared:
        torch.testing.assert_close(frames.float(), first, atol=0.05, rtol=0.02)  # kept in bfloat16
    out = upstream(waveform[None], torch.tensor([len(waveform)]), layers=[2])
    frames = out.hidden_states[2][0]
    assert synthesise(vocoder, frames).shape == (len(frames) * 320,)
    # Neither features nor neighbours are computed again.
    monkeypatch.setattr("speechssl.cache._compute", None)
    monkeypatch.setattr("speechssl.vocoder.data.find_neighbours", None)
    assert run().step == 2


def test_frames_of_a_segment_are_those_of_its_samples(tiny_corpus: Path, tmp_path: Path) -> None:
    from speechssl.vocoder.data import VocoderData, open_segments
    from speechssl.vocoder.run import _request

    request = _request("hubert_tiny:random", 0, False, None)
    assert request is not None
    config = PRESETS["knnvc"]
    data: VocoderData = open_segments(
        [tiny_corpus], split="train", config=config, request=request, folder=tmp_path, device=torch.device("cpu")
    )
    batch = data.dataset[next(b for b in data.stream() if len(b.indices) == 16)]
    segments = data.segments(batch)
    assert segments.waveform.shape == (16, 7040) and segments.frames is not None
    assert segments.frames.shape[:2] == (16, 22)
    assert len({start for _, start in batch.places}) > 4
    originals = {u.id: u for u in open_corpus(tiny_corpus).utterances("train")}
    for row, (item, start) in enumerate(batch.places):
        assert start % 320 == 0
        whole = read_audio(originals[data.dataset.utterances[item].id].path)
        torch.testing.assert_close(segments.waveform[row], whole[start : start + 7040], atol=1e-4, rtol=0)
        with torch.inference_mode():
            states = request.upstream(whole[None], torch.tensor([len(whole)]), layers=[0]).hidden_states[0][0]
        wanted = states[start // 320 : start // 320 + 22]
        # The cache rounds to bfloat16.
        torch.testing.assert_close(segments.frames[row], wanted, atol=1e-5, rtol=2**-8)


def test_utterances_are_brought_to_one_level(tmp_path: Path) -> None:
    from speechssl.vocoder.data import open_segments

    manifest = _manifest(tmp_path, [_vowel(), 0.1 * _vowel(), np.zeros(20_000)])
    config = PRESETS["istft_demo"]
    data = open_segments(
        [manifest], split="train", config=config, request=None, folder=tmp_path, device=torch.device("cpu")
    )
    for _ in range(2):
        segments = data.segments(data.dataset[next(iter(data.stream()))])
        levels = sorted(segments.waveform.abs().amax(dim=1).tolist())
        assert segments.silent == 1 and levels[0] == 0.0
        assert 0.9 < levels[1] <= 0.951 and 0.9 < levels[2] <= 0.951


def _refused(tmp_path: Path, manifest: Path | str, *settings: str, preset: str = "istft_demo", **named: Any) -> str:
    with pytest.raises(SpeechsslError) as told:
        train_vocoder(preset, corpus=manifest, output=tmp_path / "out", overrides=(*LOOP, *settings), **named)
    return str(told.value)


def test_what_cannot_be_trained_on_is_told_in_a_sentence(tmp_path: Path) -> None:
    for folder in ("short", "silent", "low", "fine"):
        (tmp_path / folder).mkdir()
    short = _manifest(tmp_path / "short", [_vowel(0.5)])
    assert "as long as a segment of 1.00 s (the longest has 0.50 s)" in _refused(tmp_path, short)
    low = _manifest(tmp_path / "low", [_vowel()], rate=8_000)
    assert "8000 Hz, below the 16000 Hz" in _refused(tmp_path, low)
    silent = _manifest(tmp_path / "silent", [np.zeros(20_000)] * 2)
    small = (*ISTFT, "train.steps=2", "train.log_every=2")
    with pytest.raises(TrainingError, match="All segments up to step 2 are silent"):
        train_vocoder("istft_demo", corpus=silent, output=tmp_path / "quiet", overrides=small)
    fine = _manifest(tmp_path / "fine", [_vowel()])
    assert "multiple of mel.hop = 320" in _refused(tmp_path, fine, "train.segment=16001")
    assert "above mel.n_fft = 1024" in _refused(tmp_path, fine, "train.segment=640")
    assert "'knnvc' reads features" in _refused(tmp_path, fine, preset="knnvc")
    assert "`--layer` must say" in _refused(tmp_path, fine, upstream="fbank")
    assert "name their `--upstream`" in _refused(tmp_path, fine, prematch=True)
    assert "`model.mel.hop` must be 160" in _refused(tmp_path, fine, upstream="fbank", layer=0)
    assert "leave it out" in _refused(tmp_path, fine, "model.features=3", upstream="fbank", layer=0)
    with pytest.raises(UnknownNameError, match="'istft_demo'"):
        train_vocoder("istft_dem", corpus=fine, output=tmp_path / "out")
    with pytest.raises(ConfigError, match="must be 1, 2, 4 or 8"):
        VocoderTrainConfig(discriminator_divisor=3)
    with pytest.raises(ConfigError, match="must be positive"):
        VocoderTrainConfig(adversarial_from=None, mel_weight=0.0)


def test_archives_and_several_corpora_are_trained_on_too(shar: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    settings = (*ISTFT, "train.steps=2")
    out = train_vocoder("istft_demo", corpus=[shar, tiny_corpus], output=tmp_path / "out", overrides=settings)
    assert out.finished and out.values["audio_seconds"] == pytest.approx(0.8, abs=0.41)
    folder = tmp_path / "frames"
    train_vocoder("istft_demo", corpus=shar, output=folder, upstream="fbank", layer=0, overrides=(*settings, *FBANK))
    assert load_vocoder(folder).source is not None


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = _manifest(tmp_path, [_vowel()])
    loss = training.mel_loss
    calls = iter([1.0, 1.0, float("nan")])
    monkeypatch.setattr(training, "mel_loss", lambda *a: loss(*a) * next(calls))
    with pytest.raises(TrainingError, match="not finite at step 3"):
        train_vocoder(
            "istft_demo",
            corpus=manifest,
            output=tmp_path / "out",
            overrides=(*ISTFT, "train.steps=3", "train.save_every=2"),
        )
    assert [p.name for p in (tmp_path / "out" / "checkpoints").iterdir()] == ["step-00000002"]


def test_the_rate_falls_by_epoch_or_along_a_cosine() -> None:
    config = VocoderTrainConfig()
    assert learning_rate(99, 3, config) == pytest.approx(2e-4 * 0.999**3)
    cosine = VocoderTrainConfig(schedule="cosine", steps=10)
    assert [learning_rate(s, 0, cosine) for s in (0, 5, 10)] == pytest.approx([2e-4, 1e-4, 0.0])


def test_the_command_trains_and_prints_a_table(
    tiny_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["vocoder", "istft_demo", "--corpus", str(tiny_corpus), "-o", str(tmp_path), *ISTFT, "train.steps=1"]
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    assert not stop.value.code
    assert "at step 1" in capsys.readouterr().out
    assert load_vocoder(tmp_path).name == f"istft ({tmp_path.name})"
