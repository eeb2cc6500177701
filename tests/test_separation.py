"""Masks on a transform: the transform and its inverse, targets, alignment, loss, head, mixtures, and runs."""

import math
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence

from downstreams.source_separation.config import PRESETS, SourceSeparationConfig
from downstreams.source_separation.task import TASK
from speechssl.audio import read_audio
from speechssl.config import load_config
from speechssl.data.corpus import open_corpus
from speechssl.errors import ConfigError, ManifestError, SpeechsslError
from speechssl.head.mask import MaskHead
from speechssl.inference import infer
from speechssl.jobs import RunOptions
from speechssl.metric import perceptual
from speechssl.metric.separation import si_sdr
from speechssl.mixing.signals import Turn, at_level, converse, overlay, trim_silence
from speechssl.mixing.simulate import SimulationConfig, simulate
from speechssl.runner import run
from speechssl.separation.measuring import summarise
from speechssl.separation.stft import choose_hop, count_frames, istft, stft
from speechssl.separation.targets import align_frames, apply_masks, compress, mask_loss, target_magnitudes
from speechssl.separation.waveforms import WaveformReader
from speechssl.task import TrainConfig
from speechssl.types import Utterance

MIXED = SimulationConfig(train=6, dev=3, test=3, duration=1.2)
SMALL = SourceSeparationConfig(
    train=TrainConfig(steps=4, batch_seconds=20.0, learning_rate=1e-2, evaluate_every=2),
    num_layers=1,
    hidden_size=8,
    n_fft=256,
    win_length=256,
    metrics=("si_sdri", "si_sdr"),
    examples=1,
    simulate=MIXED,
)
TRANSFORMS = [(512, 512, 320), (512, 400, 160), (1024, 1024, 320), (256, 255, 100)]


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def batch_of(*sizes: int) -> tuple[torch.Tensor, torch.Tensor]:
    rows = [noise(n, seed=n) for n in sizes]
    return pad_sequence(rows, batch_first=True), torch.tensor(sizes)


