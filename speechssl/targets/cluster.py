"""Clusters the features of a corpus and labels every utterance: the targets of HuBERT's pre-training.

Features are made batch by batch and never all held: of the sample as many frames as asked for, of the rest none; nor
are they written anywhere. Under `torchrun` each process takes its share of the utterances, and of the frames in memory.
"""

import hashlib
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speechssl.config import first_difference, to_dict
from speechssl.data.batching import make_generator
from speechssl.data.corpus import Corpus
from speechssl.data.sources import TrainingCorpus
from speechssl.errors import ConfigError, SpeechsslError
from speechssl.extraction import Precision, extract, measure
from speechssl.files import check_writable
from speechssl.metric.codes import perplexity
from speechssl.progress import progress
from speechssl.ranks import Ranks, open_ranks
from speechssl.targets.kmeans import KMeans, load_kmeans, nearest
from speechssl.targets.labels import LabelSet, label_path, load_labels, make_label_set
from speechssl.targets.lloyd import KMeansConfig, fit_kmeans, lloyd_stream, minibatch_pass
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
    """Most frames in memory, of all processes together, drawn at random from those utterances."""
    corpus_passes: int = 0
    """Lloyd's passes over all frames of those utterances, which are made anew each time, after the fit in memory."""
    minibatch_passes: int = 0
    """Mini-batch passes over them, before those; one sees every frame for the price of one extraction."""
    minibatch: int = 10_000
    """Frames per mini-batch and process."""
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
    corpus: Corpus | TrainingCorpus,
    folder: Path,
    config: ClusterConfig,
    *,
    splits: Sequence[str] = ("train",),
    fitted: Path | None = None,
    skip_bad: bool = False,
) -> ClusterOutcome:
    """Fits k-means on a sample of the first split and labels all splits; what is finished already is kept.

    Args:
        fitted: the folder of an earlier clustering of the same layer, whose centroids are taken instead of a fit.

    Raises:
        SpeechsslError: `folder` holds the labels of something else or can't be written to, `fitted` is of another
            layer, or audio that can't be read.
    """
    if not splits:
        raise ConfigError("Give at least one split to cluster.")
    if config.kmeans.clusters > config.max_frames:
        raise ConfigError(f"{config.kmeans.clusters} clusters need as many frames: raise `--max-frames`.")
    check_writable(folder)
    with open_ranks(_device(upstream)) as ranks:
        work = _Clustering(upstream, corpus, folder, config, fitted, skip_bad, ranks)
        kmeans = work.fit(splits[0])
        labels = {split: work.label(kmeans, split) for split in splits}
    used = {split: _perplexity(label_set) for split, label_set in labels.items()}
    return ClusterOutcome(kmeans.info["inertia"], kmeans.info["frames"], labels, used)


