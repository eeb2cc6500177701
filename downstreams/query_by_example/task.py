"""Query by example: every layer is searched on dev, the best one once on test.

K layers, Q queries, B batch, T frames, D width.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from typing_extensions import override

from speechssl.answers import moved, name_stretches
from speechssl.data.corpus import Corpus
from speechssl.errors import ConfigError, SpeechsslError
from speechssl.feature_batches import Features
from speechssl.featurizer.weighted_sum import WeightedSum
from speechssl.files import replacing
from speechssl.metric.spoken_term import (
    max_term_weighted_value,
    seen_queries,
    spoken_term_metrics,
    standardise_scores,
)
from speechssl.metric.spoken_term_files import DEFAULT_SCORE, write_scores
from speechssl.probe import Probe
from speechssl.result import Evaluation, MetricValue
from speechssl.task import Task, TaskData
from speechssl.types import LossOutput, Utterance

from .config import QueryByExampleConfig
from .data import DOCUMENTS, Truth, read_splits
from .head import Standardise
from .match import Read, Report, Standard, find_place, find_standard, no_standard, score_all

logger = logging.getLogger(__name__)
LISTED = 5  # documents of each query in matches.tsv
Scores = NDArray[np.float64]


class QueryByExample(Task):
    """SUPERB's query by example, from the layers themselves (`speechssl.abilities.MeasuresFeatures`)."""

    name = "query_by_example"
    metric = "mtwv"
    higher_is_better = True
    config: QueryByExampleConfig

    def __init__(self, config: QueryByExampleConfig) -> None:
        super().__init__(config)
        self._choice: tuple[int, int] | None = None
        """Row and layer that dev chose in the run that is under way."""

    @override
    def prepare(self, corpus: Corpus) -> TaskData:
        splits, truths = read_splits(corpus, self.config)
        return TaskData(splits=splits, extra={"truths": truths})

    @override
    def state(self, data: TaskData) -> Mapping[str, Any]:
        return {"layer": self._chosen()[1]}

    @override
    def build_head(self, size: int, frame_rate: float, data: TaskData) -> nn.Module:
        return Standardise(size, frame_rate)

    @override
    def loss(
        self,
        head: nn.Module,
        features: Tensor,
        lengths: Tensor,
        utterances: Sequence[Utterance],
        data: TaskData,
        generator: torch.Generator,
    ) -> LossOutput:
        raise SpeechsslError("Query by example trains nothing: set `train.steps` to 0.")

    def measure(  # noqa: PLR0917  as `MeasuresFeatures`
        self,
        probe: Probe,
        features: Features,
        data: TaskData,
        split: str,
        folder: Path,
        report: Report,
    ) -> Evaluation:
        """Searches all layers on dev, which chooses one for `probe`, and that one on test."""
        rows = slice(None) if split == "dev" else slice(self._chosen()[0], self._chosen()[0] + 1)
        layers = features.layers[rows]
        trials = _Trials(
            [u.id for u in data.splits[split]], [u.id for u in data.splits[DOCUMENTS]], data.extra["truths"][split]
        )

        def read(name: str) -> Tensor:
            return features.get(name)[rows]

        standard = self._standard(read, trials)
        found = score_all(
            trials.queries,
            trials.documents,
            read,
            standard=standard,
            config=self.config,
            device=_featurizer(probe).logits.device,
            report=lambda share, text: report(share * len(layers) / (features.num_layers + 1), f"{split}: {text}"),
        ).numpy()
        scores = [standardise_scores(one) if self.config.standardise_scores else one for one in found]
        values = [max_term_weighted_value(*trials.whole(one), point=self.config.point)[0] for one in scores]
        best = int(np.argmax(values))
        if split == "dev":
            self._choice = best, layers[best]
            _choose(probe, best, Standard(standard.mean[best], standard.deviation[best]))
        seen = seen_queries(trials.whole(scores[best])[1])
        per_layer = {str(k): MetricValue(v, seen, "queries") for k, v in zip(layers, values, strict=True)}
        return Evaluation(
            metrics={
                **self._metrics(scores[best], trials),
                "layer": MetricValue(float(layers[best]), features.num_layers, "layers"),
            },
            breakdown={"mtwv by layer": per_layer},
            files=self._write(folder, scores[best], trials, standard, read) if split == "test" else {},
        )

    @override
    def predict(
        self, head: nn.Module, features: Tensor, lengths: Tensor, utterances: Sequence[Utterance], data: TaskData
    ) -> list[Any]:
        standardised = head(features).cpu()
        return [one[:length] for one, length in zip(standardised, lengths.tolist(), strict=True)]

    @override
    def evaluate(
        self, head: nn.Module, predictions: Mapping[str, Any], data: TaskData, split: str, folder: Path
    ) -> Evaluation:
        raise SpeechsslError("Query by example is measured on the layers themselves: see `measure`.")

    @override
    def infer(
        self,
        head: nn.Module,
        features: Mapping[str, Tensor],
        utterances: Sequence[Utterance],
        data: TaskData,
        folder: Path,
    ) -> Any:
        if len(utterances) < 2:
            raise SpeechsslError("Query by example searches files for what is said in the first: give at least two.")
        query, *documents = utterances
        if len(features[query.id]) < self.config.min_query_frames:
            raise SpeechsslError(
                f"The query {query.path} has {len(features[query.id])} frames, but must have "
                f"{self.config.min_query_frames} at least: give a longer one."
            )
        rate = _standardise(head).frame_rate
        frames = {u.id: head(features[u.id]).cpu() for u in utterances}
        standard = no_standard(frames[query.id][None])
        scores = score_all(
            [query.id],
            [u.id for u in documents],
            lambda name: frames[name][None],
            standard=standard,
            config=self.config,
            device=torch.device("cpu"),
            report=lambda _, text: logger.info("%s", text),
        )[0, 0]
        found, names = [], name_stretches(utterances)
        for utterance, score in zip(documents, scores.tolist(), strict=True):
            first, last = find_place(frames[query.id], frames[utterance.id], self.config)
            (place,) = moved([{"start": round(first / rate, 3), "end": round((last + 1) / rate, 3)}], utterance)
            found.append({"path": names[utterance.id], "score": round(score, 4), **place})
        return {
            "query": names[query.id],
            "layer": data.extra["layer"],
            "documents": sorted(found, key=lambda one: -float(one["score"])),
        }

    @override
    def table(self, found: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
        """A row for each document, the best first."""
        columns = ("path", "score", "start", "end")
        rows = [[str(one[column]) for column in columns] for one in found["documents"]]
        return [f"file with {found['query']}", *columns[1:]], rows

    def _chosen(self) -> tuple[int, int]:
        if self._choice is None:
            raise SpeechsslError("Query by example looks at test with the layer that dev chose: measure dev first.")
        return self._choice

    def _standard(self, read: Read, trials: "_Trials") -> Standard:
        if not self.config.standardise:
            return no_standard(read(trials.queries[0]))
        return find_standard(read(name) for name in (*trials.queries, *trials.documents))

    def _metrics(self, scores: Scores, trials: "_Trials") -> dict[str, MetricValue]:
        whole, truth = trials.whole(scores)
        threshold = self.config.decision_threshold
        metrics = dict(spoken_term_metrics(whole, truth, whole > threshold, point=self.config.point))
        if trials.truth.whole is not None:
            own = trials.truth.matrix(trials.queries, trials.documents)
            value, _ = max_term_weighted_value(scores, own, point=self.config.point)
            metrics["mtwv of what is searched"] = MetricValue(value, seen_queries(own), "queries")
        return metrics

    def _write(self, folder: Path, scores: Scores, trials: "_Trials", standard: Standard, read: Read) -> dict[str, str]:
        """The list that the official tool takes, and the best documents of each query."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "benchmark.stdlist.xml"
        write_scores(path, trials.queries, trials.documents, scores, scores > self.config.decision_threshold)
        lines = ["query\tdocument\tscore\toccurs\tfirst frame\tlast frame"]
        truth = trials.truth.matrix(trials.queries, trials.documents)
        for row, query in enumerate(trials.queries):
            frames = standard.apply(read(query))[0]
            for column in np.argsort(-scores[row], kind="stable")[:LISTED].tolist():
                document = trials.documents[column]
                first, last = find_place(frames, standard.apply(read(document))[0], self.config)
                occurs = "yes" if truth[row, column] else "no"
                lines.append(f"{query}\t{document}\t{scores[row, column]:.4f}\t{occurs}\t{first}\t{last}")
        with replacing(folder / "matches.tsv") as partial:
            partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return {"stdlist": path.name, "matches": "matches.tsv"}


@dataclass(frozen=True)
class _Trials:
    """All queries of a split with all documents."""

    queries: Sequence[str]
    documents: Sequence[str]
    truth: Truth

    def whole(self, scores: Scores) -> tuple[Scores, NDArray[np.bool_]]:
        """Scores and truth of the set that the metric is about; what was not searched has the default score."""
        truth = self.truth.whole_matrix(self.queries, self.documents)
        found = np.full(truth.shape, DEFAULT_SCORE)
        found[: len(self.queries), : len(self.documents)] = scores
        return found, truth


def _choose(probe: Probe, row: int, standard: Standard) -> None:
    """Makes the probe hand out the layer of a row alone, and its head standardise it."""
    logits = _featurizer(probe).logits.requires_grad_(False)
    head = _standardise(probe.head)
    with torch.no_grad():
        if len(logits) > 1:
            logits.fill_(-torch.inf)[row] = 0.0
        head.mean.copy_(standard.mean)
        head.deviation.copy_(standard.deviation)


def _featurizer(probe: Probe) -> WeightedSum:
    if not isinstance(probe.featurizer, WeightedSum):
        raise ConfigError("Query by example chooses one of the layers: leave `features` as it is by default.")
    return probe.featurizer


def _standardise(head: nn.Module) -> Standardise:
    if not isinstance(head, Standardise):
        raise SpeechsslError(f"`head` must be a Standardise, but is a {type(head).__name__}.")
    return head


TASK = QueryByExample
