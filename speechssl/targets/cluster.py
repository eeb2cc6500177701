"""Clusters the features of a corpus and labels every utterance: the targets of HuBERT's pre-training.

Features are made batch by batch and never all held: of the sample as many frames as asked for, of the rest none.
"""

import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speechssl.config import first_difference, to_dict
from speechssl.data.batching import make_generator
from speechssl.data.corpus import Corpus
from speechssl.errors import ConfigError, SpeechsslError
from speechssl.extraction import Precision, extract, measure
from speechssl.metric.codes import perplexity
from speechssl.progress import progress
from speechssl.targets.kmeans import KMeans, KMeansConfig, fit_kmeans, load_kmeans
from speechssl.targets.labels import LabelSet, label_path, load_labels, make_label_set
from speechssl.types import Utterance
from speechssl.upstream import Upstream

logger = logging.getLogger(__name__)
SHARD = 0.05
"""Share of a split's audio that is labelled between two writes to disk."""


@dataclass(frozen=True)
class ClusterConfig:
    """What is clustered, and how.

    Paper: Hsu et al. 2021, sec. 4.1, arXiv:2106.07447: MFCC with 100 clusters, then layer 6
    with 500, fitted on 10 % of the data.
    """

    layer: int
    kmeans: KMeansConfig = field(default_factory=KMeansConfig)
    fraction: float = 0.1
    """Of the first split's audio that is fitted on, whole utterances drawn at random."""
    max_frames: int = 500_000
    """Most frames that are fitted on, drawn at random from those utterances: a bound on memory."""
    seed: int = 0
    batch_seconds: float = 120.0
    precision: Precision = "float32"


@dataclass(frozen=True)
class ClusterOutcome:
    """What was found."""

    inertia: float
    """Mean squared distance of the fitted frames to their centroid."""
    frames: int
    """Frames that were fitted on."""
    labels: dict[str, LabelSet]
    """Of each split."""
    code_perplexity: dict[str, float]
    """Of each split: how many clusters are in use, evenly counted."""


def cluster(
    upstream: Upstream,
    corpus: Corpus,
    folder: Path,
    config: ClusterConfig,
    *,
    splits: Sequence[str] = ("train",),
    skip_bad: bool = False,
) -> ClusterOutcome:
    """Fits k-means on a sample of the first split and labels all splits; what is finished already is kept.

    Raises:
        SpeechsslError: `folder` holds the labels of something else, or audio that can't be read.
    """
    if not splits:
        raise ConfigError("Give at least one split to cluster.")
    work = _Clustering(upstream, corpus, folder, config, skip_bad)
    kmeans = work.fit(splits[0])
    labels = {split: work.label(kmeans, split) for split in splits}
    used = {split: _perplexity(label_set) for split, label_set in labels.items()}
    return ClusterOutcome(kmeans.info["inertia"], kmeans.info["frames"], labels, used)


