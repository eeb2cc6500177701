"""The laws of every downstream task, on one labelled corpus.

A new task gets them for nothing: one line in `SMALL` says how it is made small.
"""

import dataclasses
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from labelled_corpus import write_labelled
from torch import Tensor

from speechssl.abilities import MeasuresFeatures
from speechssl.config import load_config
from speechssl.data.corpus import open_corpus
from speechssl.devices import CPU
from speechssl.feature_store import FeatureStore
from speechssl.fitting import Fit
from speechssl.inference import infer_with, load_run
from speechssl.jobs import RunOptions, build_task, compute_features
from speechssl.loading import load_upstream
from speechssl.predicting import predict
from speechssl.probe import build_probe
from speechssl.registry import list_tasks, task_module
from speechssl.result import load_result
from speechssl.runner import resolve_config, run
from speechssl.suite import find_suite, suite_names
from speechssl.task import Task, TaskData
from speechssl.variants import make_variants

TRAIN = ("train.steps=2", "train.evaluate_every=2", "train.batch_seconds=6", "train.warmup_steps=0")
SIMULATED = ("simulate.train=6", "simulate.dev=3", "simulate.test=3", "simulate.duration=2.5")
SMALL: Mapping[str, tuple[str, ...]] = {
    "asr": ("asr_demo", *TRAIN, "project_size=8", "hidden_size=8"),
    "deepfake_detection": (
        "deepfake_detection_demo", *TRAIN, "spoof.seen=[world]", "spoof.unseen=[lpc]", "spoof.processes=1",
        "spoof.conditioning.seconds=0.5", "spoof.train={real: 6, per_attack: 4}", "spoof.dev={real: 4, per_attack: 4}",
        "spoof.test={real: 4, per_attack: 4}", "head.width=8", "head.attention=4",
    ),
    "diarization": ("diarization_demo", *TRAIN, *SIMULATED, "hidden_size=8"),
    "emotion_recognition": ("emotion_recognition", *TRAIN),
    "intent_classification": ("intent_classification", *TRAIN),
    "keyword_spotting": ("keyword_spotting", *TRAIN),
    "language_identification": ("language_identification", *TRAIN),
    "phoneme_recognition": ("phoneme_recognition", *TRAIN, "phones=labels", "inventory=null", "project_size=8"),
    "probe": ("probe", *TRAIN, "fields=[emotion]"),
    "query_by_example": ("query_by_example",),
    "slot_filling": ("slot_filling", *TRAIN, "project_size=8", "hidden_size=8"),
    "source_separation": ("source_separation_demo", *TRAIN, *SIMULATED, "hidden_size=8"),
    "speaker_identification": ("speaker_identification", *TRAIN, "train.max_duration=null", "features.crops=0"),
    "speaker_verification": (
        "speaker_verification_demo", *TRAIN, "project_size=8", "pooled_size=8", "embedding_size=8", "speeds=[]",
    ),
    "speech_enhancement": ("speech_enhancement_demo", *TRAIN, *SIMULATED, "hidden_size=8"),
    "voice_conversion": (
        "voice_conversion_demo", *TRAIN, "language=aa", "targets=2", "dev_pairs=2", "test_pairs=2", "judges=none",
        "source_seconds=[0.5,3.0]", "reference_seconds=2", "profile_utterances=1", "vocoder=griffin_lim", "examples=1",
        "head={width: 8, blocks: 1, refining_blocks: 1, kernel: 3}",
    ),
}  # fmt: skip
UPSTREAM = "hubert_tiny:random"
TASKS = list_tasks()


