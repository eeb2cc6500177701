"""Predictions of a trained probe for a split, on one device or several.

K layers, B batch, T frames, D width.
"""

import copy
from collections.abc import Generator, Sequence
from typing import Any

import torch

from speechssl.adapt.live import LiveFeatures
from speechssl.data.batching import bucket_batches
from speechssl.devices import Devices, deal, in_turn
from speechssl.feature_batches import Features, place
from speechssl.feature_store import FeatureStore
from speechssl.probe import Probe
from speechssl.task import Task, TaskData, TrainConfig
from speechssl.types import Utterance


def predict(
    probe: Probe, task: Task, data: TaskData, split: str, features: Features, *, devices: Devices
) -> dict[str, Any]:
    """Predictions for every utterance of a split: id -> what the task returns.

    Batch k goes to device k modulo their number, and there to a copy, made here, of the probe and of an upstream that
    is trained.
    """
    probe.eval()
    utterances = list(data.splits[split])
    config: TrainConfig = task.config.train
    durations = [u.duration or 1.0 for u in utterances]
    batches = bucket_batches(durations, batch_seconds=config.batch_seconds, max_size=config.max_batch_size)
    parts = [[utterances[i] for i in indices] for indices in batches]
    used = devices[: len(parts)]
    own = [(probe, features), *(_copies(probe, features, device) for device in used[1:])]
    shares = zip(own, deal(parts, len(used)), used, strict=True)
    made = in_turn([_predict_each(*copied, task, data, share, device) for copied, share, device in shares])
    return {u.id: p for part, found in zip(parts, made, strict=True) for u, p in zip(part, found, strict=True)}


def _copies(probe: Probe, features: Features, device: torch.device) -> tuple[Probe, Features]:
    copied = Probe(copy.deepcopy(probe.featurizer), copy.deepcopy(probe.head)).to(device).eval()
    return copied, features.on(device) if isinstance(features, LiveFeatures | FeatureStore) else features


def _predict_each(  # noqa: PLR0917  what `predict` has
    probe: Probe,
    features: Features,
    task: Task,
    data: TaskData,
    parts: Sequence[Sequence[Utterance]],
    device: torch.device,
) -> Generator[list[Any], None, None]:
    """Yields the predictions of each batch."""
    ids = ([u.id for u in part] for part in parts)
    made = features.batches(ids) if isinstance(features, LiveFeatures) else map(features.batch, ids)
    for part, (states, lengths) in zip(parts, made, strict=True):
        with torch.no_grad():
            joined = probe.featurizer(place(states, device), lengths.to(device))
            found = task.predict(probe.head, joined, lengths.to(device), part, data)
        yield found
