"""What pre-training is given: balance, crops, replacements, noise, transcripts; and whole runs with it."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from pretrain_corpora import rewrite

from speechssl.data.balance import Balance
from speechssl.data.batching import Batch, BatchStream, EpochPlan, make_generator
from speechssl.data.corpus import open_corpus
from speechssl.data.indexed import UtteranceIndex
from speechssl.data.sources import open_sources
from speechssl.errors import ConfigError, SpeechsslError
from speechssl.loading import load_upstream
from speechssl.targets.labels import label_path, make_label_set
from speechssl.train.config import PretrainConfig
from speechssl.train.data import PretrainDataset, TrainBatch
from speechssl.train.inputs import open_data, open_noise
from speechssl.train.loading import load_batches
from speechssl.train.metrics import read_log
from speechssl.train.run import pretrain
from speechssl.train.selection import CropConfig, TranscriptConfig
from speechssl.types import Utterance

CROP = CropConfig(16_000, 50.0, min_seconds=0.5, max_seconds=1.0, seed=3)


def _dataset(utterances: Sequence[Utterance] | UtteranceIndex, **changes: object) -> PretrainDataset:
    options = {"cache_gb": 0.0, **changes}
    return PretrainDataset(utterances, [], options.pop("crop", CROP), **options)  # type: ignore[arg-type]  # shorthand


def _items(dataset: PretrainDataset, count: int, config: PretrainConfig | None = None) -> list[torch.Tensor]:
    stream = dataset.stream(config or PretrainConfig(batch_seconds=5.0))
    return [b.inputs.waveform for b in load_batches(dataset, islice(stream, count), num_workers=0)]


# Balance


def _expected_shares(seconds: dict[str, float], alpha: float) -> dict[str, float]:
    """Conneau et al. 2020, sec. 3."""
    total = sum(seconds.values())
    weights = {name: (n / total) ** alpha for name, n in seconds.items()}
    return {name: w / sum(weights.values()) for name, w in weights.items()}


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_labels_are_drawn_as_often_as_the_paper_says(alpha: float) -> None:
    sizes = {"en": 800, "sw": 40, "xx": 160}
    codes = np.repeat(np.arange(3, dtype=np.int32), list(sizes.values()))
    durations = 1 + 9 * torch.rand(1000, generator=make_generator(5)).double().numpy()
    balance = Balance(codes, list(sizes), durations, alpha=alpha, seed=1)
    seconds = {name: float(durations[codes == n].sum()) for n, name in enumerate(sizes)}
    expected = _expected_shares(seconds, alpha)
    epochs = 20
    drawn = [balance.draw(epoch)[0] for epoch in range(epochs)]
    found = {name: sum(float(durations[i[codes[i] == n]].sum()) for i in drawn) for n, name in enumerate(sizes)}
    total = sum(found.values())
    assert total / epochs == pytest.approx(durations.sum(), rel=0.01)
    for name, share in expected.items():
        assert found[name] / total == pytest.approx(share, rel=0.02)
    counts = np.bincount(np.concatenate(drawn), minlength=1000)
    for label in range(3):  # no utterance is drawn again before all others of its label were
        own = counts[codes == label]
        assert own.max() - own.min() <= 1
    if alpha == 1.0:
        assert (counts == epochs).all()


def test_draws_of_an_epoch_need_no_earlier_one_and_repeats_are_told_apart() -> None:
    codes = np.array([0] * 90 + [1] * 10, dtype=np.int32)
    balance = Balance(codes, ["a", "b"], np.ones(100), alpha=0.0, seed=1)
    items, passes = balance.draw(7)
    again, _ = Balance(codes, ["a", "b"], np.ones(100), alpha=0.0, seed=1).draw(7)
    assert np.array_equal(items, again)
    pairs = [(i, p) for e in range(9) for i, p in zip(*(a.tolist() for a in balance.draw(e)), strict=True)]
    assert len(set(pairs)) == len(pairs)
    assert Counter(items.tolist() >= np.int64(90))[True] == 50
    assert passes.max() > 7


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_balanced_run_goes_on_with_another_number_of_ranks(world_size: int) -> None:
    codes = np.array([0] * 90 + [1] * 10, dtype=np.int32)
    durations = 1 + torch.rand(100, generator=make_generator(2)).double().numpy()

    def stream(rank: int = 0, world: int = 1) -> BatchStream:
        balance = Balance(codes, ["a", "b"], durations, alpha=0.3, seed=1)
        return BatchStream(durations, batch_seconds=7.0, seed=1, rank=rank, world_size=world, balance=balance)

    whole = list(islice(stream(), 120))
    assert whole[-1].epoch > 2
    one = list(islice(stream(0, world_size), 60 // world_size))
    state = stream(0, world_size).state_after(one[-1])
    for world in (1, 3, 4):
        going = []
        for rank in range(world):
            resumed = stream(rank, world)
            resumed.load_state(state)
            going.append(list(islice(resumed, 12)))
        assert sorted((b for own in going for b in own), key=lambda b: b.number) == whole[60 : 60 + 12 * world]


def test_resuming_makes_no_earlier_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    durations = 1 + torch.rand(50, generator=make_generator(2)).double().numpy()
    stream = BatchStream(durations, batch_seconds=5.0, seed=1)
    batch = next(islice(stream, 500, None))
    planned: list[int] = []
    plan = BatchStream.plan

    def watched(self: BatchStream, epoch: int) -> EpochPlan:
        planned.append(epoch)
        return plan(self, epoch)

    monkeypatch.setattr(BatchStream, "plan", watched)
    resumed = BatchStream(durations, batch_seconds=5.0, seed=1)
    resumed.load_state(stream.state_after(batch))
    assert next(iter(resumed)).number == batch.number + 1
    assert planned in ([batch.epoch], [batch.epoch, batch.epoch + 1])


def test_a_run_is_balanced_by_any_label(tiny_corpus: Path, caplog: pytest.LogCaptureFixture) -> None:
    utterances = open_corpus(tiny_corpus).utterances("train")
    kept = [u for n, u in enumerate(utterances) if u.labels["language"] == "aa" or n % 5 == 0]
    dataset = _dataset(kept)
    with caplog.at_level("INFO"):
        stream = dataset.stream(PretrainConfig(batch_seconds=4.0, balance="language", balance_alpha=0.0))
    assert "aa 50.0 %, bb 50.0 %" in caplog.text
    seconds: Counter[str] = Counter()
    visits: set[tuple[int, int]] = set()
    for batch in stream:
        if batch.epoch == 6:
            break
        for place, item in enumerate(batch.indices):
            seconds[dataset.utterances[item].labels["language"]] += dataset.durations[item]
            visits.add((item, batch.visit(place)))
    assert seconds["aa"] / seconds["bb"] == pytest.approx(1.0, abs=0.1)
    assert len({v for i, v in visits if kept[i].labels["language"] == "bb"}) > 6  # each with another crop
    with pytest.raises(ConfigError, match=r"label 'languag'. Did you mean 'language'"):
        dataset.stream(PretrainConfig(balance="languag"))
    with pytest.raises(ConfigError, match="balance_alpha"):
        PretrainConfig(balance_alpha=1.5)


# Reading


def _frequency(waveform: torch.Tensor) -> int:
    """Of a tone, Hz, to the next hundred."""
    spectrum = torch.fft.rfft(waveform * torch.hann_window(len(waveform))).abs()
    return round(float(spectrum.argmax()) * 16_000 / len(waveform) / 100) * 100


def test_audio_at_any_sampling_rate_is_cut_at_16_khz(tone_files: list[Utterance]) -> None:
    for cache_gb in (0.0, 1.0):
        dataset = _dataset(tone_files, cache_gb=cache_gb)
        for batch in islice(dataset.stream(PretrainConfig(batch_seconds=4.0)), 4):
            item = dataset[batch]
            assert item.padded_seconds == pytest.approx(item.inputs.waveform.numel() / 16_000)
            assert item.audio_seconds == pytest.approx(float(item.inputs.lengths.sum()) / 16_000)
            for place, number in enumerate(batch.indices):
                length = int(item.inputs.lengths[place])
                assert abs(length - round(dataset.durations[number] * 16_000)) <= 1
                assert _frequency(item.inputs.waveform[place, :length]) == 200 + 100 * number


def test_what_cannot_be_read_is_replaced_in_the_same_way_each_time(
    tone_files: list[Utterance], caplog: pytest.LogCaptureFixture
) -> None:
    good = _items(_dataset(tone_files), 12)
    Path(tone_files[11].path).write_bytes(b"\0" * 100)
    Path(tone_files[4].path).unlink()
    runs = [_dataset(tone_files, max_bad=0.2, cache_gb=gb) for gb in (0.0, 1.0)]
    batches = list(islice(runs[0].stream(PretrainConfig(batch_seconds=5.0)), 12))
    found = list(load_batches(runs[0], batches, num_workers=2))
    kept = list(load_batches(runs[1], batches, num_workers=0))
    same = 0
    for one, two, before in zip(found, kept, good, strict=True):
        size = int(one.inputs.lengths.min()) - 400  # what is resampled whole has other edges
        difference = (one.inputs.waveform - two.inputs.waveform)[:, 400:size].abs().max()
        assert difference < 1e-3
        assert one.inputs.waveform.shape == before.shape  # nothing is dropped
        bad = [place for place, item in enumerate(one.origin.indices) if item in (4, 11)]
        for place in range(len(before)):
            length = int(one.inputs.lengths[place])
            heard = (_frequency(one.inputs.waveform[place, :length]) - 200) // 100
            assert (heard == one.origin.indices[place]) == (place not in bad)
            same += place not in bad
            assert heard not in (4, 11)
        assert [b.item for b in one.bad if b.item in one.origin.indices] == [one.origin.indices[p] for p in bad]
    assert same > 20
    assert "'tone4', number" in caplog.text
    assert "tone4.flac does not exist" in caplog.text
    assert sum("takes the place" in r.message for r in caplog.records) == 4  # each once, in each of two runs
    with pytest.raises(SpeechsslError, match=r"2 of 12 utterances can't be read, and max_bad=0.1 of them may"):
        list(load_batches(_dataset(tone_files, max_bad=0.1), batches, num_workers=2))


def test_storage_that_is_gone_stops_a_run_at_once(tone_files: list[Utterance]) -> None:
    dataset = _dataset(tone_files, max_bad=1.0)
    for utterance in tone_files:
        Path(utterance.path).unlink()
    batches = islice(dataset.stream(PretrainConfig(batch_seconds=5.0)), 3)
    with pytest.raises(SpeechsslError, match=r"in its place: .* Look whether the storage is there") as stopped:
        list(load_batches(dataset, batches, num_workers=1))
    assert "Traceback" not in str(stopped.value)


class _Killing(PretrainDataset):
    def __getitem__(self, batch: Batch) -> TrainBatch:
        if batch.number == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(batch)


def test_a_worker_that_is_killed_is_a_sentence(tone_files: list[Utterance]) -> None:
    dataset = _Killing(tone_files, [], CROP, cache_gb=0.0)
    batches = load_batches(dataset, dataset.stream(PretrainConfig(batch_seconds=4.0)), num_workers=1)
    with pytest.raises(SpeechsslError, match=r"process that reads audio has died .* lower `train.num_workers`"):
        list(islice(batches, 9))


@pytest.mark.gpu
@pytest.mark.parametrize("num_workers", [0, 1])
def test_batches_for_a_gpu_are_pinned(tone_files: list[Utterance], num_workers: int) -> None:
    dataset = _dataset(tone_files, transcripts=TranscriptConfig("text"), crop=replace(CROP, max_seconds=9.0))
    stream = dataset.stream(PretrainConfig(batch_seconds=4.0))
    for batch in islice(load_batches(dataset, stream, num_workers=num_workers, pin=True), 3):
        assert batch.inputs.tokens is not None
        assert batch.inputs.waveform.is_pinned()
        assert batch.inputs.tokens.is_pinned()


def test_on_a_grid_what_replaces_is_as_long_as_the_batch(tone_files: list[Utterance]) -> None:
    Path(tone_files[8].path).unlink()
    crop = replace(CROP, max_seconds=1.5, grid_seconds=0.5)
    dataset = _dataset(tone_files, crop=crop, max_bad=0.5)
    for batch in islice(dataset.stream(PretrainConfig(batch_seconds=4.0)), 20):
        item = dataset[batch]
        assert set(item.inputs.lengths.tolist()) <= {item.inputs.waveform.size(1), item.inputs.waveform.size(1) - 1}


def test_the_longest_of_all_is_replaced_by_the_next(tone_files: list[Utterance]) -> None:
    Path(tone_files[11].path).unlink()
    dataset = _dataset(tone_files, crop=replace(CROP, max_seconds=9.0), max_bad=0.5)
    stream = dataset.stream(PretrainConfig(batch_seconds=4.0))
    item = next(dataset[b] for b in stream if 11 in b.indices)
    assert [(b.item, b.substitute) for b in item.bad] == [(11, 10)]


# Noise and transcripts


def test_noise_is_a_function_of_seed_visit_and_utterance(tone_files: list[Utterance], tmp_path: Path) -> None:
    (tmp_path / "noise").mkdir()
    for number, seconds in enumerate((0.2, 5.0)):
        noise = make_generator(number)
        soundfile.write(
            tmp_path / "noise" / f"{number}.wav", 0.1 * torch.randn(round(16_000 * seconds), generator=noise), 16_000
        )
    clips = open_noise(tmp_path / "noise", "train").index
    assert [c.duration for c in clips] == [0.2, 5.0]
    one, two = (_dataset(tone_files, noise=clips, cache_gb=gb) for gb in (0.0, 1.0))
    batch = next(iter(one.stream(PretrainConfig(batch_seconds=8.0))))
    found = one[batch].inputs
    assert found.noise is not None
    assert found.noise.shape == found.waveform.shape
    other = two[batch].inputs.noise
    assert other is not None
    torch.testing.assert_close(found.noise, other, rtol=0, atol=4e-5)
    later = one[replace(batch, epoch=batch.epoch + 1)].inputs.noise
    assert later is not None
    assert not torch.equal(found.noise, later)
    sources_heard = set()
    for row, length in zip(found.noise, found.lengths.tolist(), strict=True):
        assert (row[length:] == 0).all()
        assert (row[:length] != 0).float().mean() > 0.99
        repeats = bool(torch.equal(row[:3000], row[3200:6200]))  # the short clip goes on from its beginning
        sources_heard.add(repeats)
    assert sources_heard == {True, False}
    (tmp_path / "noise" / "0.wav").write_bytes(b"RIFF")
    heard = _dataset(tone_files, noise=clips)[batch].inputs.noise
    assert heard is not None
    assert not any(torch.equal(row[:3000], row[3200:6200]) for row in heard)  # the other clip takes its place


def test_transcripts_become_tokens_of_whole_utterances(
    tone_files: list[Utterance], caplog: pytest.LogCaptureFixture
) -> None:
    utterances = [replace(tone_files[0], labels={}), *tone_files[1:]]
    crop = replace(CROP, max_seconds=1.45)
    dataset = _dataset(utterances, crop=crop, transcripts=TranscriptConfig("text"))
    assert dataset.transcripts is not None
    assert dataset.transcripts.vocabulary == (" ", "a", "b")
    assert dataset.transcripts.num_tokens == 4
    assert [u.id for u in dataset.utterances] == [f"tone{n}" for n in range(1, 9)]
    assert "3 utterances (5 s) are longer than max_seconds=1.45 s, with transcripts and are left out" in caplog.text
    assert "1 utterances (1 s) have no 'text' and are left out" in caplog.text
    batch = next(iter(dataset.stream(PretrainConfig(batch_seconds=8.0))))
    inputs = dataset[batch].inputs
    assert inputs.tokens is not None
    assert inputs.token_lengths is not None
    for place, item in enumerate(batch.indices):
        utterance = dataset.utterances[item]
        text = utterance.labels["text"].strip()
        expected = [{" ": 1, "a": 2, "b": 3}[letter] for letter in text]
        assert inputs.tokens[place].tolist() == expected + [0] * (inputs.tokens.size(1) - len(expected))
        assert int(inputs.token_lengths[place]) == len(expected)
        assert abs(int(inputs.lengths[place]) - round((utterance.duration or 0) * 16_000)) <= 1
    phones = _dataset(tone_files, crop=crop, transcripts=TranscriptConfig("phones", "words"))
    assert phones.transcripts is not None
    assert phones.transcripts.vocabulary[-1] == "Q"
    assert phones.transcripts.encode(tone_files[3].labels)[1:] == [phones.transcripts.num_tokens - 1] * 2
    with pytest.raises(ConfigError, match=r"'txt'. Did you mean 'text'"):
        _dataset(tone_files, transcripts=TranscriptConfig("txt"))
    with pytest.raises(ConfigError, match="grid_seconds"):
        PretrainConfig(transcripts="text", grid_seconds=0.5)


def test_texts_with_more_units_than_frames_are_left_out(
    tone_files: list[Utterance], caplog: pytest.LogCaptureFixture
) -> None:
    utterances = [
        replace(tone_files[0], labels={"text": "aab" * 9}),
        replace(tone_files[1], labels={"text": "aab" * 8}),
    ]
    dataset = _dataset(utterances, transcripts=TranscriptConfig("text"))  # 36 frames for 0.6 s: 29 fit; 27 + 9 don't
    assert [u.id for u in dataset.utterances] == ["tone1"]
    assert "1 utterances (1 s) have more units than frames" in caplog.text


def test_labels_that_do_not_fit_are_named_with_both_lengths(tone_files: list[Utterance]) -> None:
    codes = {u.id: torch.zeros(round((u.duration or 0) * 50), dtype=torch.long) for u in tone_files}
    codes["tone5"] = codes["tone5"][:40]
    labels = make_label_set(codes, num_labels=3, label_rate=50.0, corpus="c", origin="o")
    with pytest.raises(SpeechsslError, match=r"labels of 'tone5' last 0\.80 s, its audio 1\.10 s"):
        PretrainDataset(tone_files, [labels], CROP, cache_gb=0.0)
    with pytest.raises(SpeechsslError, match="'tone2' has no duration"):
        _dataset([*tone_files[:2], replace(tone_files[2], duration=None)])


# Whole runs

SETTINGS = (
    "model.width=32", "model.depth=1", "model.heads=2", "model.ffn_width=64", "model.pos_kernel=7",
    "objective.final_dim=16", "train.batch_seconds=4", "train.batches_per_step=2", "train.min_seconds=0.5",
    "train.max_seconds=1.2", "train.log_every=1", "train.save_every=4", "train.steps=12", "train.threads=1",
    "train.accelerator=cpu", "train.cache_gb=0", "train.num_workers=2", "train.balance=corpus", "train.max_bad=0.1",
)  # fmt: skip


@pytest.fixture
def two_corpora(manifest: Path, shar: Path, tmp_path: Path) -> tuple[list[Path], Path]:
    """A manifest of which three files are missing and a Shar folder, and labels of both."""
    lines = gzip.decompress(manifest.read_bytes()).splitlines(keepends=True)
    lost = {}
    for number in (1, 2, 3):
        cut = json.loads(lines[number - 1])
        cut["recording"]["sources"][0]["source"] = "/nowhere/lost.flac"
        lost[number] = json.dumps(cut).encode() + b"\n"
    paths = [rewrite(manifest, tmp_path, lost), shar]
    source = open_sources(paths, "train")
    codes = {u.id: torch.arange(round((u.duration or 0) * 50)) % 12 for u in source.index}
    made = make_label_set(codes, num_labels=12, label_rate=50.0, corpus=source.fingerprint, origin="time")
    made.save(label_path(tmp_path / "labels", "train"))
    return paths, tmp_path / "labels"


def _run(corpora: Sequence[Path], labels: Path, output: Path) -> list[tuple[float, float]]:
    pretrain("hubert_tiny", corpus=corpora, labels=[labels], output=output, overrides=SETTINGS)
    return [(line["step"], line["loss"]) for line in read_log(output)]


def test_a_run_with_workers_is_stopped_as_a_group_and_goes_on_bit_for_bit(
    two_corpora: tuple[list[Path], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    corpora, labels = two_corpora
    whole = _run(corpora, labels, tmp_path / "whole")
    assert "number 1 that can't be read: The audio file /nowhere/lost.flac does not exist" in caplog.text
    folder = tmp_path / "stopped"
    options = [*(f"--corpus={c}" for c in corpora), f"--labels={labels}"]
    command = [sys.executable, "-m", "speechssl", "pretrain", "hubert_tiny", *options, "-o", str(folder), *SETTINGS]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, env=environment, cwd=Path(__file__).parent.parent, stderr=subprocess.PIPE, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        if (folder / "log.jsonl").exists() and (folder / "log.jsonl").read_text().count("\n") >= 2:
            os.killpg(process.pid, signal.SIGTERM)  # as Slurm does: the workers get it too
            break
        time.sleep(0.005)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors.decode()
    assert b"goes on from there" in errors
    stopped = len(read_log(folder))
    assert 2 <= stopped < 12
    assert _run(corpora, labels, folder) == whole


def test_what_a_run_was_begun_with_is_checked(two_corpora: tuple[list[Path], Path], manifest: Path) -> None:
    corpora, labels = two_corpora
    upstream = load_upstream("hubert_tiny", random_weights=0)

    def identity(paths: Sequence[Path], folders: Sequence[Path], **changes: object) -> dict[str, object]:
        config = PretrainConfig(min_seconds=0.5, **changes)  # type: ignore[arg-type]  # a test's shorthand
        return dict(open_data(paths, folders, split="train", upstream=upstream, config=config).identity)

    both = identity(corpora, [labels])
    assert both["vocabulary"] is None
    assert identity(corpora, [labels], transcripts="text")["vocabulary"] == sorted(set("abdefgiklmnorstuw "))
    for paths in ([manifest], corpora[::-1], corpora[:1]):
        with pytest.raises(SpeechsslError, match="another corpus"):
            identity(paths, [labels])
        assert identity(paths, [])["corpus"] != both["corpus"]


def test_utterances_shorter_than_a_hidden_span_are_refused(manifest: Path, tmp_path: Path) -> None:
    changes = ("train.min_seconds=0.2", "train.grid_seconds=null")
    with pytest.raises(ConfigError, match=r"longer than a hidden span of 0\.2 s .*but is 0\.2"):
        pretrain("data2vec_tiny", corpus=manifest, output=tmp_path, overrides=changes)
