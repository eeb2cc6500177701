"""Speaker verification: embeddings, their scores, equal error rate and minimum detection cost.

B batch, T frames, D width, E embedding.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from speechssl.answers import name_stretches
from speechssl.data.corpus import Corpus
from speechssl.errors import SpeechsslError
from speechssl.files import replacing
from speechssl.metric.calibration import Calibration, actual_dcf, fit_calibration, llr_cost, min_llr_cost
from speechssl.metric.detection import equal_error_rate, min_dcf
from speechssl.metric.interval import equal_error_rate_interval
from speechssl.result import Evaluation, MetricValue
from speechssl.task import Task, TaskData
from speechssl.types import LossOutput, Utterance

from .backend import Cohort, make_cohort, score_pairs, score_trials
from .config import SpeakerVerificationConfig
from .data import (
    ACROSS,
    LISTED,
    WITHIN,
    Trial,
    find_list,
    make_trials,
    read_splits,
    read_trials,
    speakers_of,
    subset,
)
from .ecapa import Ecapa
from .head import SpeakerHead, XVector
from .mhfa import FactorisedPooling

PRIORS = (0.01, 0.05)
KINDS = (LISTED, WITHIN, ACROSS)
"""The first of them that has targets and non-targets is the headline."""


@dataclass(frozen=True)
class Roles:
    """What the utterances of the runner's splits are there for.

    Where scores need the training speakers, some of their utterances are in 'dev' and 'test' too; and where these are
    calibrated, those of 'dev' are in 'test': so a split can be measured by itself.
    """

    trials: Mapping[str, frozenset[str]]
    """'dev', 'test' -> the ids of which there are trials."""
    cohort: frozenset[str] = frozenset()
    listed: Sequence[Trial] = ()
    """The official trials of test; none = pairs are made."""


@dataclass(frozen=True)
class _Scored:
    """The trials of a split and their scores."""

    trials: Sequence[Trial]
    scores: Sequence[float]

    def rows(self, kind: str) -> list[int]:
        return _rows(self.trials, kind=kind)

    def headline(self) -> list[int]:
        """Those that the metrics are about."""
        found = (rows for kind in KINDS if _has_both(self.trials, rows := self.rows(kind)))
        return next(found, [])

    def sides(self, rows: Sequence[int]) -> tuple[list[float], list[float]]:
        return _sides(self.trials, self.scores, rows)


class SpeakerVerification(Task):
    """SUPERB's speaker verification, with trials within one language as the headline."""

    name = "speaker_verification"
    metric = "eer"
    config: SpeakerVerificationConfig

    def __init__(self, config: SpeakerVerificationConfig) -> None:
        super().__init__(config)
        self._trials: dict[tuple[str, ...], list[Trial]] = {}
        self._backend: dict[str, Any] = {}
        """What `infer` needs of the scoring: made while test is measured."""

    @override
    def prepare(self, corpus: Corpus) -> TaskData:
        splits = dict(read_splits(corpus, self.config))
        name = find_list(corpus, self.config)
        cohort = subset(splits["train"], self.config.cohort_utterances) if self.config.needs_cohort else []
        roles = Roles(
            {split: frozenset(u.id for u in splits[split]) for split in ("dev", "test")},
            frozenset(u.id for u in cohort),
            () if name is None else read_trials(corpus, name, splits["test"]),
        )
        splits["test"] += [*cohort, *(splits["dev"] if self.config.calibrate else [])]
        splits["dev"] = [*splits["dev"], *cohort]
        return TaskData(splits=splits, extra={"speakers": speakers_of(splits["train"]), "roles": roles})

    @override
    def state(self, data: TaskData) -> Mapping[str, Any]:
        return {"speakers": list(data.extra["speakers"]), **self._backend}

    @override
    def build_head(self, size: int, frame_rate: float, data: TaskData) -> nn.Module:
        speakers = len(data.extra["speakers"])
        if self.config.head == "mhfa":
            return FactorisedPooling(size, speakers, config=self.config)
        kind = Ecapa if self.config.head == "ecapa" else XVector
        return kind(size, speakers, frame_rate=frame_rate, config=self.config)

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
        index = {speaker: number for number, speaker in enumerate(data.extra["speakers"])}
        speakers = torch.tensor([index[str(u.labels["speaker"])] for u in utterances], device=features.device)
        return _speaker_head(head).loss(features, lengths, speakers)

    @override
    def predict(
        self, head: nn.Module, features: Tensor, lengths: Tensor, utterances: Sequence[Utterance], data: TaskData
    ) -> list[Any]:
        return list(F.normalize(_speaker_head(head).embed(features, lengths), dim=1).cpu())

    @override
    def evaluate(
        self, head: nn.Module, predictions: Mapping[str, Any], data: TaskData, split: str, folder: Path
    ) -> Evaluation:
        interval = split == "test"  # dev is measured often, and only its rate decides
        scored = self._score(predictions, data, split, of=split)
        trials, scores = scored.trials, scored.scores
        kinds = {kind: rows for kind in KINDS if _has_both(trials, rows := scored.rows(kind))}
        headline = scored.headline()
        metrics = {"eer": _eer(trials, scores, headline, interval=interval)}
        target, nontarget = scored.sides(headline)
        for prior in PRIORS:
            value = min_dcf(target, nontarget, p_target=prior)
            metrics[f"min dcf {prior}"] = MetricValue(value, len(headline), "trials")
        calibration = self._calibrate(predictions, data, split)
        if calibration is not None:
            metrics |= _calibrated(calibration, target, nontarget)
        languages = sorted({str(trials[i].first.labels.get("language")) for i in kinds.get(WITHIN, [])})
        by_language = {name: _rows(trials, kind=WITHIN, language=name) for name in languages}
        everything = {**kinds, "all": list(range(len(trials)))}
        files: dict[str, str] = {}
        if split == "test":
            files["scores"] = _write(folder / "scores.tsv", trials, scores, calibration)
            self._keep(predictions, data, split, calibration)
        return Evaluation(
            metrics=metrics,
            breakdown={
                "eer by trial kind": {
                    k: _eer(trials, scores, rows, interval=interval) for k, rows in everything.items()
                },
                "eer by language": {
                    k: _eer(trials, scores, rows, interval=interval)
                    for k, rows in by_language.items()
                    if _has_both(trials, rows)
                },
            },
            files=files,
        )

    def _score(self, predictions: Mapping[str, Any], data: TaskData, split: str, *, of: str) -> _Scored:
        """The trials of the utterances of the split `of`, all of whose predictions are in that of `split`."""
        roles: Roles | None = data.extra.get("roles")
        there = data.splits[split]
        own = there if roles is None else [u for u in there if u.id in roles.trials[of]]
        if roles is not None and of == "test" and roles.listed:
            known = {u.id for u in own}
            trials = [t for t in roles.listed if t.first.id in known and t.second.id in known]
        else:
            trials = self._make_trials(own)
        return _Scored(trials, score_trials(trials, predictions, self._cohort(predictions, data, split), self.config))

    def _cohort(self, predictions: Mapping[str, Any], data: TaskData, split: str) -> Cohort | None:
        if not self.config.needs_cohort:
            return None
        roles: Roles = data.extra["roles"]
        return make_cohort([u for u in data.splits[split] if u.id in roles.cohort], predictions)

    def _calibrate(self, predictions: Mapping[str, Any], data: TaskData, split: str) -> Calibration | None:
        """The map from scores to log-likelihood ratios, fitted to the trials of dev alone."""
        if not self.config.calibrate:
            return None
        dev = self._score(predictions, data, split, of="dev")
        return fit_calibration(*dev.sides(dev.headline()))

    def _keep(
        self, predictions: Mapping[str, Any], data: TaskData, split: str, calibration: Calibration | None
    ) -> None:
        cohort = self._cohort(predictions, data, split)
        self._backend = {} if cohort is None else {"cohort": cohort.speakers.tolist()}
        if calibration is not None:
            self._backend["calibration"] = [calibration.scale, calibration.offset]

    def _make_trials(self, utterances: Sequence[Utterance]) -> list[Trial]:
        """Those of a split, made once."""
        key = tuple(u.id for u in utterances)
        if key not in self._trials:
            self._trials[key] = make_trials(utterances, max_trials=self.config.max_trials)
        return self._trials[key]

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
            raise SpeechsslError("Speaker verification compares files: give at least two.")
        rows = []
        for utterance in utterances:
            one = features[utterance.id]
            rows.extend(self.predict(head, one[None], torch.tensor([len(one)]), [utterance], data))
        vectors = torch.stack(rows)
        names = name_stretches(utterances)
        found = {"files": [names[u.id] for u in utterances], "cosine": _rounded(vectors @ vectors.T)}
        scores = (vectors @ vectors.T).double()
        if "cohort" in data.extra:
            cohort = Cohort(torch.tensor(data.extra["cohort"]))
            first, second = torch.cartesian_prod(*2 * [torch.arange(len(vectors))]).T
            scores = score_pairs(vectors, first, second, cohort, self.config).view(len(vectors), -1)
            found["score"] = _rounded(scores)
        if "calibration" in data.extra:
            found["log-likelihood ratio"] = _rounded(
                torch.from_numpy(Calibration(*data.extra["calibration"]).apply(scores))
            )
        return found

    @override
    def table(self, found: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
        """A row for each pair of files."""
        files: Sequence[str] = found["files"]
        measures = [name for name in found if name != "files"]
        pairs = combinations(range(len(files)), 2)
        rows = [[files[a], files[b], *(f"{found[name][a][b]:.4f}" for name in measures)] for a, b in pairs]
        return ["file", "other file", *measures], rows


def _rounded(matrix: Tensor) -> list[list[float]]:
    return [[round(float(value), 4) for value in row] for row in matrix]


def _calibrated(
    calibration: Calibration, target: Sequence[float], nontarget: Sequence[float]
) -> dict[str, MetricValue]:
    """What the scores are worth as log-likelihood ratios."""
    trials = len(target) + len(nontarget)
    ratios = calibration.apply(target), calibration.apply(nontarget)
    found = {"cllr": llr_cost(*ratios), "min cllr": min_llr_cost(target, nontarget)}
    found |= {f"act dcf {prior}": actual_dcf(*ratios, p_target=prior) for prior in PRIORS}
    return {name: MetricValue(value, trials, "trials") for name, value in found.items()}


def _speaker_head(head: nn.Module) -> SpeakerHead:
    if not isinstance(head, SpeakerHead):
        raise SpeechsslError(f"`head` must be a SpeakerHead, but is a {type(head).__name__}.")
    return head


def _rows(trials: Sequence[Trial], *, kind: str, language: str | None = None) -> list[int]:
    return [
        i
        for i, t in enumerate(trials)
        if t.kind == kind and (language is None or str(t.first.labels.get("language")) == language)
    ]


def _has_both(trials: Sequence[Trial], rows: Sequence[int]) -> bool:
    return len({trials[i].target for i in rows}) == 2


def _sides(trials: Sequence[Trial], scores: Sequence[float], rows: Sequence[int]) -> tuple[list[float], list[float]]:
    target = [scores[i] for i in rows if trials[i].target]
    nontarget = [scores[i] for i in rows if not trials[i].target]
    return target, nontarget


def _eer(trials: Sequence[Trial], scores: Sequence[float], rows: Sequence[int], *, interval: bool) -> MetricValue:
    """The equal error rate; its interval resamples utterances, and so holds for these speakers."""
    target, nontarget = _sides(trials, scores, rows)
    rate = equal_error_rate(target, nontarget)[0]
    if not interval:
        return MetricValue(rate, len(rows), "trials")
    pairs = [
        [[t.first.id, t.second.id] for t in (trials[i] for i in rows) if t.target is side] for side in (True, False)
    ]
    low, high = equal_error_rate_interval(
        target, nontarget, target_units=pairs[0], nontarget_units=pairs[1], replicates=200
    )
    return MetricValue(rate, len(rows), "trials", low, high)


def _write(path: Path, trials: Sequence[Trial], scores: Sequence[float], calibration: Calibration | None) -> str:
    ratios = None if calibration is None else calibration.apply(scores).tolist()
    lines = ["trial\tlabel\tscore\tkind" + ("" if ratios is None else "\tlog-likelihood ratio")]
    for number, (trial, score) in enumerate(zip(trials, scores, strict=True)):
        label = "target" if trial.target else "nontarget"
        ratio = "" if ratios is None else f"\t{ratios[number]:.6f}"
        lines.append(f"{trial.first.id} {trial.second.id}\t{label}\t{score:.6f}\t{trial.kind}{ratio}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path.name


TASK = SpeakerVerification