@dataclass(frozen=True)
class _Clustering:
    upstream: Upstream
    corpus: Corpus | TrainingCorpus
    folder: Path
    config: ClusterConfig
    fitted: Path | None
    skip_bad: bool
    ranks: Ranks

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
        if self.fitted is not None:
            return self._take(self.fitted, identity)
        drawn = self._draw(self.corpus.utterances(split))
        frames = self._sample(drawn)
        logger.info("Fitting %d clusters on %d frames of width %d.", config.kmeans.clusters, *frames.shape)
        generator = make_generator(config.seed, "kmeans")
        found, inertia = fit_kmeans(frames, config.kmeans, generator=generator, ranks=self.ranks)
        count = int(self.ranks.sum(torch.tensor(len(frames), device=frames.device)))
        kmeans = KMeans(found.centroids.cpu(), {**identity, "inertia": inertia, "frames": count})
        if config.minibatch_passes or config.corpus_passes:
            kmeans = self._refine(kmeans, drawn, generator)
        if self.ranks.rank == 0:
            kmeans.save(self.folder)
        self.ranks.barrier()
        return kmeans

    def _take(self, folder: Path, identity: Mapping[str, Any]) -> KMeans:
        """The centroids of an earlier clustering, for these utterances."""
        kmeans = load_kmeans(folder)
        wanted = (
            ("upstream_fingerprint", kmeans.info.get("upstream_fingerprint"), identity["upstream_fingerprint"]),
            ("layer", kmeans.info.get("config", {}).get("layer"), self.config.layer),
            ("clusters", len(kmeans.centroids), self.config.kmeans.clusters),
        )
        for key, old, new in wanted:
            if old != new:
                raise SpeechsslError(f"{folder} holds a clustering with {key}={old}, not {new}: it can't be used here.")
        about = {key: kmeans.info[key] for key in ("inertia", "frames")}
        taken = KMeans(kmeans.centroids, {**identity, **about, "fitted_on": kmeans.info["corpus"]})
        if self.ranks.rank == 0:
            taken.save(self.folder)
        self.ranks.barrier()
        return taken

    def _refine(self, kmeans: KMeans, drawn: Sequence[Utterance], generator: torch.Generator) -> KMeans:
        """Goes on over all frames of the sample's utterances, made anew in each pass."""
        config = self.config
        centroids = kmeans.centroids.to(self.device)
        counts = centroids.new_zeros(len(centroids))
        for number in range(config.minibatch_passes):
            title = f"Mini-batch pass {number + 1} of {config.minibatch_passes}"
            chunks = self._chunks(drawn, title)
            centroids, counts = minibatch_pass(chunks, centroids, counts, ranks=self.ranks)
        for number in range(config.corpus_passes):
            title = f"Pass {number + 1} of {config.corpus_passes}"
            chunks = self._chunks(drawn, title)
            centroids = lloyd_stream(chunks, centroids, generator=generator, ranks=self.ranks)
        total, count = torch.zeros(2, dtype=torch.float64, device=self.device)
        for chunk in self._chunks(drawn, "Measuring the inertia"):
            total += nearest(chunk, centroids)[1].double().sum()
            count += len(chunk)
        total, count = self.ranks.sum(total), self.ranks.sum(count)
        info = {**kmeans.info, "inertia": float(total / count), "frames": int(count)}
        return KMeans(centroids.cpu(), info)

    def _chunks(self, utterances: Sequence[Utterance], title: str) -> Iterator[Tensor]:
        """Mini-batches of this process's frames, (n, D) on the upstream's device."""
        parts: list[Tensor] = []
        for _, features in self._features(utterances, title):
            parts.append(features)
            if sum(map(len, parts)) >= self.config.minibatch:
                yield torch.cat(parts).to(self.device)
                parts = []
        if parts:
            yield torch.cat(parts).to(self.device)

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

    def _draw(self, utterances: Sequence[Utterance]) -> list[Utterance]:
        """Randomly drawn utterances that last `fraction` of them all."""
        config = self.config
        durations = measure(utterances, skip_bad=self.skip_bad)
        known = [u for u in utterances if u.id in durations]
        wanted = config.fraction * sum(durations.values())
        drawn: list[Utterance] = []
        seconds = 0.0
        for index in torch.randperm(len(known), generator=make_generator(config.seed, "sample")).tolist():
            if seconds >= wanted and drawn:
                break
            drawn.append(replace(known[index], duration=durations[known[index].id]))
            seconds += durations[known[index].id]
        return drawn

    def _sample(self, drawn: Sequence[Utterance]) -> Tensor:
        """This process's frames of the drawn utterances, (N, D) float32; all together about max_frames at most."""
        seconds = sum(u.duration or 0.0 for u in drawn)
        total = seconds * self.upstream.frame_rate
        if total < self.config.kmeans.clusters:
            raise SpeechsslError(
                f"{self.config.kmeans.clusters} clusters need as many frames, but the sample of {seconds:.0f} s has "
                f"{total:.0f}: ask for fewer clusters, or a larger `--fraction`."
            )
        share = min(1.0, self.config.max_frames / total)
        parts: list[Tensor] = [torch.empty(0, self.upstream.hidden_sizes[self.config.layer])]
        for utterance, features in self._features(drawn, "Sampling features"):
            generator = make_generator(self.config.seed, "frames", utterance.id)
            keep = torch.rand(len(features), generator=generator) < share
            parts.append(features[keep])
        return torch.cat(parts).to(self.device)

    def label(self, kmeans: KMeans, split: str) -> LabelSet:
        """Labels a split, from where an earlier call was interrupted."""
        path = label_path(self.folder, split)
        if path.exists():
            return load_labels(path)
        utterances = self.corpus.utterances(split)
        shards = path.with_suffix(".shards")
        done = _read_shards(shards)
        if done:
            logger.info("%d of %d utterances of '%s' are labelled already.", len(done), len(utterances), split)
        self.ranks.barrier()  # no process writes before all have read
        fresh: dict[str, Tensor] = {}
        left = [u for u in utterances if u.id not in done]
        shard_frames = SHARD * self.upstream.frame_rate * sum(u.duration or 0.0 for u in utterances)
        for utterance, features in self._features(left, f"Labelling {split}"):
            fresh[utterance.id] = kmeans.assign(features)
            if sum(map(len, fresh.values())) >= shard_frames:
                self._save_shard(fresh, shards)
                done.update(fresh)
                fresh = {}
        done.update(fresh)
        if self.ranks.size > 1:
            if fresh:
                self._save_shard(fresh, shards)
            self.ranks.barrier()
            done = _read_shards(shards)
        result = self._label_set({u.id: done[u.id] for u in utterances if u.id in done})
        self.ranks.barrier()  # all have read the shards
        if self.ranks.rank == 0:
            result.save(path)
            shutil.rmtree(shards, ignore_errors=True)
        self.ranks.barrier()
        return result

    def _save_shard(self, codes: Mapping[str, Tensor], shards: Path) -> None:
        name = hashlib.sha256("\n".join(codes).encode()).hexdigest()[
            :16
        ]  # of what it holds: no process meets another's
        self._label_set(codes).save(shards / f"{name}.safetensors")

    def _label_set(self, codes: Mapping[str, Tensor]) -> LabelSet:
        return make_label_set(
            codes,
            num_labels=self.config.kmeans.clusters,
            label_rate=self.upstream.frame_rate,
            corpus=self.corpus.fingerprint,
            origin=f"{self.upstream.name} layer {self.config.layer}",
        )

    def _features(self, utterances: Sequence[Utterance], title: str) -> Iterator[tuple[Utterance, Tensor]]:
        """Yields (utterance, (T, D)) of this process's share, with a progress bar in seconds of audio."""
        share = utterances[self.ranks.rank :: self.ranks.size]
        seconds = sum(measure(share, skip_bad=self.skip_bad).values())
        stream = extract(
            self.upstream,
            share,
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

    @property
    def device(self) -> torch.device:
        """Where the upstream computes, and k-means with it."""
        return _device(self.upstream)


def _device(upstream: Upstream) -> torch.device:
    return next((tensor.device for tensor in (*upstream.parameters(), *upstream.buffers())), torch.device("cpu"))


def _read_shards(folder: Path) -> dict[str, Tensor]:
    done: dict[str, Tensor] = {}
    for shard in sorted(folder.glob("*.safetensors")):
        done.update(load_labels(shard).by_id())
    return done


def _perplexity(labels: LabelSet) -> float:
    return float(perplexity(torch.bincount(labels.codes.long(), minlength=labels.num_labels)))
