"""The voice conversion task: its plan, head, training and evaluation, on a tiny corpus and without the network."""

import gzip
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
import torchaudio
from torch import Tensor

from downstreams.voice_conversion import scoring
from downstreams.voice_conversion.config import PRESETS, HeadConfig, VoiceConversionConfig
from downstreams.voice_conversion.data import Plan
from downstreams.voice_conversion.head import MelHead
from downstreams.voice_conversion.loudness import PEAK, loudness, match_loudness, reference_loudness
from downstreams.voice_conversion.output import read_tags
from downstreams.voice_conversion.task import TASK, VoiceConversion
from speechssl.audio import read_audio
from speechssl.config import load_config
from speechssl.data.corpus import open_corpus
from speechssl.errors import SpeechsslError
from speechssl.task import FeatureConfig, TaskData
from speechssl.types import Utterance
from speechssl.vocoder import FeatureSource, MelConfig
from speechssl.vocoder.chunks import stretches
from speechssl.vocoder.folder import save_vocoder
from speechssl.vocoder.istft import IstftConfig, IstftVocoder

SMALL = replace(
    PRESETS["voice_conversion_demo"],
    language="aa", source_seconds=(0.8, 3.0), targets=3, reference_seconds=3.0, profile_utterances=2, dev_pairs=3,
    test_pairs=5, examples=2, vocoder="griffin_lim", head=HeadConfig(width=32, blocks=1, refining_blocks=1, kernel=3),
)  # fmt: skip


def _features(utterance: Utterance) -> Tensor:
    """Frames of 10 ms of a log spectrum, (T, 161)."""
    waveform = read_audio(utterance.path, sample_rate=16_000, start=utterance.start, duration=utterance.duration)
    frames = waveform.unfold(0, 320, 160) * torch.hann_window(320)
    return (torch.fft.rfft(frames).abs() + 1e-3).log()


def _data(corpus: Path, config: VoiceConversionConfig) -> tuple[VoiceConversion, TaskData, Plan]:
    task = TASK(config)
    data = task.prepare(open_corpus(corpus))
    plan: Plan = data.extra["plan"]
    return task, data, plan