@pytest.mark.parametrize(("n_fft", "win_length", "hop"), TRANSFORMS)
def test_the_transform_is_torchs_with_a_frame_more_where_the_hop_does_not_divide(
    n_fft: int, win_length: int, hop: int
) -> None:
    waveform, lengths = batch_of(3 * hop + 7, 9 * hop, 5)
    waveform[0, 3 * hop + 7 :] = 5.0  # what lies in the padding is ignored
    found = stft(waveform, lengths, n_fft=n_fft, win_length=win_length, hop=hop)
    for row, length in enumerate(lengths.tolist()):
        window = torch.hann_window(win_length)
        one = torch.nn.functional.pad(waveform[row, :length], (n_fft // 2, n_fft + hop))
        expected = torch.stft(one, n_fft, hop, win_length, window, center=False, return_complex=True).T
        frames = math.ceil(length / hop) + 1
        assert int(count_frames(lengths, hop)[row]) == frames
        torch.testing.assert_close(found[row, :frames], expected[:frames], atol=1e-4, rtol=0)
        assert not bool(found[row, frames:].any())


@pytest.mark.parametrize(("n_fft", "win_length", "hop"), TRANSFORMS)
def test_the_inverse_is_exact_to_the_last_sample(n_fft: int, win_length: int, hop: int) -> None:
    waveform, lengths = batch_of(16_001, 4 * hop, 3 * hop + 1, 4 * hop - 1, 7, 1)
    both = torch.stack((waveform, 0.5 * waveform), dim=1)  # a dimension more
    spectrum = stft(both, lengths, n_fft=n_fft, win_length=win_length, hop=hop)
    found = istft(spectrum, lengths, n_fft=n_fft, win_length=win_length, hop=hop)
    torch.testing.assert_close(found, both, atol=2e-5, rtol=0)


def test_the_inverse_of_a_changed_transform_is_torchs_and_ignores_padding() -> None:
    waveform, lengths = batch_of(3200, 1600)
    spectrum = stft(waveform, lengths, n_fft=512, win_length=512, hop=160)
    spectrum = spectrum * torch.rand(spectrum.shape, generator=torch.Generator().manual_seed(1))
    spectrum[1, 11:] = 3.0
    found = istft(spectrum, lengths, n_fft=512, win_length=512, hop=160)
    for row, length in enumerate(lengths.tolist()):
        frames = length // 160 + 1
        expected = torch.istft(spectrum[row, :frames].T, 512, 160, 512, torch.hann_window(512), length=length)
        torch.testing.assert_close(found[row, :length], expected, atol=1e-5, rtol=0)


def test_the_hop_is_the_upstreams_stride_or_a_fraction_of_it() -> None:
    assert choose_hop(stride=320, win_length=1024) == 320  # S3PRL's separation_stft2
    assert choose_hop(stride=320, win_length=512) == 320  # and its first version
    assert choose_hop(stride=320, win_length=400) == 160
    assert choose_hop(stride=1280, win_length=512) == 320
    assert choose_hop(stride=160, win_length=512) == 160
    for override in ("hop_length=900", "win_length=2048", "hop_length=0"):
        with pytest.raises(ConfigError, match="3/4 of the window"):
            load_config(SMALL, overrides=[override])


@pytest.mark.parametrize(
    ("rate", "hop"), [(50.0, 320), (50.0, 160), (100.0, 160), (100.0, 320), (12.5, 320), (40.0, 128)]
)
def test_each_frame_of_the_transform_gets_the_upstreams_frame_around_its_centre(rate: float, hop: int) -> None:
    lengths, frames = torch.tensor([30, 7]), torch.tensor([40, 9])
    features = noise(2, 30, 3)
    found = align_frames(features, lengths, frame_rate=rate, hop=hop, sample_rate=16_000, frames=frames)
    assert found.shape == (2, 40, 3)
    for row in range(2):
        for frame in range(40):
            centre = frame * hop * rate / 16_000  # in frames of the upstream
            at = max(i for i in range(int(lengths[row])) if i <= centre)
            expected = features[row, at] if frame < int(frames[row]) else torch.zeros(3)
            torch.testing.assert_close(found[row, frame], expected, atol=0, rtol=0)


def test_half_a_stride_repeats_each_frame_as_s3prl() -> None:
    features = noise(1, 10, 3)
    found = align_frames(
        features, torch.tensor([10]), frame_rate=50.0, hop=160, sample_rate=16_000, frames=torch.tensor([20])
    )
    torch.testing.assert_close(found[0], torch.repeat_interleave(features[0], 2, dim=0), atol=0, rtol=0)


def test_targets_are_those_of_magnitudes_and_angles() -> None:
    sources = torch.complex(noise(2, 2, 5, 4), noise(2, 2, 5, 4, seed=1))
    mixture = sources.sum(dim=1)
    mixture[0, 0, 0] = 0.0  # its angle is 0, as numpy's and torch's
    angle = torch.cos(mixture.angle()[:, None] - sources.angle())
    expected = {"am": sources.abs(), "psm": sources.abs() * angle, "npsm": sources.abs() * torch.relu(angle)}
    for kind, values in expected.items():
        found = target_magnitudes(sources, mixture, kind)  # type: ignore[arg-type]
        torch.testing.assert_close(found, values, atol=1e-5, rtol=0)


@pytest.mark.parametrize("distance", ["mse", "l1"])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_loss_is_that_of_every_order_written_out(number: int, distance: str) -> None:
    masks = noise(3, number, 6, 4).requires_grad_()
    mixture, targets = noise(3, 6, 4, seed=1).abs(), noise(3, number, 6, 4, seed=2).abs()
    frames = torch.tensor([6, 2, 5])
    found = mask_loss(masks, mixture, targets, frames, distance=distance)  # type: ignore[arg-type]
    expected = []
    for row, count in enumerate(frames.tolist()):
        orders = []
        for order in permutations(range(number)):
            total = torch.zeros(())
            for output, source in enumerate(order):
                gap = masks[row, output, :count] * mixture[row, :count] - targets[row, source, :count]
                total = total + (gap**2 if distance == "mse" else gap.abs()).sum()
            orders.append(total / (count * number))
        expected.append(torch.stack(orders).min())
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-5, rtol=1e-6)
    ours = torch.autograd.grad(found.sum(), masks, retain_graph=True)[0]
    theirs = torch.autograd.grad(torch.stack(expected).sum(), masks)[0]
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_the_head_is_packed_lstm_layers_and_a_linear_layer_per_source() -> None:
    with torch.random.fork_rng():
        torch.random.manual_seed(0)
        head = MaskHead(
            5, 7, sources=2, kind="blstm", num_layers=2, hidden_size=6, dropout=0.1, activation="relu", frame_rate=50.0
        ).eval()
    reference = torch.nn.LSTM(5, 6, 2, batch_first=True, bidirectional=True)
    own = head.state_dict()
    names = {
        f"{kind}_{side}_l{layer}{end}": own[f"layers.{layer}.{way}.{kind}_{side}_l0"]
        for layer in range(2)
        for kind in ("weight", "bias")
        for side in ("ih", "hh")
        for way, end in (("ahead", ""), ("back", "_reverse"))
    }
    reference.load_state_dict(names)
    features, lengths = noise(3, 12, 5), torch.tensor([12, 8, 1])
    states, _ = pad_packed_sequence(reference(pack_padded_sequence(features, lengths, batch_first=True))[0], True)
    found = head(features, lengths)
    for source in range(2):
        rows = slice(7 * source, 7 * (source + 1))
        expected = torch.relu(states @ head.output.weight[rows].T + head.output.bias[rows])
        for row, length in enumerate(lengths.tolist()):
            torch.testing.assert_close(found[row, source, :length], expected[row, :length], atol=1e-5, rtol=0)


def test_the_presets_are_s3prls_two_versions() -> None:
    second, first = PRESETS["source_separation"], PRESETS["source_separation_first"]
    head = TASK(second).build_head(768, 50.0, None)  # type: ignore[arg-type]
    lstm = sum(2 * 4 * 256 * (width + 256 + 2) for width in (768, 512, 512))
    assert sum(p.numel() for p in head.parameters()) == lstm + 513 * 2 * 513
    assert (second.n_fft, second.win_length, second.compression, second.target, second.distance) == (
        (1024, 1024, "log1p", "npsm", "mse")
    )
    assert (first.hidden_size, first.dropout, first.activation, first.n_fft) == (896, 0.5, "relu", 512)
    assert (second.train.learning_rate, first.train.learning_rate) == (1e-3, 1e-4)


def test_masks_that_are_right_separate() -> None:
    """The whole chain with the target itself as the mask: from -0.0 dB to well above 10 dB."""
    time = torch.arange(16_000) / 16_000
    low, high = torch.sin(2 * math.pi * 300 * time), torch.sin(2 * math.pi * 2000 * time)
    sources, lengths = torch.stack((low, high))[None], torch.tensor([16_000])
    transform = {"n_fft": 512, "win_length": 512, "hop": 160}
    mixture = stft(sources.sum(dim=1), lengths, **transform)
    parts = stft(sources, lengths, **transform)
    for compression in ("none", "log1p"):
        wanted = compress(target_magnitudes(parts, mixture, "npsm"), compression)  # type: ignore[arg-type]
        masks = wanted / compress(mixture.abs(), compression)[:, None].clamp(min=1e-9)  # type: ignore[arg-type]
        estimate = istft(apply_masks(masks, mixture, compression), lengths, **transform)  # type: ignore[arg-type]
        assert float(si_sdr(estimate, sources).min()) > 30.0


def test_a_head_that_is_trained_on_few_mixtures_separates_them(tiny_corpus: Path) -> None:
    """The whole way from audio to estimate at 50 Hz features: an error in it would leave nothing to gain."""
    task = TASK(replace(SMALL, hidden_size=32, simulate=replace(MIXED, train=2), examples=0))
    data = task.prepare(open_corpus(tiny_corpus))
    utterances = data.splits["train"]
    with torch.random.fork_rng():
        torch.random.manual_seed(0)
        head = task.build_head(129, 50.0, data)
    batch = WaveformReader(task.sources_of, max_bytes=0).batch(utterances)
    features = stft(batch.mixture, batch.lengths, n_fft=256, win_length=256, hop=320).abs().log1p()
    lengths = count_frames(batch.lengths, 320)
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        out = task.loss(head, features, lengths, utterances, data, torch.Generator())
        (out.loss_sum / out.sample_size).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        found = task.predict(head.eval(), features, lengths, utterances, data)
    assert min(estimate.values["si_sdri"] for estimate in found) > 5.0


def test_mixtures_are_the_sum_of_their_sources_to_the_bit(tiny_corpus: Path) -> None:
    corpus = open_corpus(tiny_corpus)
    made = simulate(corpus, "voices", MIXED)
    for utterance in [u for part in made.values() for u in part]:
        mixture, *sources = (read_audio(p) for p in (utterance.path, *utterance.labels["sources"]))
        torch.testing.assert_close(mixture, sources[0] + sources[1], atol=0, rtol=0)
        assert len(mixture) == round(utterance.duration * 16_000)
        assert len(set(utterance.labels["speakers"])) == 2
        assert float(mixture.abs().max()) <= 0.9 + 1e-4
    assert simulate(corpus, "voices", MIXED) == made
    names = [{s for u in made[split] for s in u.labels["speakers"]} for split in ("train", "dev", "test")]
    assert not (names[0] & names[1] or names[0] & names[2] or names[1] & names[2])


def test_a_corpus_with_one_speaker_gives_no_mixtures(tiny_corpus: Path) -> None:
    corpus = open_corpus(tiny_corpus)
    alone = corpus.without(u.id for u in corpus.utterances("speaker_dev") if u.labels["speaker"] == "aa2")
    with pytest.raises(ManifestError, match=r"1 speakers .* 'speaker_dev'"):
        simulate(alone, "voices", MIXED)


def test_signals_are_trimmed_levelled_and_placed() -> None:
    loud = noise(1600)
    framed = torch.cat((torch.zeros(800), loud, torch.zeros(1000)))
    trimmed = trim_silence(framed, sample_rate=16_000)
    assert 1600 <= len(trimmed) <= 1600 + 640
    assert float(at_level(loud, -20.0).square().mean().sqrt()) == pytest.approx(0.1, abs=1e-6)
    with pytest.raises(SpeechsslError, match="silent"):
        at_level(torch.zeros(10), -20.0)
    mixture, sources = overlay([loud, 2 * noise(1500, seed=1)])
    assert mixture.shape == (1500,)
    torch.testing.assert_close(mixture, sources.sum(dim=0), atol=0, rtol=0)
    recording, segments = converse(
        [Turn("a", torch.full((1600,), 0.1)), Turn("b", torch.full((800,), 0.2)), Turn("a", torch.full((800,), 0.1))],
        pauses=[0.1, -0.05, 0.2],
        sample_rate=16_000,
    )
    assert segments == [("a", 0.1, 0.2), ("b", 0.15, 0.2), ("a", 0.4, 0.45)]
    assert float(recording[2500]) == pytest.approx(0.3)
    assert len(recording) == 7200


def test_what_was_read_is_held_within_its_budget(tmp_path: Path) -> None:
    paths = []
    for number in range(3):
        paths.append(str(tmp_path / f"{number}.wav"))
        soundfile.write(paths[-1], noise(1000 + number, seed=number).numpy() * 0.1, 16_000)
    utterances = [Utterance(str(n), path) for n, path in enumerate(paths)]
    reader = WaveformReader(lambda u: (u.path,), max_bytes=2 * 2 * 4 * 1002)
    whole = reader.batch(utterances)
    assert whole.lengths.tolist() == [1000, 1001, 1002]
    assert whole.sources.shape == (3, 1, 1002)
    torch.testing.assert_close(whole.sources[:, 0], whole.mixture, atol=0, rtol=0)
    assert not bool(whole.mixture[0, 1000:].any())
    again = reader.batch(utterances[1:])
    assert (reader.hits, reader.misses) == (2, 3)
    torch.testing.assert_close(again.mixture, whole.mixture[1:], atol=0, rtol=0)
    reader.batch(utterances[:1])
    assert (reader.hits, reader.misses) == (2, 4)


def test_sources_that_do_not_fit_their_mixture_are_named(tmp_path: Path) -> None:
    for name, samples in {"mix": noise(8000), "short": noise(800), "silent": torch.zeros(8000)}.items():
        soundfile.write(tmp_path / f"{name}.wav", samples.numpy() * 0.1, 16_000)
    for name, said in {"short": "short.wav is 0.05 s long", "silent": "silent.wav is silent"}.items():
        reader = WaveformReader(lambda u, name=name: (str(tmp_path / f"{name}.wav"),), max_bytes=0)  # type: ignore[misc]
        with pytest.raises(ManifestError, match=said):
            reader.batch([Utterance("odd", str(tmp_path / "mix.wav"))])


def test_an_estimate_does_not_depend_on_the_batch(tiny_corpus: Path) -> None:
    task = TASK(SMALL)
    data = task.prepare(open_corpus(tiny_corpus))
    utterances = list(data.splits["test"])
    with torch.random.fork_rng():
        torch.random.manual_seed(0)
        head = task.build_head(5, 50.0, data).eval()
    sizes = [int(u.duration * 50) - 1 for u in utterances]
    features = [noise(n, 5, seed=n) for n in sizes]
    with torch.no_grad():
        together = task.predict(head, pad_sequence(features, batch_first=True), torch.tensor(sizes), utterances, data)
        for one, utterance, expected in zip(features, utterances, together, strict=True):
            (alone,) = task.predict(head, one[None], torch.tensor([len(one)]), [utterance], data)
            assert alone.values == pytest.approx(expected.values, abs=1e-3)
            if alone.waveforms is not None:
                torch.testing.assert_close(alone.waveforms, expected.waveforms, atol=1e-5, rtol=0)


def test_a_run_is_measured_and_separates_a_users_file(tiny_corpus: Path, tmp_path: Path) -> None:
    options = RunOptions(cache_folder=str(tmp_path / "cache"))
    task = "source_separation"
    (result,) = run(task, upstream="fbank", corpus=tiny_corpus, config=SMALL, out=tmp_path, options=options)
    assert set(result.dev.metrics) == {"si_sdri"}
    before = result.test.breakdown["of the mixture"]["si_sdr"].value
    metrics = result.test.metrics
    assert metrics["si_sdr"].value - before == pytest.approx(metrics["si_sdri"].value, abs=1e-6)
    folder = tmp_path / task / "fbank" / "seed0"
    assert len((folder / "scores.tsv").read_text().splitlines()) == 1 + MIXED.test
    (example,) = result.test.examples
    kept = {name: read_audio(folder / path) for name, path in example.items() if name != "title"}
    assert set(kept) == {"mixture", *(f"voice{n} {kind}" for n in (1, 2) for kind in ("estimated", "reference"))}
    assert len({len(waveform) for waveform in kept.values()}) == 1
    stereo = tmp_path / "own.wav"
    soundfile.write(stereo, np.stack([noise(30_001).numpy(), noise(30_001, seed=1).numpy()], 1) * 0.1, 44_100)
    other = tmp_path / "other" / "own.wav"
    other.parent.mkdir()
    soundfile.write(other, noise(9_000).numpy() * 0.1, 16_000)
    answer = infer(folder, [stereo, other], out=tmp_path / "answer")
    for path, rate, size in ((stereo, 44_100, 30_001), (other, 16_000, 9_000)):
        for written in answer[str(path)]:
            samples, found = soundfile.read(written)
            assert (found, samples.shape) == (rate, (size,))
            assert np.isfinite(samples).all() and samples.any()
    assert len({written for paths in answer.values() for written in paths}) == 4


def test_a_corpus_without_sources_is_refused(tiny_corpus: Path) -> None:
    with pytest.raises(ManifestError, match="has 0 of 2 sources"):
        TASK(load_config(SMALL, overrides=["simulate=null"])).prepare(open_corpus(tiny_corpus))


def test_what_is_undefined_is_counted() -> None:
    found = summarise([{"pesq": 2.0}, {"pesq": math.nan}, {"pesq": 3.0}, {"pesq": 1.0}], name="test")
    assert (found["pesq"].value, found["pesq"].n) == (2.0, 3)
    assert found["pesq undefined"].value == 0.25
    with pytest.raises(SpeechsslError, match="undefined for all of 'test'"):
        summarise([{"pesq": math.nan}], name="test")


def test_a_missing_package_names_the_extra(tiny_corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pesq", None)
    with pytest.raises(SpeechsslError, match=r"speechssl\[perceptual\]"):
        TASK(load_config(SMALL, overrides=["metrics=[pesq]"])).prepare(open_corpus(tiny_corpus))
    perceptual.check_installed(["si_sdr"])