@pytest.fixture(scope="session")
def labelled(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_labelled(tiny_corpus, tmp_path_factory.mktemp("labelled") / "corpus")


@cache
def prepared(name: str, labelled: Path) -> tuple[Task, TaskData, FeatureStore]:
    """The small task with its data and features, once for all laws."""
    preset, *overrides = SMALL[name]
    task = build_task(*resolve_config(preset, overrides=[*overrides, "features.layers=[0,2]"]))
    data = task.prepare(open_corpus(labelled))
    upstream = load_upstream("hubert_tiny", random_weights=0)
    store = compute_features(upstream, task, data, RunOptions(str(labelled.parent / "cache")))
    if not isinstance(store, FeatureStore):
        pytest.fail("a small task is cached")
    return task, data, store


def make_probe(name: str, labelled: Path, data: TaskData | None = None) -> Any:
    task, own, store = prepared(name, labelled)
    return build_probe(
        task, own if data is None else data, num_layers=store.num_layers, size=store.hidden_size,
        frame_rate=store.frame_rate, seed=0,
    ).eval()  # fmt: skip


def alike(one: Any, other: Any, tolerance: float) -> bool:
    if isinstance(one, Tensor):
        one, other = one.float().numpy(), other.float().numpy()
    elif dataclasses.is_dataclass(one):
        one, other = vars(one), vars(other)
    if isinstance(one, np.ndarray | float):
        return np.shape(one) == np.shape(other) and np.allclose(one, other, atol=tolerance, rtol=tolerance)
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(alike(one[k], other[k], tolerance) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(alike(a, b, tolerance) for a, b in zip(one, other, strict=True))
    return bool(one == other)


def test_every_task_has_a_line_here() -> None:
    assert set(TASKS) == set(SMALL), "say in SMALL how the new task is made small"


@pytest.mark.parametrize("name", TASKS)
def test_presets_and_heads_are_settings_that_fit(name: str) -> None:
    config = task_module(name, "config")
    assert name in config.PRESETS and all(preset == name or preset.startswith(f"{name}_") for preset in config.PRESETS)
    for preset in config.PRESETS.values():
        for variant in make_variants(name, preset, heads=["all"] if hasattr(config, "HEADS") else []):
            load_config(preset, overrides=variant.overrides)


@pytest.mark.parametrize("name", TASKS)
def test_utterances_have_features_and_come_once(name: str, labelled: Path) -> None:
    _, data, store = prepared(name, labelled)
    assert {"train", "dev", "test"} <= set(data.splits)
    for utterances in data.splits.values():
        ids = [u.id for u in utterances]
        assert ids and len(ids) == len(set(ids)) and all(u in store for u in ids)


@pytest.mark.parametrize("name", TASKS)
def test_the_data_of_two_preparations_is_the_same(name: str, labelled: Path) -> None:
    task, data, _ = prepared(name, labelled)
    again = task.prepare(open_corpus(labelled))
    assert {k: [u.id for u in v] for k, v in data.splits.items()} == {
        k: [u.id for u in v] for k, v in again.splits.items()
    }


@pytest.mark.parametrize("name", TASKS)
def test_the_state_makes_the_head_again_from_json_alone(name: str, labelled: Path) -> None:
    task, data, _ = prepared(name, labelled)
    if isinstance(task, MeasuresFeatures):
        pytest.skip("what dev chose is its state")
    state = json.loads(json.dumps(dict(task.state(data))))
    probe = make_probe(name, labelled)
    make_probe(name, labelled, task.restore(state)).load_state_dict(probe.state_dict())


@pytest.mark.parametrize("name", TASKS)
def test_predictions_depend_neither_on_the_batch_nor_on_the_devices(
    name: str, labelled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, data, store = prepared(name, labelled)
    if isinstance(task, MeasuresFeatures):
        pytest.skip("it reads each utterance's layers by themselves")
    probe = make_probe(name, labelled)

    def found(size: int, devices: int) -> dict[str, Any]:
        train = dataclasses.replace(task.config.train, max_batch_size=size)
        monkeypatch.setattr(task, "config", dataclasses.replace(task.config, train=train))
        return predict(probe, task, data, "dev", store, devices=(CPU,) * devices)

    together = found(3, 1)
    spread = found(3, 2)
    assert list(spread) == list(together) and alike(spread, together, 0.0)
    assert alike(found(1, 1), together, 1e-4)


@pytest.mark.parametrize("name", TASKS)
def test_equal_steps_give_equal_losses_and_reach_the_head(name: str, labelled: Path, tmp_path: Path) -> None:
    task, data, store = prepared(name, labelled)
    losses = []
    for folder in ("a", "b"):
        fit = Fit(task, data, dict.fromkeys(data.splits, store), seed=0, folder=tmp_path / folder, identity="x")
        fit.folder.mkdir()
        if fit.optimizer is None:
            pytest.skip("nothing is trained")
        before = [p.detach().clone() for p in fit.probe.head.parameters()]
        losses.append(fit._step(list(data.splits["train"])[:4]))
        moved = [not torch.equal(p, q) for p, q in zip(fit.probe.head.parameters(), before, strict=True)]
        assert sum(moved) >= len(moved) / 2
    assert losses[0] == losses[1]


@pytest.mark.parametrize("name", TASKS)
def test_a_run_measures_dev_and_test_and_is_applied_to_files(name: str, labelled: Path, tmp_path: Path) -> None:
    preset, *overrides = SMALL[name]
    (result,) = run(
        preset, upstream=UPSTREAM, corpus=labelled, out=tmp_path / "exp",
        overrides=[*overrides, "features.layers=[0,2]"], options=RunOptions(str(labelled.parent / "cache")),
    )  # fmt: skip
    for split in (result.dev, result.test):
        assert result.metric in split.metrics and all(m.n > 0 for m in split.metrics.values())
    counted = [entry for suite in suite_names() for entry in find_suite(suite).entries if entry.task == name]
    known = {*result.test.metrics, *getattr(task_module(name, "config").PRESETS[name], "metrics", ())}
    assert all(set(entry.references) <= known for entry in counted)
    (folder,) = tmp_path.glob("exp/*/hubert_tiny_random/seed0")
    assert load_result(folder).test.metrics.keys() == result.test.metrics.keys()
    assert all((folder / file).is_file() for file in result.test.files.values())
    files = sorted((labelled / "audio").glob("aa*.flac"))[-3:]
    loaded = load_run(folder)
    found = infer_with(loaded, files, folder=tmp_path / "out")
    json.dumps(found)
    header, rows = loaded.task.table(found)
    assert rows and all(len(row) == len(header) and all(isinstance(cell, str) for cell in row) for row in rows)