@dataclass(frozen=True)
class _Clustering:
    upstream: Upstream
    corpus: Corpus
    folder: Path
    config: ClusterConfig
    skip_bad: bool

    def fit(self, split: str) -> KMeans:
        """Fits on a sample of the split, or reads what an earlier call has fitted."""
        config = self.config
        identity = {
            "upstream": self.upstream.name,
            "weights": self.upstream.weights,
            "upstream_fingerprint": self.upstream.fingerprint(),
            "corpus": self.corpus.fingerprint,
            "split": split,
            "label_rate": self.upstream.frame_rate,
            "config": to_dict(config),
        }
        if (self.folder / "config.json").exists():
            return self._read(identity)
        frames = self._sample(self.corpus.utterances(split))
        logger.info("Fitting %d clusters on %d frames of width %d.", config.kmeans.clusters, *frames.shape)
        found, inertia = fit_kmeans(frames, config.kmeans, generator=make_generator(config.seed, "kmeans"))
        kmeans = KMeans(found.centroids, {**identity, "inertia": inertia, "frames": len(frames)})
        kmeans.save(self.folder)
        return kmeans

    def _read(self, identity: Mapping[str, Any]) -> KMeans:
        kmeans = load_kmeans(self.folder)
        wanted = {k: v for k, v in identity.items() if k not in ("upstream", "weights")}  # the fingerprint is enough
        found = first_difference({k: kmeans.info.get(k) for k in wanted}, wanted)
        if found is not None:
            key, old, new = found
            raise SpeechsslError(
                f"{self.folder} holds a clustering with {key}={old}, not {new}: choose another folder."
            )
        return kmeans

    def _sample(self, utterances: Sequence[Utterance]) -> Tensor:
        """Frames of randomly drawn utterances, (N, D) float32; N is about max_frames at most."""
        config = self.config
        durations = measure(utterances, skip_bad=self.skip_bad)
        known = [u for u in utterances if u.id in durations]
        wanted = config.fraction * sum(durations.values())
        drawn: list[Utterance] = []
        seconds = 0.0
        for index in torch.randperm(len(known), generator=make_generator(config.seed, "sample")).tolist():
            if seconds >= wanted and drawn:
                break
            drawn.append(known[index])
            seconds += durations[known[index].id]
        share = min(1.0, config.max_frames / max(seconds * self.upstream.frame_rate, 1.0))
        parts: list[Tensor] = []
        for utterance, features in self._features(drawn, "Sampling features"):
            generator = make_generator(config.seed, "frames", utterance.id)
            keep = torch.rand(len(features), generator=generator) < share
            parts.append(features[keep])
        return torch.cat(parts)

    def label(self, kmeans: KMeans, split: str) -> LabelSet:
        """Labels a split, from where an earlier call was interrupted."""
        path = label_path(self.folder, split)
        if path.exists():
            return load_labels(path)
        utterances = self.corpus.utterances(split)
        shards = path.with_suffix(".shards")
        done: dict[str, Tensor] = {}
        for shard in sorted(shards.glob("*.safetensors")):
            done.update(load_labels(shard).by_id())
        if done:
            logger.info("%d of %d utterances of '%s' are labelled already.", len(done), len(utterances), split)
        fresh: dict[str, Tensor] = {}
        left = [u for u in utterances if u.id not in done]
        shard_frames = SHARD * self.upstream.frame_rate * sum(u.duration or 0.0 for u in utterances)
        for utterance, features in self._features(left, f"Labelling {split}"):
            fresh[utterance.id] = kmeans.assign(features)
            if sum(map(len, fresh.values())) >= shard_frames:
                self._label_set(fresh).save(shards / f"{len(done):09d}.safetensors")
                done.update(fresh)
                fresh = {}
        done.update(fresh)
        result = self._label_set({u.id: done[u.id] for u in utterances if u.id in done})
        result.save(path)
        shutil.rmtree(shards, ignore_errors=True)
        return result

    def _label_set(self, codes: Mapping[str, Tensor]) -> LabelSet:
        return make_label_set(
            codes,
            num_labels=self.config.kmeans.clusters,
            label_rate=self.upstream.frame_rate,
            corpus=self.corpus.fingerprint,
            origin=f"{self.upstream.name} layer {self.config.layer}",
        )

    def _features(self, utterances: Sequence[Utterance], title: str) -> Iterator[tuple[Utterance, Tensor]]:
        """Yields (utterance, (T, D)) in the order of the batches, with a progress bar in seconds of audio."""
        seconds = sum(measure(utterances, skip_bad=self.skip_bad).values())
        stream = extract(
            self.upstream,
            utterances,
            layers=[self.config.layer],
            batch_seconds=self.config.batch_seconds,
            precision=self.config.precision,
            skip_bad=self.skip_bad,
        )
        with progress(title, seconds, unit="s of audio") as advance:
            for utterance, states in stream:
                features = states[self.config.layer]
                yield utterance, features
                advance(len(features) / self.upstream.frame_rate)


def _perplexity(labels: LabelSet) -> float:
    return float(perplexity(torch.bincount(labels.codes.long(), minlength=labels.num_labels)))