def _train(task: VoiceConversion, data: TaskData, *, steps: int) -> tuple[MelHead, list[float]]:
    torch.manual_seed(0)
    head = task.build_head(161, 100.0, data)
    assert isinstance(head, MelHead)
    optimizer = torch.optim.Adam(head.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    batch = list(data.splits["train"])[:12]
    frames = [_features(u) for u in batch]
    lengths = torch.tensor([len(f) for f in frames])
    padded = torch.nn.utils.rnn.pad_sequence(frames, batch_first=True)
    losses = []
    for _ in range(steps):
        out = task.loss(head, padded, lengths, batch, data, generator)
        loss = out.loss_sum / out.sample_size
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return head.eval(), losses


def _predictions(task: VoiceConversion, head: MelHead, data: TaskData, split: str) -> dict[str, Any]:
    found = {}
    for utterance in data.splits[split]:
        frames = _features(utterance)
        found[utterance.id] = task.predict(head, frames[None], torch.tensor([len(frames)]), [utterance], data)[0]
    return found


class _FakeSpeaker:
    """Compares mean spectra."""

    def embed(self, waveform: Tensor) -> Tensor:
        spectrum = waveform.unfold(0, 512, 256).mul(torch.hann_window(512))
        return torch.nn.functional.normalize(torch.fft.rfft(spectrum).abs().mean(dim=0)[:100], dim=0)

    def profile(self, waveforms: list[Tensor]) -> Tensor:
        return torch.nn.functional.normalize(torch.stack([self.embed(w) for w in waveforms]).mean(dim=0), dim=0)


class _FakeWord:
    def normalize(self, text: str) -> str:
        return text.lower()

    def transcribe(self, waveform: Tensor) -> str:
        return "ba" if len(waveform) % 2 else "do ki"


class _FakeQuality:
    def score(self, waveform: Tensor) -> float:
        return 3.0


@pytest.fixture
def judges(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = scoring.Judges(_FakeSpeaker(), _FakeWord(), _FakeQuality())  # type: ignore[arg-type]  # the same methods
    monkeypatch.setattr(scoring, "load_judges", lambda: fake)


def test_presets_take_overrides() -> None:
    for preset in PRESETS.values():
        changed = load_config(preset, overrides=["k=8", "features.layers=[4]", "source_seconds=[1.0,2.0]"])
        assert (changed.k, tuple(changed.features.layers), tuple(changed.source_seconds)) == (8, (4,), (1.0, 2.0))


def test_plan_never_converts_from_speech_that_it_matches_against(tiny_corpus: Path) -> None:
    _, data, plan = _data(tiny_corpus, SMALL)
    train = {u.id for u in open_corpus(tiny_corpus).utterances("train")}
    for split, pairs in plan.pairs.items():
        needed = [u.id for u in data.splits[split]]
        assert len(needed) == len(set(needed))
        for pair in pairs:
            target = plan.targets[pair.target]
            reference = {u.id for u in target.reference}
            assert reference <= train
            assert pair.source.id not in train
            assert pair.source.labels["speaker"] != pair.target
            assert not reference & {u.id for u in (*target.profile, *target.held_out)}
            assert reference | {pair.source.id, target.held_out[0].id} <= set(needed)


def test_plan_is_the_same_every_time_and_has_no_pair_twice(tiny_corpus: Path) -> None:
    _, _, first = _data(tiny_corpus, SMALL)
    _, _, second = _data(tiny_corpus, SMALL)
    assert first.fingerprint() == second.fingerprint()
    assert len({p.id for p in first.pairs["test"]}) == len(first.pairs["test"]) == 5


def test_targets_of_other_splits_are_people_whom_training_never_heard(tiny_corpus: Path, tmp_path: Path) -> None:
    strangers = {"bb2", "bb3"}
    shutil.copytree(tiny_corpus, tmp_path / "corpus")
    for split in ("train", "dev", "test"):
        manifest = tmp_path / "corpus" / "manifests" / f"{split}.jsonl.gz"
        lines = gzip.decompress(manifest.read_bytes()).decode().splitlines(keepends=True)
        kept = [line for line in lines if not any(f'"{name}"' in line for name in strangers)]
        manifest.write_bytes(gzip.compress("".join(kept).encode()))
    config = replace(SMALL, target_splits=("speaker_dev", "speaker_test"))
    _, data, plan = _data(tmp_path / "corpus", config)
    assert set(plan.targets) == strangers  # aa2 and aa3 of speaker_dev say something in train
    assert not strangers & {u.labels["speaker"] for u in data.splits["train"]}
    for target in plan.targets.values():
        spoken = [u.id for u in (*target.reference, *target.profile, *target.held_out)]
        assert target.held_out and len(set(spoken)) == len(spoken)
    with pytest.raises(SpeechsslError, match=r"in 'speaker_dev' of .* beside"):
        _data(tmp_path / "corpus", replace(config, target_splits=("speaker_dev",)))


def test_corpus_without_the_language_is_an_error_that_says_so(tiny_corpus: Path) -> None:
    with pytest.raises(SpeechsslError, match="'en' with text and speaker"):
        _data(tiny_corpus, replace(SMALL, language="en"))


@pytest.mark.parametrize("frame_rate", [50.0, 100.0, 43.0])
def test_padding_does_not_change_the_mel(frame_rate: float) -> None:
    torch.manual_seed(0)
    head = MelHead(16, frame_rate, n_mels=80, mel_rate=22_050 / 256, config=HeadConfig(width=24, blocks=2)).eval()
    frames = [torch.randn(n, 16) for n in (31, 50, 7)]
    lengths = torch.tensor([len(f) for f in frames])
    batched = head(torch.nn.utils.rnn.pad_sequence(frames, batch_first=True), lengths)
    for row, one in enumerate(frames):
        alone = head(one[None], lengths[row : row + 1])[0]
        size = int(head.mel_lengths(lengths[row : row + 1]))
        assert alone.shape == (size, 80)
        torch.testing.assert_close(batched[row, :size], alone, atol=1e-5, rtol=0)


def test_mel_frames_stand_where_the_feature_frames_do() -> None:
    head = MelHead(1, 50.0, n_mels=1, mel_rate=100.0, config=HeadConfig(width=8, blocks=0, refining_blocks=0)).eval()
    ramp = torch.arange(20.0)[None, None]  # frame t stands at (t + 0.5) / 50 s
    found = head._to_mel_rate(ramp, torch.tensor([20]))[0, 0]
    expected = ((torch.arange(40) + 0.5) / 100 * 50 - 0.5).clamp(0, 19)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("frame_rate", [50.0, 100.0, 43.0])
def test_a_stretch_of_the_mel_is_that_of_the_whole(frame_rate: float) -> None:
    torch.manual_seed(0)
    head = MelHead(16, frame_rate, n_mels=80, mel_rate=22_050 / 256, config=HeadConfig(width=24, blocks=2)).eval()
    frames = torch.randn(400, 16)
    whole = head(frames[None], torch.tensor([400]))[0].detach()
    for size in (1, 37, 400):
        cut = stretches(torch.split(frames, 90), size=size, context=head.context)
        parts = [head.stretch(p.frames, begin=p.begin, first=p.first, last=p.last) for p in cut]
        torch.testing.assert_close(torch.cat(parts), whole, atol=1e-4, rtol=0)  # F.interpolate counts in float32
    short = stretches([frames], size=37, context=head.context // 2)
    parts = [head.stretch(p.frames, begin=p.begin, first=p.first, last=p.last) for p in short]
    assert float((torch.cat(parts) - whole).abs().detach().max()) > 1e-3  # the context is needed


def test_head_learns_and_prematching_trains_too(tiny_corpus: Path) -> None:
    for share in (0.0, 1.0):
        task, data, _ = _data(tiny_corpus, replace(SMALL, prematch=share))
        _, losses = _train(task, data, steps=40)
        assert losses[-1] < 0.5 * losses[0]


def test_without_judges_the_metric_is_the_mel_distance_and_training_improves_it(tiny_corpus: Path) -> None:
    task, data, _ = _data(tiny_corpus, replace(SMALL, judges="none"))
    assert (task.metric, task.higher_is_better) == ("mel_distance", False)
    distances = []
    for steps in (0, 60):
        head, _ = _train(task, data, steps=steps)
        found = task.evaluate(head, _predictions(task, head, data, "dev"), data, "dev", Path("unused"))
        distances.append(found.metrics["mel_distance"].value)
    assert distances[1] < 0.6 * distances[0]


@pytest.mark.usefixtures("judges")
def test_evaluation_reports_conversions_beside_their_bounds(tiny_corpus: Path, tmp_path: Path) -> None:
    task, data, plan = _data(tiny_corpus, SMALL)
    head, _ = _train(task, data, steps=40)
    dev = task.evaluate(head, _predictions(task, head, data, "dev"), data, "dev", tmp_path)
    assert task.metric in dev.metrics and not list(tmp_path.iterdir())
    test = task.evaluate(head, _predictions(task, head, data, "test"), data, "test", tmp_path)
    conditions = test.breakdown["similarity by condition"]
    assert list(conditions) == ["unconverted", "converted", "copy synthesis"]
    assert conditions["converted"] == test.metrics["similarity"]
    nearer = test.breakdown["nearer_target by condition"]
    assert nearer["converted"] == test.metrics["nearer_target"] and nearer["unconverted"].value == 0.0
    assert conditions["converted"].value > conditions["unconverted"].value  # the target's frames are what is heard
    assert set(test.breakdown["score by target"]) == {p.target for p in plan.pairs["test"]}
    lines = (tmp_path / test.files["pairs"]).read_text().splitlines()
    assert len(lines) == 1 + len(plan.pairs["test"])
    assert len(test.examples) == 2
    for kind in ("source", "target", "converted", "copy_synthesis"):
        assert soundfile.info(tmp_path / test.examples[0][kind]).frames > 8_000
    assert test.examples[0]["vocoder"] == "Griffin-Lim"
    for pair, example in zip(plan.pairs["test"], test.examples, strict=False):
        converted, rate = soundfile.read(tmp_path / example["converted"], dtype="float32")
        spoken = [
            torch.from_numpy(soundfile.read(u.path, dtype="float32")[0]) for u in plan.targets[pair.target].reference
        ]
        assert loudness(torch.from_numpy(converted), rate) == pytest.approx(reference_loudness(spoken, 16_000), abs=0.2)


def test_a_vocoder_of_another_recipe_gets_a_head_for_it(tiny_corpus: Path, tmp_path: Path) -> None:
    mel = MelConfig(sample_rate=16_000, hop=320, n_mels=40, high=7_600.0)
    torch.manual_seed(0)
    network = IstftVocoder(IstftConfig(mel=mel, width=16, inner=24, blocks=1)).eval()
    save_vocoder(network, tmp_path / "vocoder", weights="random")
    task, data, _ = _data(tiny_corpus, replace(SMALL, judges="none", vocoder=str(tmp_path / "vocoder")))
    head, losses = _train(task, data, steps=20)
    assert losses[-1] < 0.8 * losses[0]
    assert "mel_distance" in task.evaluate(head, _predictions(task, head, data, "dev"), data, "dev", tmp_path).metrics
    spoken = list(data.splits["train"])[:2]
    found = task.infer(head, {u.id: _features(u) for u in spoken}, spoken, task.restore({}), tmp_path)
    assert soundfile.info(found["converted"]).samplerate == 16_000
    assert "Synthetic" in read_tags(found["converted"])["comment"]


@pytest.fixture
def on_features(tmp_path: Path) -> VoiceConversionConfig:
    """kNN-VC with a vocoder on the features of these tests."""
    torch.manual_seed(0)
    mel = MelConfig(sample_rate=16_000, hop=160, n_fft=512)
    network = IstftVocoder(
        IstftConfig(mel=mel, features=161, width=16, inner=24, blocks=1), source=FeatureSource("spectrum", 3)
    )
    save_vocoder(network, tmp_path / "features", weights="random")
    features = FeatureConfig(layers=(3,))
    return replace(SMALL, vocoder=str(tmp_path / "features"), matching="raw", features=features)


@pytest.mark.usefixtures("judges")
def test_a_vocoder_on_features_makes_a_run_knn_vc_without_training(
    tiny_corpus: Path, tmp_path: Path, on_features: VoiceConversionConfig
) -> None:
    task, data, plan = _data(tiny_corpus, on_features)
    head = task.build_head(161, 100.0, data)
    assert not list(head.parameters())
    predictions = {u.id: _features(u) for u in data.splits["test"]}
    dev = task.evaluate(head, {u.id: _features(u) for u in data.splits["dev"]}, data, "dev", tmp_path / "run")
    assert task.metric in dev.metrics
    found = task.evaluate(head, predictions, data, "test", tmp_path / "run")
    assert list(found.breakdown["similarity by condition"]) == ["unconverted", "converted", "copy synthesis"]
    assert {"score", "mel_distance"} <= set(found.metrics)
    pair = plan.pairs["test"][0]
    reference = torch.cat([_features(u) for u in plan.targets[pair.target].reference])
    source = predictions[pair.source.id]
    cosine = torch.nn.functional.cosine_similarity(source[:, None], reference[None], dim=2)
    expected = task.vocoder(reference[cosine.topk(task.config.k, dim=1).indices].mean(dim=1)[None])[0]
    voice = task.method.voice(head, plan.targets[pair.target].reference, {u.id: _features(u) for u in _all(plan)})
    torch.testing.assert_close(task.speak(head, source, voice), expected, atol=1e-4, rtol=0)


def _all(plan: Plan) -> list[Utterance]:
    return [u for target in plan.targets.values() for u in target.reference]


MISFITS = {
    "space": ({"matching": "standardised"}, "matching=raw"),
    "layer": ({"features": FeatureConfig(layers=(2,))}, r"features\.layers=\[3\]"),
    "all layers": ({"features": FeatureConfig()}, r"features\.layers=\[3\]"),
    "path": ({"vocoder": "gone"}, "folder or checkpoint"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_settings_that_a_vocoder_cannot_go_with_are_told_first(
    case: str, tiny_corpus: Path, on_features: VoiceConversionConfig
) -> None:
    changes, says = MISFITS[case]
    with pytest.raises(SpeechsslError, match=says):
        _data(tiny_corpus, replace(on_features, **changes))


def test_features_that_a_vocoder_does_not_read_are_told(tiny_corpus: Path, on_features: VoiceConversionConfig) -> None:
    task, data, _ = _data(tiny_corpus, on_features)
    with pytest.raises(SpeechsslError, match="161 wide, but those of layer 3 are 80"):
        task.build_head(80, 100.0, data)
    with pytest.raises(SpeechsslError, match="100 frames per second"):
        task.build_head(161, 50.0, data)


@pytest.mark.usefixtures("judges")
def test_bounds_are_judged_once_per_corpus(tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, data, _ = _data(tiny_corpus, replace(SMALL, test_pairs=4))
    head, _ = _train(task, data, steps=1)
    predictions = _predictions(task, head, data, "test")
    first = task.evaluate(head, predictions, data, "test", tmp_path / "a")
    monkeypatch.setattr("downstreams.voice_conversion.bounds._judge_bounds", None)  # a second call would fail
    second = task.evaluate(head, predictions, data, "test", tmp_path / "b")
    assert first.breakdown == second.breakdown


def test_own_files_are_converted_first_to_the_voice_of_the_others(tiny_corpus: Path, tmp_path: Path) -> None:
    task, data, _ = _data(tiny_corpus, SMALL)
    head, _ = _train(task, data, steps=5)
    spoken = list(data.splits["train"])[:3]
    features = {u.id: _features(u) for u in spoken}
    found = task.infer(head, features, spoken, task.restore({}), tmp_path / "new")
    seconds = len(features[spoken[0].id]) / 100
    converted, rate = soundfile.read(found["converted"], dtype="float32")
    assert len(converted) / rate == pytest.approx(seconds, abs=0.05)
    voice = reference_loudness([read_audio(u.path) for u in spoken[1:]], 16_000)
    assert loudness(torch.from_numpy(converted), rate) == pytest.approx(voice, abs=0.2)
    assert found["source"] == spoken[0].path and len(found["voice"]) == 2
    with pytest.raises(SpeechsslError, match="two files or more"):
        task.infer(head, features, spoken[:1], data, tmp_path)


def _sine(amplitude: float, seconds: float, rate: int) -> Tensor:
    return amplitude * torch.sin(6.283185307 * 997 * torch.arange(round(seconds * rate)) / rate)


@pytest.mark.parametrize("rate", [16_000, 22_050, 48_000])
def test_loudness_is_that_of_the_standard(rate: int) -> None:
    # ITU-R BS.1770: a sine of 997 Hz at full scale in one channel has -3.01 LUFS; its filters are given at 48 kHz.
    assert loudness(_sine(1.0, 2.0, rate), rate) == pytest.approx(-3.01, abs=0.15)
    assert loudness(_sine(0.1, 0.1, rate), rate) == pytest.approx(-23.01, abs=0.3)  # shorter than a block
    padded = torch.cat([_sine(0.1, 2.0, rate), torch.zeros(10 * rate)])
    assert loudness(padded, rate) == pytest.approx(-23.01, abs=0.5)
    assert loudness(torch.zeros(rate), rate) is None


@pytest.mark.parametrize("rate", [16_000, 22_050])
def test_loudness_of_long_speech_is_that_of_torchaudio(rate: int) -> None:
    time = torch.arange(70 * rate) / rate
    level = 0.1 * (2 + torch.sin(0.3 * time)) * (torch.sin(0.11 * time) > -0.5)
    speech = level * torch.sin(800 * time + 5 * torch.sin(9 * time)) * 0.3
    assert loudness(speech, rate) == pytest.approx(float(torchaudio.functional.loudness(speech[None], rate)), abs=1e-3)


def test_matching_brings_speech_to_the_level_and_never_clips() -> None:
    rate = 22_050
    soft = _sine(0.01, 1.0, rate)
    assert loudness(match_loudness(soft, rate, -20.0), rate) == pytest.approx(-20.0, abs=0.05)
    click = soft.clone()
    click[5_000] = 0.1
    loud = match_loudness(click, rate, -20.0)  # the plain gain would bring the click to 1.4
    assert loudness(loud, rate) == pytest.approx(-20.0, abs=0.1)
    assert float(loud.abs().max()) <= PEAK
    assert float(loud[5_000]) >= PEAK * 0.99
    far = torch.cat([torch.arange(4_700), torch.arange(5_300, rate)])
    gain = float(loud[far].norm() / click[far].norm())
    assert torch.allclose(loud[far], gain * click[far], atol=1e-5)  # scaled, not distorted
    spike = 1e-4 * soft
    spike[5_000] = 0.5
    assert float(match_loudness(spike, rate, -10.0).abs().max()) <= PEAK
    assert loudness(match_loudness(spike, rate, -10.0), rate) < -20.0  # no crushing of what can't be made loud
    assert torch.equal(match_loudness(torch.zeros(rate), rate, -20.0), torch.zeros(rate))
    assert torch.equal(match_loudness(soft, rate, None), soft)
