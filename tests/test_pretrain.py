"""Pre-training from corpus to upstream folder: labels, alignment, resumption, processes, guards."""

import json
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from speechssl.checkpoint import save_upstream
from speechssl.cli import main
from speechssl.config import load_config
from speechssl.data.batching import Batch, make_generator
from speechssl.data.corpus import open_corpus
from speechssl.errors import ConfigError, SpeechsslError
from speechssl.heads import HEADS_FILE
from speechssl.loading import build_upstream, load_upstream
from speechssl.loss.masked_prediction import PREDICTION_LIMITS
from speechssl.objective import Labelling, Objective, PretrainInputs
from speechssl.targets.alignment import align_codes
from speechssl.targets.cluster import ClusterConfig, cluster
from speechssl.targets.kmeans import load_kmeans
from speechssl.targets.labels import label_path, load_labels, make_label_set
from speechssl.targets.lloyd import KMeansConfig
from speechssl.train.checkpoint import Checkpoint, last_checkpoint, list_checkpoints, save_checkpoint
from speechssl.train.config import PretrainConfig
from speechssl.train.data import PretrainDataset, TrainBatch
from speechssl.train.loading import load_batches
from speechssl.train.loop import Pretraining, TrainingError
from speechssl.train.metrics import read_log
from speechssl.train.optim import learning_rate
from speechssl.train.run import check_span, pretrain, pretrain_config
from speechssl.train.selection import CropConfig
from speechssl.types import LossOutput, Utterance
from upstreams.hubert.config import PRESETS, HubertConfig
from upstreams.hubert.model import build
from upstreams.hubert.pretrain import HubertPretrainConfig, HubertPretraining

SMALL = ("model.width=32", "model.depth=2", "model.heads=2", "model.ffn_width=64", "model.pos_kernel=7")
FAST = (
    *SMALL, "objective.final_dim=16", "train.batch_seconds=6", "train.batches_per_step=2", "train.min_seconds=0.5",
    "train.max_seconds=1.2", "train.log_every=1", "train.save_every=2", "train.steps=8", "train.threads=1",
    "train.accelerator=cpu", "train.warmup=0.25", "train.learning_rate=2e-3",
)  # fmt: skip


