"""Several devices: their names, results in order, and numbers that do not depend on how many there are.

The CPU named several times stands for several GPUs: each time it has a thread and copies of its own.
"""

import dataclasses
import threading
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import the_sentence
from torch import Tensor, nn

from downstreams.asr.config import AsrConfig
from speechssl.adapt.adaptable import Adaptable
from speechssl.adapt.config import AdaptConfig
from speechssl.adapt.live import LiveFeatures
from speechssl.cache import FeatureCache
from speechssl.data.corpus import open_corpus
from speechssl.devices import CPU, deal, in_turn, replicate, resolve_devices, share
from speechssl.errors import AudioError, ConfigError
from speechssl.extraction import extract
from speechssl.jobs import RunOptions, build_task, compute_features
from speechssl.loading import load_upstream
from speechssl.predicting import predict
from speechssl.probe import build_probe
from speechssl.result import RunResult
from speechssl.runner import run
from speechssl.separation.waveforms import WaveformReader
from speechssl.streaming import StreamedStore
from speechssl.task import TrainConfig
from speechssl.types import Utterance
from speechssl.upstream import Upstream

CONFIG = AsrConfig(
    train=TrainConfig(steps=4, batch_seconds=6.0, learning_rate=5e-3, evaluate_every=2),
    label_rate=25.0,
    project_size=12,
    hidden_size=8,
)
THREAD = "speechssl-device"


def tiny() -> Upstream:
    return load_upstream("hubert_tiny", random_weights=0)


@pytest.fixture
def utterances(tiny_corpus: Path) -> list[Utterance]:
    corpus = open_corpus(tiny_corpus)
    return [*corpus.utterances("dev")[:5], *corpus.utterances("test")[:5]]


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ("cpu", ["cpu"]),
        ("cpu, cpu", ["cpu", "cpu"]),
        ("cuda", ["cuda:0", "cuda:1", "cuda:2"]),
        ("cuda:2,cuda:0", ["cuda:2", "cuda:0"]),
        ("cpu,cuda", ["cpu", "cuda:0", "cuda:1", "cuda:2"]),
    ],
)
def test_devices_are_named_one_by_one_or_by_their_kind(
    names: str, found: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 3)
    assert [str(device) for device in resolve_devices(names)] == found


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ("gpu", "'gpu' can't be used .*none of this name"),
        ("", "'' can't be used"),
        ("cpu,,cpu", "'' can't be used"),
        ("cuda:1", "'cuda:1' can't be used .*sees 1 of its kind"),
        ("cuda:0,cuda:7", "'cuda:7' can't be used"),
        ("meta", "'meta' can't be used .*sees 0"),
        ("mps", "'mps' can't be used .*sees 0"),
    ],
)
def test_a_device_that_is_not_there_is_named(names: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match=says):
        resolve_devices(names)


def test_a_run_refuses_an_absent_device_before_anything_else(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["run", "asr", "-u", "fbank", "--corpus", "nowhere", "--devices", "cpu,xpu:3"]
    assert "The device 'xpu:3' can't be used" in the_sentence(capsys, *command)


@pytest.mark.parametrize(
    ("names", "processes", "shares"),
    [("cuda", 1, ["0,1,2"]), ("cuda", 2, ["0,2", "1"]), ("cuda", 3, ["0", "1", "2"]), ("cuda", 5, [*"01201"])],
)
def test_processes_share_all_devices(
    names: str, processes: int, shares: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 3)
    assert [own.replace("cuda:", "") for own in share(names, processes)] == shares


# ---------------------------------------------------------------- results in order


class Sources:
    """Squares of what is dealt out, with a note of the threads that made them and of the sources that were closed."""

    def __init__(self, items: range, count: int) -> None:
        self.threads: list[set[str]] = [set() for _ in range(count)]
        self.made: list[int] = []
        self.closed = 0
        self.all = [self.make(part, own) for part, own in zip(deal(items, count), self.threads, strict=True)]

    def make(self, items: Any, threads: set[str]) -> Generator[int, None, None]:
        try:
            for item in items:
                threads.add(threading.current_thread().name)
                self.made.append(item)
                if item == 13:
                    raise ValueError("thirteen")
                yield item * item
        finally:
            self.closed += 1


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [0, 1, 3, 8, 13])
def test_what_threads_make_comes_in_order(size: int, count: int) -> None:
    sources = Sources(range(size), count)
    assert list(in_turn(sources.all)) == [item * item for item in range(size)]
    names = set[str]().union(*sources.threads)
    if count > 1:
        assert all(name.startswith(THREAD) for name in names) and all(len(own) <= 1 for own in sources.threads)
        assert len(names) == len([own for own in sources.threads if own])


def test_an_error_comes_in_its_turn_and_ends_all_sources() -> None:
    sources = Sources(range(100), 3)
    made = in_turn(sources.all)
    assert [next(made) for _ in range(13)] == [item * item for item in range(13)]
    with pytest.raises(ValueError, match="thirteen"):
        next(made)
    assert sources.closed == 3 and len(sources.made) < 25


