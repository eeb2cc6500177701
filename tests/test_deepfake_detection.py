"""Deepfake detection: the conditioning leaves no shortcut, the set is what it says, the measures are right."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torchaudio.functional import resample

from downstreams.deepfake_detection import data as making
from downstreams.deepfake_detection.attacks import Attack, Source, find_attack, list_attacks
from downstreams.deepfake_detection.attacks.espeak import open_espeak
from downstreams.deepfake_detection.attacks.lpc import lpc_vocode
from downstreams.deepfake_detection.attacks.piper import phoneme_ids
from downstreams.deepfake_detection.audit import CUES, shortcut_audit
from downstreams.deepfake_detection.conditioning import finish, take_segment, trim_silence
from downstreams.deepfake_detection.config import PRESETS, ConditioningConfig, DeepfakeConfig, SplitSize, SpoofConfig
from downstreams.deepfake_detection.head import DetectionHead
from downstreams.deepfake_detection.plan import variants
from downstreams.deepfake_detection.task import DeepfakeDetection, focal_loss
from speechssl.config import load_config
from speechssl.data.corpus import Corpus, open_corpus
from speechssl.errors import ConfigError, SpeechsslError, UnknownNameError
from speechssl.metric.detection import equal_error_rate
from speechssl.task import TaskData
from speechssl.types import Utterance

RATE = 16_000
CONDITIONING = ConditioningConfig(seconds=0.6)
SPOOF = SpoofConfig(
    seen=("world", "griffin_lim"),
    unseen=("lpc",),
    train=SplitSize(real=8, per_attack=6),
    dev=SplitSize(real=6, per_attack=4),
    test=SplitSize(real=10, per_attack=8),
    conditioning=CONDITIONING,
    processes=1,
)


@pytest.fixture(scope="module")
def made(tiny_corpus: Path) -> Corpus:
    pytest.importorskip("pyworld")
    return making.prepare_set(open_corpus(tiny_corpus), SPOOF)


@pytest.fixture(scope="module")
def task_data(made: Corpus) -> TaskData:
    splits = {split: made.utterances(split) for split in ("train", "dev", "test")}
    return TaskData(splits, {"cues": shortcut_audit(TaskData(splits))})


def _voice(generator: torch.Generator, seconds: float) -> torch.Tensor:
    """A buzz with syllables: something that trimming and levels can work on."""
    time = torch.arange(round(seconds * RATE)) / RATE
    pitch = 90 + 120 * float(torch.rand((), generator=generator))
    harmonics = torch.arange(1, 25)[:, None]
    phases = 6.28 * torch.rand(24, 1, generator=generator)
    buzz = (torch.sin(6.2832 * pitch * harmonics * time + phases) / harmonics.sqrt()).sum(dim=0)
    return buzz * (1.2 + torch.sin(6.2832 * (3 + 3 * float(torch.rand((), generator=generator))) * time))


def _two_classes(count: int) -> tuple[list[tuple[torch.Tensor, int]], list[tuple[torch.Tensor, int]]]:
    """The same kind of voice, recorded once with every trivial difference and once without."""
    generator = torch.Generator().manual_seed(0)
    one, other = [], []
    for _ in range(count):
        plain, odd = (_voice(generator, 2.0 + float(torch.rand((), generator=generator))) for _ in range(2))
        one.append((0.01 * plain, RATE))
        silent = torch.cat([torch.zeros(RATE), 0.1 * odd, torch.zeros(RATE)])
        other.append((resample(silent, RATE, 24_000) + 0.02, 24_000))
    return one, other


def _rates(one: list[torch.Tensor], other: list[torch.Tensor]) -> dict[str, float]:
    return {
        name: equal_error_rate([cue(w) for w in one], [cue(w) for w in other], interpolate=True)[0]
        for name, cue in CUES.items()
    }


def test_conditioning_takes_away_every_trivial_cue() -> None:
    one, other = _two_classes(80)
    before = _rates([w for w, _ in one], [w for w, _ in other])
    planted = ("duration", "level", "leading silence", "trailing silence", "mean (DC offset)", "level of silence")
    assert all(min(before[name], 1 - before[name]) < 0.05 for name in planted), before
    finished = []
    for number, (waveform, rate) in enumerate(one + other):
        generator = torch.Generator().manual_seed(number)
        segment = take_segment(waveform, rate, ConditioningConfig(), generator)
        utterance = finish(segment, ConditioningConfig(), generator)
        assert utterance is not None
        finished.append(utterance)
    after = _rates(finished[:80], finished[80:])
    # Three standard deviations of a rate over 80 utterances are 0.168.
    assert all(0.33 < rate < 0.67 for rate in after.values()), after


@pytest.mark.parametrize("kind", ["offset", "hum", "hiss"])
def test_what_lies_outside_the_band_of_one_class_leaves_no_trace(kind: str) -> None:
    # Above the silence by far: if it counted, none would be cut off, and an offset would have noise drown the speech.
    time = torch.arange(4 * RATE, dtype=torch.float64) / RATE
    outside = {
        "offset": 5 * torch.ones(4 * RATE),
        "hum": 0.1 * (6.2832 * 50.3 * time).sin().float(),
        "hiss": 0.3 * (6.2832 * 7_300.3 * time).sin().float(),
    }[kind]
    config, generator = ConditioningConfig(codec="none"), torch.Generator().manual_seed(0)
    for number in range(8):
        voice = _voice(generator, 2.0)
        silent = torch.cat([torch.zeros(RATE), voice, torch.zeros(RATE)])
        silent += 0.01 * torch.randn(4 * RATE, generator=generator)
        finished = []
        for waveform in (silent, silent + voice.square().mean().sqrt() * outside):
            generators = [torch.Generator().manual_seed(number) for _ in range(2)]
            found = finish(take_segment(waveform, RATE, config, generators[0]), config, generators[1])
            assert found is not None
            finished.append(found)
        difference = finished[1] - finished[0]
        assert float(difference.square().mean() / finished[0].square().mean()) < 1e-5


def test_finished_utterances_have_one_duration_level_and_no_offset() -> None:
    generator = torch.Generator().manual_seed(0)
    for scale in (1e-3, 0.03, 1.0):
        utterance = finish(scale * _voice(generator, 2.0) + 0.01 * scale, ConditioningConfig(), generator)
        assert utterance is not None
        assert utterance.numel() == 24_000
        assert 10 * float(utterance.square().mean().log10()) == pytest.approx(-26.0, abs=0.01)
        assert float(utterance.mean()) == pytest.approx(0.0, abs=1e-5)


def test_what_is_too_short_or_silent_is_refused() -> None:
    generator = torch.Generator().manual_seed(0)
    padded = torch.cat([torch.zeros(RATE), 0.1 * _voice(generator, 1.0), torch.zeros(RATE)])
    assert finish(padded, ConditioningConfig(), generator) is None
    assert finish(torch.zeros(3 * RATE), ConditioningConfig(), generator) is None
    assert finish(torch.full((3 * RATE,), torch.nan), ConditioningConfig(), generator) is None


def test_trimming_keeps_the_speech_and_drops_the_silence() -> None:
    speech = 0.1 * _voice(torch.Generator().manual_seed(0), 1.0)
    trimmed = trim_silence(torch.cat([torch.zeros(8_000), speech, torch.zeros(4_000)]), 35.0)
    assert RATE - 640 <= trimmed.numel() <= RATE + 640


def test_every_attack_of_the_presets_exists() -> None:
    for config in PRESETS.values():
        for name in (*config.spoof.seen, *config.spoof.unseen):
            assert find_attack(name).name == name
    with pytest.raises(UnknownNameError, match="griffin_lim"):
        find_attack("griffin")


def test_unseen_attacks_share_no_family_with_seen_ones() -> None:
    for config in PRESETS.values():
        seen = {find_attack(n).family for n in config.spoof.seen}
        unseen = {find_attack(n).family for n in config.spoof.unseen}
        assert not seen & unseen


def test_a_seen_attack_has_other_voices_on_test_than_on_train() -> None:
    attacks = [a for a in list_attacks().values() if a.variants > 1]
    for attack in attacks:
        train, test = variants(attack, "train", seen=True), variants(attack, "test", seen=True)
        assert train and test and not set(train) & set(test)
        assert variants(attack, "test", seen=False) == list(range(attack.variants))


def test_copy_synthesis_keeps_duration_and_words_but_not_the_waveform() -> None:
    pytest.importorskip("pyworld")
    waveform = 0.05 * _voice(torch.Generator().manual_seed(0), 1.5)
    for name in ("world", "griffin_lim", "lpc"):
        run = find_attack(name).load()
        spoofed, rate = run(Source("", "en", waveform, seed=1))
        again, _ = run(Source("", "en", waveform, seed=1))
        assert torch.equal(spoofed, again), name
        assert spoofed.numel() / rate == pytest.approx(1.5, abs=0.03)
        assert bool(spoofed.isfinite().all())
        size = min(spoofed.numel(), waveform.numel())
        if rate == RATE:
            assert not torch.allclose(spoofed[:size], waveform[:size], atol=1e-3)
        level = 10 * float((spoofed.square().mean() / waveform.square().mean()).log10())
        assert abs(level) < 6.0, (name, level)


def test_linear_prediction_keeps_the_pitch() -> None:
    time = np.arange(RATE) / RATE
    pulses = (np.diff(np.floor(125.0 * time), prepend=0.0) > 0).astype(float)
    waveform = np.convolve(pulses, np.exp(-np.arange(200) / 20) * np.cos(np.arange(200) / 3))[:RATE]
    spoofed = lpc_vocode(waveform, np.random.default_rng(0))
    middle = spoofed[4_000:12_000]
    correlation = np.correlate(middle, middle, "full")[middle.size - 1 :]
    lag = 60 + int(np.argmax(correlation[60:300]))
    assert lag == pytest.approx(RATE / 125.0, abs=1)


def test_espeak_speaks_the_language_that_is_asked_for() -> None:
    pytest.importorskip("espeakng_loader")
    espeak = open_espeak()
    russian, czech = (espeak.speak("radio", voice) for voice in ("ru", "cs"))
    assert russian.size > 0.2 * espeak.sample_rate
    assert not np.array_equal(russian, czech)
    assert "".join(espeak.phonemes("hello", "en-us")).startswith("h")
    with pytest.raises(SpeechsslError, match="xx"):
        espeak.speak("radio", "xx")


def test_piper_phonemes_are_padded_and_unknown_ones_left_out() -> None:
    ids = {"_": [0], "^": [1], "$": [2], "a": [14], "b": [15], ",": [8], " ": [3]}
    assert phoneme_ids(["ab", "?a"], ids) == [1, 0, 14, 0, 15, 0, 8, 0, 3, 0, 14, 0, 2]


def test_the_set_holds_each_attack_beside_its_originals(made: Corpus) -> None:
    for split in ("train", "dev", "test"):
        utterances = made.utterances(split)
        real = {u.labels["original"]: u.labels["language"] for u in utterances if u.labels["attack"] == "bonafide"}
        attacks = {u.labels["attack"] for u in utterances} - {"bonafide"}
        assert attacks == ({"world", "griffin_lim", "lpc"} if split == "test" else {"world", "griffin_lim"})
        for utterance in utterances:
            assert real[utterance.labels["original"]] == utterance.labels["language"]
            assert utterance.labels["seen"] == (utterance.labels["attack"] != "lpc")
            assert utterance.duration == pytest.approx(0.6)
    texts = {s: {u.labels["text"] for u in made.utterances(s)} for s in ("train", "dev", "test")}
    assert not texts["train"] & texts["test"] and not texts["dev"] & texts["test"]


def test_languages_are_evenly_mixed(made: Corpus) -> None:
    real = [u.labels["language"] for u in made.utterances("test") if u.labels["attack"] == "bonafide"]
    assert len(real) == 10
    assert real.count("aa") == real.count("bb") == 5


def test_duration_and_level_tell_nothing_about_the_made_set(task_data: TaskData) -> None:
    cues = task_data.extra["cues"]
    assert cues["duration"].rate == pytest.approx(0.5)
    assert cues["level"].rate == pytest.approx(0.5, abs=0.3)  # 10 real utterances: two standard deviations
    assert set(cues) == {*CUES, "spectrum of silence", "all together"}


def test_a_finished_set_is_opened_and_an_interrupted_one_gone_on_with(
    made: Corpus, tiny_corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = open_corpus(tiny_corpus)
    with monkeypatch.context() as patch:
        patch.setattr(making, "produce", lambda *_: pytest.fail("made again"))
        assert making.prepare_set(corpus, SPOOF).fingerprint == made.fingerprint
    (made.root / "corpus.json").unlink()
    lost = Path(made.utterances("train")[0].path)
    content = lost.read_bytes()
    times = {p: p.stat().st_mtime_ns for p in made.root.rglob("*.flac") if p != lost}
    lost.unlink()
    assert making.prepare_set(corpus, SPOOF).fingerprint == made.fingerprint
    assert lost.read_bytes() == content
    assert {p: p.stat().st_mtime_ns for p in made.root.rglob("*.flac") if p != lost} == times


def test_an_attack_that_cannot_be_had_is_left_out_and_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def load() -> None:
        raise SpeechsslError("no such package")

    def find(name: str) -> Attack:
        attack = find_attack(name)
        return dataclasses.replace(attack, load=load) if name == "world" else attack

    monkeypatch.setattr(making, "find_attack", find)
    attacks, left_out = making.open_attacks(SPOOF)
    assert [a.name for a in attacks] == ["griffin_lim", "lpc"]
    assert left_out == {"world": "no such package"}
    assert "'world' is left out" in caplog.text
    with pytest.raises(ConfigError, match="seen can be had"):
        making.open_attacks(dataclasses.replace(SPOOF, seen=("world",)))
    with pytest.raises(ConfigError, match=r"both in spoof\.seen"):
        making.open_attacks(dataclasses.replace(SPOOF, unseen=("griffin_lim",)))


def test_the_fingerprint_changes_with_what_changes_the_audio(tiny_corpus: Path) -> None:
    corpus = open_corpus(tiny_corpus)
    base = making.fingerprint(corpus, SPOOF)
    assert making.fingerprint(corpus, dataclasses.replace(SPOOF, processes=7)) == base
    louder = dataclasses.replace(SPOOF, conditioning=dataclasses.replace(CONDITIONING, level_db=-20.0))
    assert making.fingerprint(corpus, louder) != base


def _head(size: int = 12, *, center: bool = False) -> DetectionHead:
    with torch.random.fork_rng():
        torch.random.manual_seed(0)
        return DetectionHead(size, width=8, kernel=3, attention=4, dropout=0.5, center=center).eval()


def test_a_centred_head_is_deaf_to_a_constant() -> None:
    features = torch.randn(1, 20, 12, generator=torch.Generator().manual_seed(0))
    shifted, lengths = features + torch.arange(12.0), torch.tensor([20])
    assert torch.allclose(_head(center=True)(features, lengths), _head(center=True)(shifted, lengths), atol=1e-4)
    assert not torch.allclose(_head()(features, lengths), _head()(shifted, lengths), atol=1e-2)


@pytest.mark.parametrize("center", [False, True])
def test_padding_does_not_change_a_score(center: bool) -> None:
    head = _head(center=center)
    features = torch.randn(3, 20, 12, generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([20, 13, 1])
    batch = head(features, lengths)
    for row, length in enumerate(lengths.tolist()):
        alone = head(features[row : row + 1, :length], lengths[row : row + 1])
        assert torch.allclose(batch[row], alone[0], atol=1e-5)


def test_both_classes_have_the_same_share_of_the_loss(task_data: TaskData) -> None:
    task = DeepfakeDetection(DeepfakeConfig())
    spoofed, real = task.class_weights(task_data)
    train = [u.labels["attack"] == "bonafide" for u in task_data.splits["train"]]
    assert real * sum(train) == pytest.approx(spoofed * (len(train) - sum(train)))
    assert real * sum(train) + spoofed * (len(train) - sum(train)) == pytest.approx(len(train))


def test_the_head_learns_to_tell_two_kinds_of_features_apart(task_data: TaskData, tmp_path: Path) -> None:
    task, head = DeepfakeDetection(DeepfakeConfig()), _head()
    features = {
        u.id: torch.randn(20, 12, generator=torch.Generator().manual_seed(n)) + (u.labels["attack"] == "bonafide")
        for split in task_data.splits.values()
        for n, u in enumerate(split)
    }
    optimizer = torch.optim.Adam(head.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        batch = list(task_data.splits["train"])
        states, lengths = torch.stack([features[u.id] for u in batch]), torch.full((len(batch),), 20)
        out = task.loss(head, states, lengths, batch, task_data, torch.Generator())
        (out.loss_sum / out.sample_size).backward()
        optimizer.step()
    found = {}
    for split in ("dev", "test"):
        batch = list(task_data.splits[split])
        states, lengths = torch.stack([features[u.id] for u in batch]), torch.full((len(batch),), 20)
        with torch.no_grad():
            scores = task.predict(head, states, lengths, batch, task_data)
        predictions = {u.id: s for u, s in zip(batch, scores, strict=True)}
        found[split] = task.evaluate(head, predictions, task_data, split, tmp_path)
    assert found["test"].metrics["eer"].value < 0.05
    assert found["test"].breakdown["false acceptance by attack"]["lpc"].value < 0.2


def _evaluate(task_data: TaskData, folder: Path, score: dict[str, float]):
    task, head = DeepfakeDetection(DeepfakeConfig()), _head()
    noise = np.random.default_rng(0)
    predictions = {
        split: {u.id: score[u.labels["attack"]] + 0.1 * noise.random() for u in task_data.splits[split]}
        for split in ("dev", "test")
    }
    task.evaluate(head, predictions["dev"], task_data, "dev", folder)
    return task.evaluate(head, predictions["test"], task_data, "test", folder), head


def test_the_primary_metric_counts_unseen_attacks_only(task_data: TaskData, tmp_path: Path) -> None:
    score = {"bonafide": 1.0, "world": 0.0, "griffin_lim": 0.0, "lpc": 2.0}
    found, head = _evaluate(task_data, tmp_path, score)
    assert found.metrics["eer"].value == 1.0
    assert 0.0 < found.metrics["eer_all"].value < 1.0
    by_attack = found.breakdown["eer by attack"]
    assert (by_attack["world"].value, by_attack["lpc"].value) == (0.0, 1.0)
    accepted = found.breakdown["false acceptance by attack"]
    assert (accepted["world"].value, accepted["lpc"].value) == (0.0, 1.0)
    assert 0.0 < float(head.threshold) < 1.1
    assert set(found.breakdown["false rejection by language"]) == {"aa", "bb"}
    cues = {name.partition(":")[0] for name in found.breakdown["eer of trivial cues"]}
    assert cues == {*CUES, "spectrum of silence", "all together"}


def test_the_scores_are_written_with_their_labels(task_data: TaskData, tmp_path: Path) -> None:
    found, _ = _evaluate(task_data, tmp_path, {"bonafide": 1.0, "world": 0.0, "griffin_lim": 0.0, "lpc": 0.0})
    lines = (tmp_path / found.files["scores"]).read_text().splitlines()
    assert lines[0].split("\t") == ["utterance", "attack", "label", "score"]
    rows = [line.split("\t") for line in lines[1:]]
    assert len(rows) == len(task_data.splits["test"])
    assert {(a == "bonafide") == (label == "bonafide") for _, a, label, _ in rows} == {True}
    real = [float(r[3]) for r in rows if r[2] == "bonafide"]
    spoofed = [float(r[3]) for r in rows if r[2] == "spoof"]
    assert equal_error_rate(real, spoofed)[0] == found.metrics["eer_all"].value == 0.0


def test_inference_gives_a_verdict_without_the_corpus() -> None:
    task, head = DeepfakeDetection(DeepfakeConfig()), _head()
    head.threshold.fill_(-100.0)
    restored = task.restore(task.state(TaskData({})))
    generator = torch.Generator().manual_seed(0)
    features = {name: torch.randn(30, 12, generator=generator) for name in ("x", "y")}
    parts = [
        Utterance(n, f"{n}.flac", labels={"file": "a.wav", "start": s, "end": s + 1.5})
        for n, s in (("x", 0.2), ("y", 1.7))
    ]
    found = task.infer(head, features, parts, restored, Path())["a.wav"]
    assert found["verdict"] == "real" and found["threshold"] == -100.0
    assert [part["start"] for part in found["curve"]] == [0.2, 1.7]
    assert found["score"] == pytest.approx(sum(part["score"] for part in found["curve"]) / 2)
    assert found["suspicious"] == [] and found["probability_spoofed"] is None  # nothing was calibrated


def test_presets_take_overrides_and_refuse_unknown_keys() -> None:
    config = load_config(PRESETS["deepfake_detection_demo"], overrides=["spoof.test.real=7", "spoof.unseen=[lpc]"])
    assert config.spoof.test.real == 7 and list(config.spoof.unseen) == ["lpc"]
    with pytest.raises(ConfigError, match="conditioning"):
        load_config(PRESETS["deepfake_detection"], overrides=["spoof.condition.seconds=1"])


def test_the_focal_loss_counts_sure_utterances_less() -> None:
    logits = torch.tensor([[2.0, -1.0], [0.3, 0.1], [-4.0, 5.0]], dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 1, 1])
    sure = logits.detach().softmax(dim=1)[torch.arange(3), labels]
    for gamma in (0.0, 0.5, 2.0):  # Lin et al. 2017, eq. 4
        torch.testing.assert_close(focal_loss(logits, labels, gamma).detach(), -((1 - sure) ** gamma) * sure.log())
    focal_loss(torch.cat([logits, torch.tensor([[90.0, -90.0]])]), torch.tensor([0, 1, 1, 0]), 0.5).sum().backward()
    assert logits.grad is not None and bool(logits.grad.isfinite().all())
    with pytest.raises(ConfigError, match="focal_gamma"):
        DeepfakeConfig(focal_gamma=-1.0)


def test_the_first_seconds_of_each_utterance_are_heard_where_asked_for(tiny_corpus: Path) -> None:
    pytest.importorskip("pyworld")
    data = DeepfakeDetection(DeepfakeConfig(spoof=SPOOF, first_seconds=0.4)).prepare(open_corpus(tiny_corpus))
    assert {u.duration for split in data.splits.values() for u in split} == {0.4}
    longer = DeepfakeDetection(DeepfakeConfig(spoof=SPOOF, first_seconds=4.0)).prepare(open_corpus(tiny_corpus))
    assert {u.duration for u in longer.splits["test"]} == {0.6}