@pytest.fixture(scope="module")
def labels(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labels")
    config = ClusterConfig(layer=0, kmeans=KMeansConfig(clusters=12), fraction=1.0)
    cluster(load_upstream("mfcc"), open_corpus(tiny_corpus), folder, config, splits=["train", "dev"])
    return folder


def _losses(folder: Path) -> list[tuple[int, float, float, float]]:
    return [(line["step"], line["loss"], line["accuracy"], line["grad_norm"]) for line in read_log(folder)]


def _command(corpus: Path, labels: Path, output: Path, *overrides: str) -> list[str]:
    arguments = ["pretrain", "hubert_tiny", "--corpus", str(corpus), "--labels", str(labels), "-o", str(output)]
    return ["-c", "from speechssl.cli import main; main()", *arguments, *FAST, *overrides]


# Labels


def test_every_utterance_is_labelled_with_the_nearest_centroid(tiny_corpus: Path, labels: Path) -> None:
    corpus = open_corpus(tiny_corpus)
    kmeans = load_kmeans(labels)
    upstream = load_upstream("mfcc")
    for split in ("train", "dev"):
        found = load_labels(label_path(labels, split))
        utterances = corpus.utterances(split)
        assert found.ids == tuple(u.id for u in utterances)
        assert found.label_rate == 100.0
        from speechssl.audio import read_audio

        for utterance in utterances[:3]:
            features = upstream(read_audio(utterance.path, sample_rate=16_000)[None], layers=[0]).hidden_states[0][0]
            distance = torch.cdist(features.double(), kmeans.centroids.double())
            agree = (distance.argmin(dim=1) == found.by_id()[utterance.id]).float().mean()
            assert agree > 0.99  # float32 against float64 may differ at a tie


def test_interrupted_labelling_goes_on_and_ends_with_the_same_labels(
    tiny_corpus: Path, labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from speechssl.targets import cluster as module

    config = ClusterConfig(layer=0, kmeans=KMeansConfig(clusters=12), fraction=1.0)
    corpus, upstream = open_corpus(tiny_corpus), load_upstream("mfcc")
    extract = module.extract
    asked: list[int] = []

    def broken(upstream, utterances, **options):  # type: ignore[no-untyped-def]  # stands in for `extract`
        asked.append(len(utterances))
        for number, item in enumerate(extract(upstream, utterances, **options)):
            if len(asked) == 2 and number == 20:
                raise KeyboardInterrupt
            yield item

    monkeypatch.setattr(module, "extract", broken)
    with pytest.raises(KeyboardInterrupt):
        cluster(upstream, corpus, tmp_path, config)
    outcome = cluster(upstream, corpus, tmp_path, config)
    assert asked[2] < asked[1]  # the fit and the first shards are kept
    whole = load_labels(label_path(labels, "train"))
    assert outcome.labels["train"].fingerprint() == whole.fingerprint()
    assert 1 < outcome.code_perplexity["train"] <= 12
    with pytest.raises(SpeechsslError, match="another folder"):
        cluster(upstream, corpus, tmp_path, replace(config, seed=1))


# Data


def _utterances(corpus: Path) -> list[Utterance]:
    return open_corpus(corpus).utterances("train")


def test_crops_and_their_labels_begin_together(tiny_corpus: Path) -> None:
    utterances = _utterances(tiny_corpus)
    codes = {u.id: torch.arange(int((u.duration or 0) * 100)) for u in utterances}
    sets = make_label_set(codes, num_labels=1000, label_rate=100.0, corpus="c", origin="time")
    crop = CropConfig(16_000, 50.0, min_seconds=0.5, max_seconds=0.6, seed=3)
    cached, direct = (PretrainDataset(utterances, [sets], crop, cache_gb=gb) for gb in (1.0, 0.0))
    batch = Batch(0, 2, 0, (0, 5, 9))
    starts = set()
    for dataset in (cached, direct):
        item = dataset[batch]
        for row, index in enumerate(batch.indices):
            start = int(item.inputs.codes[0][row, 0]) * 160
            assert start % 320 == 0
            starts.add(start)
            from speechssl.audio import read_audio

            whole = read_audio(dataset.utterances[index].path, sample_rate=16_000)
            length = int(item.inputs.lengths[row])
            torch.testing.assert_close(
                item.inputs.waveform[row, :length], whole[start : start + length], rtol=0, atol=1e-6
            )
    assert len(starts) > 1
    assert torch.equal(cached[batch].inputs.waveform, cached[batch].inputs.waveform)
    assert not torch.equal(cached[batch].inputs.codes[0], cached[replace(batch, epoch=3)].inputs.codes[0])


def test_crops_on_a_grid_need_no_padding(tiny_corpus: Path, labels: Path) -> None:
    sets = [load_labels(label_path(labels, "train"))]
    crop = CropConfig(16_000, 50.0, min_seconds=0.5, max_seconds=2.0, seed=0, grid_seconds=0.5)
    utterances = _utterances(tiny_corpus)
    dataset = PretrainDataset(utterances, sets, crop, cache_gb=1.0)
    assert set(dataset.durations) <= {0.5, 1.0, 1.5, 2.0}
    indices = (0, 3, 7, 12)
    item = dataset[Batch(0, 0, 0, indices)]
    shortest = min(dataset.durations[i] for i in indices)
    assert item.inputs.waveform.shape == (4, round(shortest * 16_000))
    assert item.inputs.lengths.tolist() == [round(shortest * 16_000)] * 4


def test_worker_processes_give_the_same_batches_in_order(tiny_corpus: Path, labels: Path) -> None:
    sets = [load_labels(label_path(labels, "train"))]
    crop = CropConfig(16_000, 50.0, min_seconds=0.5, max_seconds=1.0, seed=0)
    batches = [Batch(n, n % 2, n, (n, n + 1)) for n in range(6)]
    thread = list(
        load_batches(PretrainDataset(_utterances(tiny_corpus), sets, crop, cache_gb=1.0), batches, num_workers=0)
    )
    workers = list(
        load_batches(PretrainDataset(_utterances(tiny_corpus), sets, crop, cache_gb=0.0), batches, num_workers=2)
    )
    for one, two in zip(thread, workers, strict=True):
        assert one.origin == two.origin
        assert torch.equal(one.inputs.waveform, two.inputs.waveform)
        assert torch.equal(one.inputs.codes[0], two.inputs.codes[0])


def test_labels_that_do_not_fit_the_audio_are_an_error(tiny_corpus: Path) -> None:
    utterances = _utterances(tiny_corpus)
    crop = CropConfig(16_000, 50.0, min_seconds=0.5, max_seconds=9.0, seed=0)

    def label_set(rate: float) -> list[object]:
        codes = {u.id: torch.zeros(int((u.duration or 0) * 50), dtype=torch.long) for u in utterances}
        return [make_label_set(codes, num_labels=3, label_rate=rate, corpus="c", origin="o")]

    PretrainDataset(utterances, label_set(50.0), crop, cache_gb=1.0)  # type: ignore[arg-type]
    with pytest.raises(SpeechsslError, match="run `speechssl cluster` again"):
        PretrainDataset(utterances, label_set(100.0), crop, cache_gb=1.0)  # type: ignore[arg-type]


def test_short_and_unlabelled_utterances_are_counted_in_the_log(
    tiny_corpus: Path, caplog: pytest.LogCaptureFixture
) -> None:
    utterances = _utterances(tiny_corpus)
    codes = {u.id: torch.zeros(int((u.duration or 0) * 50), dtype=torch.long) for u in utterances[2:]}
    sets = [make_label_set(codes, num_labels=3, label_rate=50.0, corpus="c", origin="o")]
    short = sum((u.duration or 0) < 1.0 for u in utterances[2:])
    dataset = PretrainDataset(utterances, sets, CropConfig(16_000, 50.0, 1.0, 9.0, 0), cache_gb=1.0)
    assert len(dataset) == len(utterances) - 2 - short
    assert f"2 of {len(utterances)} utterances have no labels" in caplog.text
    assert f"{short} utterances" in caplog.text
    with pytest.raises(SpeechsslError, match="None of"):
        PretrainDataset(utterances, sets, CropConfig(16_000, 50.0, 50.0, 90.0, 0), cache_gb=1.0)


# Objective


def _objective(**changes: object) -> HubertPretraining:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = replace(PRESETS["hubert_tiny"], width=32, depth=2, heads=2, ffn_width=64, pos_kernel=7)
        settings = HubertPretrainConfig(final_dim=16, **changes)  # type: ignore[arg-type]  # a test's shorthand
        return HubertPretraining(build(config), settings, Labelling((9,), (100.0,)))


def _batch() -> PretrainInputs:
    lengths = torch.tensor([16_000, 12_000])
    waveform = 0.1 * torch.randn(2, 16_000, generator=make_generator(0))
    waveform[1, 12_000:] = 0
    return PretrainInputs(waveform, lengths, (torch.randint(9, (2, 100), generator=make_generator(1)),))


def test_labels_at_100_hz_are_taken_at_every_second_place() -> None:
    codes = torch.arange(98)[None]
    assert align_codes(codes, 2.0, 49)[0].tolist() == list(range(0, 98, 2))
    assert align_codes(codes, 1.0, 98)[0].tolist() == list(range(98))
    with pytest.raises(SpeechsslError, match="at least"):
        HubertPretraining(
            build(replace(PRESETS["hubert_tiny"], depth=1)), HubertPretrainConfig(), Labelling((3,), (25.0,))
        )


def test_only_hidden_frames_are_scored() -> None:
    objective = _objective()
    inputs = _batch()
    waveform, lengths, codes = inputs.waveform, inputs.lengths, inputs.codes
    output = objective(inputs, make_generator(5))
    from speechssl.masking.span import sample_span_mask

    features, frames = objective.upstream.extract_features(waveform, lengths)
    mask = sample_span_mask(
        frames, prob=0.8, span=10, min_spans=2, generator=make_generator(5), max_length=features.size(1)
    )
    hidden = objective.upstream.encode(features, frames, layers=frozenset({2}), mask=mask)[2]
    target = codes[0][:, ::2][:, : features.size(1)]
    expected = objective.prediction(hidden[mask], [target[mask]])
    assert output.sample_size.item() == mask.sum().item()
    torch.testing.assert_close(output.loss_sum, expected.loss_sum, rtol=1e-5, atol=1e-4)
    unhidden = objective.prediction(hidden[~mask & (torch.arange(mask.size(1)) < frames[:, None])], [
        target[~mask & (torch.arange(mask.size(1)) < frames[:, None])]
    ])  # fmt: skip
    both = _objective(unmasked_weight=0.5)(inputs, make_generator(5))
    torch.testing.assert_close(both.loss_sum, expected.loss_sum + 0.5 * unhidden.loss_sum, rtol=1e-5, atol=1e-4)


def test_what_is_hidden_does_not_reach_the_encoder() -> None:
    objective = _objective().eval()
    waveform, lengths = _batch().waveform, _batch().lengths
    features, frames = objective.upstream.extract_features(waveform, lengths)
    mask = torch.zeros(features.shape[:2], dtype=torch.bool)
    mask[:, 10:20] = True
    changed = features.masked_fill(mask[:, :, None], 7.0)
    states = [objective.upstream.encode(f, frames, layers=frozenset({2}), mask=mask)[2] for f in (features, changed)]
    assert torch.equal(states[0], states[1])


def test_the_convolutional_frontend_is_penalised_and_the_fixed_one_is_not() -> None:
    inputs = _batch()
    waveform, lengths = inputs.waveform, inputs.lengths
    assert "features_penalty" not in _objective()(inputs, make_generator(5)).metrics
    config = HubertConfig(conv_channels=8, width=32, depth=2, heads=2, ffn_width=64, pos_kernel=8, dropout=0.0,
                          attention_dropout=0.0, input_dropout=0.0, layerdrop=0.0)  # fmt: skip
    outputs = []
    for weight in (10.0, 0.0):
        torch.manual_seed(0)
        objective = HubertPretraining(
            build(config), HubertPretrainConfig(features_penalty=weight), Labelling((9,), (100.0,))
        )
        outputs.append(objective(inputs, make_generator(5)))
    features, frames = objective.upstream.extract_features(waveform, lengths)
    square = torch.cat([row[:n].flatten() for row, n in zip(features, frames.tolist(), strict=True)]).square().mean()
    difference = outputs[0].loss_sum - outputs[1].loss_sum
    torch.testing.assert_close(difference, 10 * square * outputs[0].sample_size, rtol=1e-3, atol=1e-2)


# Schedule and checkpoints


def test_the_rate_warms_up_and_falls_to_zero() -> None:
    config = PretrainConfig(steps=1000, learning_rate=1.0, warmup=0.08)
    rates = [learning_rate(step, config) for step in (1, 40, 80, 540, 1000)]
    assert rates == pytest.approx([1 / 80, 0.5, 1.0, 0.5, 0.0])


def test_a_damaged_checkpoint_is_passed_over_and_old_ones_go(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for step in (2, 4, 6):
        save_checkpoint(tmp_path, Checkpoint(step, {"x": torch.full((3,), float(step))}, {"a": step}), keep=2)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step-00000004", "step-00000006"]
    (tmp_path / "step-00000006" / "tensors.safetensors").write_bytes(b"half")
    found = last_checkpoint(tmp_path)
    assert found is not None
    assert (found.step, found.tensors["x"].tolist(), found.state) == (4, [4.0] * 3, {"a": 4})
    assert "step-00000006" in caplog.text
    (tmp_path / "step-00000004" / "state.json").unlink()
    with pytest.raises(SpeechsslError, match="No checkpoint"):
        last_checkpoint(tmp_path)


def test_a_damaged_log_ends_at_its_first_bad_line(tmp_path: Path) -> None:
    for damage in (b'{"step": 3, "lo', b"[1, 2]\n", b"\xff\xfe\n", b'{"loss": 1}\n'):
        (tmp_path / "log.jsonl").write_bytes(b'{"step": 1}\n{"step": 2}\n' + damage)
        assert [line["step"] for line in read_log(tmp_path)] == [1, 2]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_asking_for_a_gpu_where_there_is_none_says_so(tiny_corpus: Path, labels: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no GPU"):
        pretrain(
            "hubert_tiny", corpus=tiny_corpus, labels=[labels], output=tmp_path,
            overrides=(*FAST, "train.accelerator=cuda"),
        )  # fmt: skip


# Whole runs


def test_a_run_learns_and_leaves_an_upstream(tiny_corpus: Path, labels: Path, tmp_path: Path) -> None:
    overrides = (*FAST, "train.steps=30", "train.log_every=10", "train.save_every=100", "train.learning_rate=4e-3")
    outcome = pretrain("hubert_tiny", corpus=tiny_corpus, labels=[labels], output=tmp_path, overrides=overrides)
    log = read_log(tmp_path)
    assert outcome.finished
    assert [line["step"] for line in log] == [10, 20, 30]
    assert log[-1]["loss"] < log[0]["loss"] - 0.05
    assert 1 <= log[-1]["prediction_perplexity"] <= 12
    upstream = load_upstream(tmp_path)
    assert "30 steps" in upstream.weights
    saved = load_file(list_checkpoints(tmp_path / "checkpoints")[-1] / "tensors.safetensors")
    for name, value in upstream.state_dict().items():
        assert torch.equal(value, saved[f"model.upstream.{name}"])
    assert list((tmp_path / "tensorboard").iterdir())
    again = pretrain("hubert_tiny", corpus=tiny_corpus, labels=[labels], output=tmp_path, overrides=overrides)
    assert again.finished
    assert _losses(tmp_path) == [(line["step"], line["loss"], line["accuracy"], line["grad_norm"]) for line in log]
    with pytest.raises(ConfigError, match=r"model\.depth=2, not 3"):
        pretrain(
            "hubert_tiny", corpus=tiny_corpus, labels=[labels], output=tmp_path, overrides=(*overrides, "model.depth=3")
        )


def test_a_run_starts_from_the_weights_it_is_given(
    tiny_corpus: Path, labels: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    still = (*FAST, "train.steps=2", "train.learning_rate=0")  # so that the weights stay what they were
    shape = replace(PRESETS["hubert_tiny"], width=32, depth=2, heads=2, ffn_width=64, pos_kernel=7)
    small = build_upstream("hubert", shape, seed=5)
    save_upstream(small, tmp_path / "given")
    arguments: dict[str, Any] = {"corpus": tiny_corpus, "labels": [labels], "overrides": still}
    pretrain("hubert_tiny", output=tmp_path / "from", init=tmp_path / "given", **arguments)
    ended = load_upstream(tmp_path / "from")
    assert all(torch.equal(value, small.state_dict()[name]) for name, value in ended.state_dict().items())
    assert "from random (seed 5)" in ended.weights
    with pytest.raises(ConfigError, match="init="):
        pretrain("hubert_tiny", output=tmp_path / "from", **arguments)
    arguments["overrides"] = (*still, "model.width=16")
    with pytest.raises(SpeechsslError, match="shape"):
        pretrain("hubert_tiny", output=tmp_path / "other", init=tmp_path / "given", **arguments)
    arguments["overrides"] = (*still, "model.pre_norm=true")
    pretrain("hubert_tiny", output=tmp_path / "norms", init=tmp_path / "given", **arguments)
    assert "differ in: pre_norm" in caplog.text


def test_sigterm_saves_and_exits_in_order(
    tiny_corpus: Path, labels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def terminate() -> None:
        while not ((tmp_path / "log.jsonl").exists() and (tmp_path / "log.jsonl").read_text()):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=terminate)
    thread.start()
    settings = ("train.save_every=100000", "train.steps=1000")
    with pytest.raises(SystemExit) as stopped:
        main(_command(tiny_corpus, labels, tmp_path, *settings)[2:])
    thread.join()
    assert stopped.value.code == 143
    assert "goes on from there" in capsys.readouterr().err
    checkpoint = last_checkpoint(tmp_path / "checkpoints")
    assert checkpoint is not None
    assert checkpoint.step == read_log(tmp_path)[-1]["step"]


def test_a_stop_amid_a_step_forgets_what_was_done_of_it(
    tiny_corpus: Path, labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = (*FAST, "train.batches_per_step=4", "train.steps=4", "train.save_every=100")
    arguments: dict[str, Any] = {"corpus": tiny_corpus, "labels": [labels], "overrides": settings}
    pretrain("hubert_tiny", output=tmp_path / "whole", **arguments)
    seen: list[int] = []
    forward = Pretraining._forward

    def stopping(self: Pretraining, batch: TrainBatch) -> dict[str, Tensor]:
        seen.append(batch.origin.number)
        if batch.origin.number == 9:  # the second of the third step
            os.kill(os.getpid(), signal.SIGTERM)
        return forward(self, batch)

    monkeypatch.setattr(Pretraining, "_forward", stopping)
    outcome = pretrain("hubert_tiny", output=tmp_path / "part", **arguments)
    assert (outcome.finished, outcome.step, seen[-1]) == (False, 2, 9)
    monkeypatch.undo()
    assert pretrain("hubert_tiny", output=tmp_path / "part", **arguments).finished
    one, other = (load_upstream(tmp_path / name).state_dict() for name in ("whole", "part"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    lines = [[{k: v for k, v in row.items() if k in ("step", "loss")} for row in read_log(tmp_path / name)]
             for name in ("whole", "part")]  # fmt: skip
    assert lines[0] == lines[1]


def test_a_stop_before_the_first_step_leaves_nothing_to_go_on_from(
    tiny_corpus: Path, labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = Pretraining._forward

    def stopping(self: Pretraining, batch: TrainBatch) -> dict[str, Tensor]:
        os.kill(os.getpid(), signal.SIGTERM)
        return forward(self, batch)

    monkeypatch.setattr(Pretraining, "_forward", stopping)
    overrides = (*FAST, "train.batches_per_step=4")
    outcome = pretrain("hubert_tiny", corpus=tiny_corpus, labels=[labels], output=tmp_path, overrides=overrides)
    assert (outcome.finished, outcome.step) == (False, 0)
    assert not list_checkpoints(tmp_path / "checkpoints")


def test_too_many_unreadable_files_stop_a_run_with_its_last_whole_step_saved(
    tiny_corpus: Path, labels: Path, tmp_path: Path
) -> None:
    run = _broken_run(_Broken(1.0, torch.tensor([5.0, 5.0])), tiny_corpus, labels, tmp_path)
    update = run._update

    def broken(batches: Any) -> bool:
        return update(_fails() if run.step == 3 else batches)

    def _fails() -> Any:
        raise SpeechsslError("9 of 10 utterances can't be read.")
        yield

    run._update = broken  # type: ignore[method-assign]
    with pytest.raises(SpeechsslError, match="9 of 10"):
        run.run()
    checkpoint = last_checkpoint(tmp_path / "checkpoints")
    assert checkpoint is not None
    assert checkpoint.step == 3


def test_noise_that_nothing_mixes_in_is_refused(tiny_corpus: Path, labels: Path, tmp_path: Path) -> None:
    overrides = (*FAST, f"train.noise={tiny_corpus}")
    with pytest.raises(ConfigError, match=r"mixes no noise in: leave out `train\.noise`"):
        pretrain("hubert_tiny", corpus=tiny_corpus, labels=[labels], output=tmp_path, overrides=overrides)


def test_heads_without_labels_go_on_from_a_finished_run(
    tiny_corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shape = ("model.width=32", "model.depth=2", "model.heads=2", "model.ffn_width=64")
    small = (*FAST, *shape, "train.steps=2", "train.learning_rate=0")
    small = tuple(word for word in small if not word.startswith("objective."))
    pretrain("best_rq_tiny", corpus=tiny_corpus, output=tmp_path / "a", overrides=small)
    with caplog.at_level("INFO"):
        other = (*small, "train.seed=3")
        pretrain("best_rq_tiny", corpus=tiny_corpus, output=tmp_path / "b", init=tmp_path / "a", overrides=other)
    assert "All that the objective adds goes on from" in caplog.text
    one, two = (load_file(tmp_path / name / HEADS_FILE) for name in ("a", "b"))
    assert one.keys() == two.keys()
    assert all(torch.equal(value, two[name]) for name, value in one.items())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_seconds": 0.1, "min_seconds": 0.1}, r"`train\.min_seconds` must be longer than a hidden span"),
        ({"max_seconds": 1.0, "min_seconds": 2.0}, r"`max_seconds` must be >= min_seconds = 2, but is 1"),
        ({"learning_rate": -1.0}, "`learning_rate` must not be negative, but is -1"),
    ],
)
def test_settings_that_can_not_be_meant_are_refused(settings: dict[str, float], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        _, config = pretrain_config("hubert_tiny")
        check_span(replace(config, train=replace(config.train, **settings)), 50.0)


def test_the_collapse_guard_is_awake_in_short_runs() -> None:
    assert [PretrainConfig(steps=n).patience for n in (300, 4000, 400_000)] == [500, 1000, 5000]
    assert PretrainConfig(steps=300, collapse_steps=7).patience == 7


class _Broken(Objective):
    """An objective whose loss is as told from the third micro-batch on."""

    uses_labels = True
    limits = PREDICTION_LIMITS

    def __init__(self, loss: float, predicted: Tensor) -> None:
        super().__init__(load_upstream("fbank"), Labelling((12,), (100.0,)))
        self.weight = nn.Parameter(torch.ones(()))
        self.loss = loss
        self.predicted = predicted
        self.calls = 0

    def forward(self, inputs: PretrainInputs, generator: torch.Generator) -> LossOutput:
        self.calls += 1
        factor = self.loss if self.calls >= 3 else 1.0
        metrics = {"accuracy": torch.zeros(()), "prediction_usage": self.predicted}
        return LossOutput(self.weight * factor, torch.ones(()), metrics)


def _broken_run(module: Objective, corpus: Path, labels: Path, folder: Path, **changes: object) -> Pretraining:
    sets = [load_labels(label_path(labels, "train"))]
    dataset = PretrainDataset(_utterances(corpus), sets, CropConfig(16_000, 50.0, 0.5, 1.0, 0), cache_gb=1.0)
    config = PretrainConfig(
        steps=12, batches_per_step=1, batch_seconds=4, log_every=2, save_every=4, precision="float32",
        accelerator="cpu", **changes,  # type: ignore[arg-type]  # a test's shorthand
    )  # fmt: skip
    return Pretraining(module, dataset, config, folder)


def test_a_loss_that_is_not_finite_stops_with_its_step(tiny_corpus: Path, labels: Path, tmp_path: Path) -> None:
    module = _Broken(float("nan"), torch.tensor([5.0, 5.0]))
    with pytest.raises(TrainingError, match="not finite at step 3"):
        _broken_run(module, tiny_corpus, labels, tmp_path).run()
    assert not list_checkpoints(tmp_path / "checkpoints")  # none was written with broken weights


def test_collapsed_predictions_stop_with_their_step(tiny_corpus: Path, labels: Path, tmp_path: Path) -> None:
    module = _Broken(1.0, torch.tensor([9.0, 0.0]))
    with pytest.raises(TrainingError, match=r"collapsed at step 6 \(prediction perplexity 1\.00"):
        _broken_run(module, tiny_corpus, labels, tmp_path, collapse_steps=6).run()


def test_labels_of_another_corpus_are_refused(tiny_corpus: Path, labels: Path, tmp_path: Path) -> None:
    found = load_labels(label_path(labels, "train"))
    replace(found, corpus="another").save(label_path(tmp_path, "train"))
    with pytest.raises(SpeechsslError, match="another corpus"):
        pretrain("hubert_tiny", corpus=tiny_corpus, labels=[tmp_path], output=tmp_path / "o", overrides=FAST)
    with pytest.raises(SpeechsslError, match="no labels"):
        pretrain("hubert_tiny", corpus=tiny_corpus, labels=[tmp_path / "x"], output=tmp_path / "o", overrides=FAST)
    with pytest.raises(SpeechsslError, match="can't be pre-trained"):
        pretrain("mfcc", corpus=tiny_corpus, labels=[labels], output=tmp_path / "o")


def test_settings_are_checked(tiny_corpus: Path) -> None:
    with pytest.raises(ConfigError, match="steps"):
        PretrainConfig(steps=0)
    with pytest.raises(ConfigError, match="learning_rate"):
        load_config(PretrainConfig(), overrides=["learning_rat=1"])
    assert json.loads(json.dumps(PretrainConfig().__dict__))["batches_per_step"] == 32