def test_who_stops_early_leaves_no_thread_and_little_made_in_vain() -> None:
    sources = Sources(range(13), 3)
    made = in_turn(sources.all)
    assert next(made) == 0
    made.close()
    assert sources.closed == 3 and len(sources.made) <= 7
    assert not any(thread.name.startswith(THREAD) for thread in threading.enumerate())


def test_copies_are_apart_and_one_device_needs_none() -> None:
    module = nn.Linear(2, 2)
    assert replicate(module, [CPU]) == [module] == replicate(module, ())
    first, second, third = replicate(module, [CPU] * 3)
    assert first is module and second is not third
    with torch.no_grad():
        module.weight.zero_()
    assert torch.equal(second.weight, third.weight) and second.weight.any()


# ---------------------------------------------------------------- features


class Threads:
    """The threads that call a method, and how often each does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        self.found: dict[str, int] = {}
        original = getattr(owner, name)

        def noted(*args: Any, **named: Any) -> Any:
            thread = threading.current_thread().name
            self.found[thread] = self.found.get(thread, 0) + 1
            return original(*args, **named)

        monkeypatch.setattr(owner, name, noted)


@pytest.mark.parametrize("settings", [{}, {"in_order": True}, {"precision": "bf16"}, {"chunk": 1.0, "context": 0.2}])
def test_features_are_the_same_on_any_number_of_devices(
    settings: dict[str, Any], utterances: list[Utterance], monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream = tiny()
    one = list(extract(upstream, utterances, batch_seconds=3.0, **settings))
    threads = Threads(monkeypatch, type(upstream), "forward")
    for count in (2, 3)[: 1 if settings else 2]:
        threads.found.clear()
        several = list(extract(upstream, utterances, batch_seconds=3.0, devices=[CPU] * count, **settings))
        assert len(threads.found) == count and all(name.startswith(THREAD) for name in threads.found)
        assert [u.id for u, _ in several] == [u.id for u, _ in one]
        assert all(
            torch.equal(torch.stack([*a]), torch.stack([*b])) for (_, a), (_, b) in zip(one, several, strict=True)
        )


def test_bad_files_are_left_out_or_refused_alike(utterances: list[Utterance], tmp_path: Path) -> None:
    (tmp_path / "broken.flac").write_bytes(b"no audio")
    broken = [dataclasses.replace(u, id=f"bad{u.id}", path=str(tmp_path / "broken.flac")) for u in utterances[:3]]
    items = [*utterances[:4], *broken, *utterances[4:]]
    kept: list[list[str]] = []
    for devices in ([], [CPU] * 3):
        bad: dict[str, str] = {}
        made = extract(tiny(), items, batch_seconds=3.0, skip_bad=True, bad=bad, devices=devices)
        kept.append([u.id for u, _ in made])
        assert set(bad) == {u.id for u in broken}
        with pytest.raises(AudioError, match=r"broken\.flac"):
            list(extract(tiny(), items, batch_seconds=3.0, devices=devices))
    assert kept[0] == kept[1] and len(kept[0]) == len(utterances)


def test_the_cache_holds_the_same_and_copies_nothing_for_what_it_holds(
    utterances: list[Utterance], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = FeatureCache(tmp_path / "one").features(tiny(), utterances, batch_seconds=3.0)
    upstream = tiny()
    two = FeatureCache(tmp_path / "two").features(upstream, utterances, batch_seconds=3.0, devices=[CPU] * 2)
    assert two.computed == len(utterances) == one.computed
    assert all(torch.equal(one.get(u.id), two.get(u.id)) for u in utterances)
    monkeypatch.setattr("speechssl.extraction.replicate", None)  # whoever calls it fails
    again = FeatureCache(tmp_path / "two").features(upstream, utterances, devices=[CPU] * 2)
    assert again.from_cache == len(utterances)


# ---------------------------------------------------------------- predictions


def prepared(corpus: Path, folder: Path, *, cache_gb: float = 1.0, **changes: Any) -> tuple[Any, Any, Any]:
    """Task, data and features; live ones where they are adapted."""
    task = build_task("asr", dataclasses.replace(CONFIG, **changes))
    data = task.prepare(open_corpus(corpus))
    source = compute_features(tiny(), task, data, RunOptions(str(folder), cache_gb))
    return task, data, source.adapt(task.config.adapt, seed=0) if isinstance(source, Adaptable) else source


def make_predict(task: Any, data: Any, features: Any) -> Callable[[int], dict[str, Any]]:
    sizes = {"num_layers": features.num_layers, "size": features.hidden_size, "frame_rate": features.frame_rate}
    probe = build_probe(task, data, seed=0, **sizes)
    return lambda count: predict(probe, task, data, "dev", features, devices=(CPU,) * count)


def log_probabilities(found: dict[str, Any]) -> list[Tensor]:
    return [heard.log_probs for heard in found.values()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def saving() -> Any:
    """Settings with which predictions are log-probabilities, and not only texts."""
    return dataclasses.replace(CONFIG.decode, save_log_probs=True)


@pytest.mark.parametrize("cache", [True, False])
def test_an_upstream_that_is_trained_is_copied_as_it_is_at_each_evaluation(
    cache: bool, tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapt = AdaptConfig(method="full", cache=cache)
    task, data, live = prepared(tiny_corpus, tmp_path, adapt=adapt, decode=saving())
    found = make_predict(task, data, live)
    before = log_probabilities(found(1))
    threads = Threads(monkeypatch, LiveFeatures, "batch")
    assert same(before, log_probabilities(found(2)))
    assert len(threads.found) == 2 and all(name.startswith(THREAD) for name in threads.found)
    with torch.no_grad():
        for parameter in live.adapted.trained.values():
            parameter.mul_(1.5)
    after = log_probabilities(found(1))
    assert not same(before, after) and same(after, log_probabilities(found(3)))
    assert all(parameter.requires_grad for parameter in live.adapted.trained.values())


@pytest.mark.parametrize("adapt", [{}, {"method": "lora", "top_layers": 1}], ids=["frozen", "adapted"])
def test_frames_beyond_the_budget_are_computed_on_every_device(
    adapt: dict[str, Any], tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, data, store = prepared(tiny_corpus, tmp_path, cache_gb=1e-6, decode=saving(), adapt=AdaptConfig(**adapt))
    assert isinstance(store._store if adapt else store, StreamedStore)
    found = make_predict(task, data, store)
    threads = Threads(monkeypatch, type(tiny()), "forward")
    several = log_probabilities(found(2))
    assert len(threads.found) == 2 and all(name.startswith(THREAD) for name in threads.found)
    assert same(several, log_probabilities(found(1)))


def test_waveforms_are_read_by_several_threads_at_once(utterances: list[Utterance]) -> None:
    """With room for two of them each thread throws out what the others are about to take."""
    reader = WaveformReader(lambda _: (), max_bytes=2 * 4 * 16_000)
    expected = {u.id: reader.batch([u]).mixture for u in utterances}

    def read(first: int) -> Iterator[bool]:
        for k in range(150):
            chosen = utterances[(first + 7 * k) % len(utterances)]
            yield torch.equal(reader.batch([chosen]).mixture, expected[chosen.id])

    sources = [(found for found in read(first)) for first in (0, 1, 2, 3)]
    assert all(in_turn(sources))
    assert reader._bytes == sum(held.nbytes for held in reader._held.values()) <= reader.max_bytes


# ---------------------------------------------------------------- runs


def numbers(results: list[RunResult]) -> list[Any]:
    return [[r.curves, {k: v.value for k, v in r.test.metrics.items()}, r.layer_weights, r.best_step] for r in results]


def once(corpus: Path, out: Path, *, adapt: AdaptConfig | None = None, **options: Any) -> list[RunResult]:
    """Two seeds on filterbanks; or, where it is adapted, one on a model, which takes longer."""
    train = dataclasses.replace(CONFIG.train, batch_seconds=3.0)
    config = dataclasses.replace(CONFIG, train=train, adapt=adapt or CONFIG.adapt, subset=0.4)
    upstream, seeds = ("fbank", [0, 1]) if adapt is None else ("hubert_tiny:random", [0])
    found = RunOptions(str(out.parent / "cache"), **options)
    return run("asr", upstream=upstream, corpus=corpus, config=config, out=out, seeds=seeds, options=found)


def test_a_run_has_the_same_numbers_on_any_number_of_devices(tiny_corpus: Path, tmp_path: Path) -> None:
    one = once(tiny_corpus, tmp_path / "one")
    three = once(tiny_corpus, tmp_path / "three", devices="cpu,cpu,cpu")
    spread = once(tiny_corpus, tmp_path / "spread", devices="cpu,cpu,cpu", jobs=2)
    assert numbers(one) == numbers(three) == numbers(spread)
    assert [r.hardware.get("devices") for r in (*one, *three)] == [None, None, 3, 3]
    assert {r.hardware.get("devices") for r in spread} <= {None, 2}, "each process has devices of its own"


def test_a_run_that_adapts_has_the_same_numbers_on_any_number_of_devices(tiny_corpus: Path, tmp_path: Path) -> None:
    adapt = AdaptConfig(method="lora", lora_rank=2)
    one = once(tiny_corpus, tmp_path / "one", adapt=adapt)
    assert numbers(one) == numbers(once(tiny_corpus, tmp_path / "two", adapt=adapt, devices="cpu,cpu"))


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() == 0, reason="needs a GPU")
@pytest.mark.parametrize("adapt", [None, AdaptConfig(method="lora", lora_rank=2)])
def test_gpus_give_the_numbers_of_one_gpu(adapt: AdaptConfig | None, tiny_corpus: Path, tmp_path: Path) -> None:
    several = "cuda" if torch.cuda.device_count() > 1 else "cuda:0,cuda:0"
    one = once(tiny_corpus, tmp_path / "one", adapt=adapt, devices="cuda:0")
    many = once(tiny_corpus, tmp_path / "many", adapt=adapt, devices=several)
    for a, b in zip(one, many, strict=True):
        assert a.test.metrics["wer"].value == pytest.approx(b.test.metrics["wer"].value, abs=1e-4)
