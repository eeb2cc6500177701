"""Numbers of several seeds: means, Student intervals, who is best, and one sentence about it."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from speechssl.report.words import join_words, metric_title, task_title
from speechssl.result import MetricValue, RunResult
from speechssl.variants import rank_correlations

LEVEL = 0.95
Kind = Literal["pre-trained", "random", "features"]


@dataclass(frozen=True)
class Summary:
    """One metric over the seeds of one upstream on one task."""

    mean: float
    low: float | None
    high: float | None
    over: Literal["seeds", "test"] | None
    """What the 95 % interval is about: the seeds (Student's t), or, with one seed, the units of the test set."""
    seeds: int
    n: int
    unit: str


@dataclass(frozen=True)
class Group:
    """The runs of one upstream on one task: one per seed, and per fold where there are several."""

    task: str
    """`RunResult.column`: with the head, where heads are compared."""
    label: str
    kind: Kind
    results: Sequence[RunResult]

    @property
    def metric(self) -> str:
        """The primary metric's name."""
        return self.results[0].metric

    @property
    def higher_is_better(self) -> bool:
        """Whether more of the primary metric is better."""
        return self.results[0].higher_is_better

    def primary(self) -> Summary:
        """The primary metric on the test split."""
        summary = self.metric_of(self.metric, "test")
        if summary is None:  # results without their own metric are refused when they are read
            raise ValueError(f"{self.task}/{self.label} lacks its primary metric")
        return summary

    def metric_of(self, name: str, split: Literal["dev", "test"]) -> Summary | None:
        """Any metric on one split; None where no seed has it."""
        return self.of(lambda r: (r.test if split == "test" else r.dev).metrics.get(name))

    def of(self, pick: Callable[[RunResult], MetricValue | None]) -> Summary | None:
        """Summarises what `pick` returns for each seed; None where no seed has it."""
        return summarise([v for r in self.results if (v := pick(r)) is not None])


def summarise(values: Sequence[MetricValue]) -> Summary | None:
    """Mean and 95 % interval over seeds; NaN values are left out, None where nothing is left.

    With two or more seeds the interval is mean ± t(0.975, seeds - 1) · s / √seeds; with one it is the run's own.
    """
    finite = [v for v in values if v.value is not None and math.isfinite(v.value)]
    if not finite:
        return None
    first, numbers = finite[0], np.array([v.value for v in finite], dtype=np.float64)
    mean = float(numbers.mean())
    if len(finite) > 1:
        from scipy.stats import t

        half = float(t.ppf((1 + LEVEL) / 2, len(finite) - 1) * numbers.std(ddof=1) / math.sqrt(len(finite)))
        return Summary(mean, mean - half, mean + half, "seeds", len(finite), first.n, first.unit)
    low, high = first.low, first.high
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        return Summary(mean, None, None, None, 1, first.n, first.unit)
    return Summary(mean, low, high, "test", 1, first.n, first.unit)


def group_runs(results: Iterable[RunResult]) -> list[Group]:
    """Groups results by task and upstream label, and by corpus where a task has several.

    Upstreams without parameters come first, then random weights, then pre-trained ones.
    """
    results = list(results)
    corpora: dict[str, set[str]] = {}
    for result in results:
        corpora.setdefault(result.column, set()).add(_corpus(result))
    grouped: dict[tuple[str, str], list[RunResult]] = {}
    for result in results:
        label = result.upstream.label + (f" on {_corpus(result)}" if len(corpora[result.column]) > 1 else "")
        grouped.setdefault((result.column, label), []).append(result)
    groups = [
        Group(task, label, upstream_kind(found[0]), sorted(found, key=lambda r: (r.fold, r.seed)))
        for (task, label), found in grouped.items()
    ]
    order: dict[Kind, int] = {"features": 0, "random": 1, "pre-trained": 2}
    return sorted(groups, key=lambda g: (g.task, order[g.kind], g.label))


def _corpus(result: RunResult) -> str:
    return f"{result.corpus.get('name', 'corpus')} {str(result.corpus.get('fingerprint', ''))[:8]}".strip()


def upstream_kind(result: RunResult) -> Kind:
    """Whether the upstream has learned weights, random ones, or none."""
    weights = result.upstream.weights
    if weights == "none":
        return "features"
    return "random" if weights.startswith("random") else "pre-trained"


def labels_of(groups: Iterable[Group]) -> list[str]:
    """The upstream labels in the order of `group_runs`, each once."""
    order: dict[Kind, int] = {"features": 0, "random": 1, "pre-trained": 2}
    return [g.label for g in sorted({g.label: g for g in groups}.values(), key=lambda g: (order[g.kind], g.label))]


def by_task(groups: Iterable[Group]) -> dict[str, list[Group]]:
    """Task -> its groups, both in order."""
    found: dict[str, list[Group]] = {}
    for group in groups:
        found.setdefault(group.task, []).append(group)
    return found


def best_labels(groups: Sequence[Group]) -> set[str]:
    """The labels with the best mean of one task; several where they tie, none where there is nothing to compare."""
    if len(groups) < 2:
        return set()
    means = {g.label: g.primary().mean for g in groups}
    best = (max if groups[0].higher_is_better else min)(means.values())
    return {label for label, mean in means.items() if mean == best}


def overlap(one: Summary, other: Summary) -> bool | None:
    """Whether two intervals overlap; None where one of them has none."""
    if one.low is None or one.high is None or other.low is None or other.high is None:
        return None
    return one.low <= other.high and other.low <= one.high


def verdict(groups: Sequence[Group]) -> str:
    """One or two plain sentences: where the pre-trained upstreams win, and whether the intervals overlap."""
    tasks = {t: g for t, g in by_task(groups).items() if len(g) > 1}
    if not tasks:
        return "There is only one upstream, so nothing is compared."
    learned = {t: g for t, g in tasks.items() if {x.kind == "pre-trained" for x in g} == {True, False}}
    if not learned:
        return _winners(tasks)
    names = sorted({g.label for found in learned.values() for g in found if g.kind == "pre-trained"})
    subject = f"“{names[0]}”" if len(names) == 1 else "A pre-trained upstream"
    won = {t: _margin(g) for t, g in learned.items() if _wins(g)}
    count = f"{len(won)} of {len(learned)} task{'s' if len(learned) > 1 else ''}"
    text = f"{subject} has the best mean on {count}"
    text += f" ({join_words([task_title(t) for t in won])})" if won else ""
    lost = [t for t in learned if t not in won]
    text += f", and not on {join_words([task_title(t) for t in lost])}." if lost and won else "."
    return text + _overlaps(won)


def heads_agree(results: Sequence[RunResult]) -> str:
    """How alike the heads of each task rank the upstreams, where heads are compared."""
    sentences = []
    for task in dict.fromkeys(r.task for r in results if r.head):
        found = rank_correlations([r for r in results if r.task == task and r.head])
        parts = [f"{one} and {other} {value:.2f}" for (one, other), value in found.items()]
        if parts:
            sentences.append(
                f"How alike the heads of {task_title(task)} rank the upstreams (Spearman’s correlation): "
                f"{join_words(parts)}."
            )
    return " ".join(sentences)


def _overlaps(won: Mapping[str, bool | None]) -> str:
    apart = [task_title(t) for t, o in won.items() if o is False]
    near = [task_title(t) for t, o in won.items() if o is True]
    unknown = [task_title(t) for t, o in won.items() if o is None]
    where = "each of them" if len(apart) == len(won) > 1 else join_words(apart)
    text = f" Its 95 % interval lies apart from that of every other upstream on {where}." if apart else ""
    if near:
        text += f" On {join_words(near)} the intervals overlap, so that the order may be chance."
    if unknown:
        text += f" For {join_words(unknown)} there are too few seeds for an interval."
    return text


def _split(groups: Sequence[Group]) -> tuple[Group, list[Group]]:
    """The best pre-trained upstream, and all that are not pre-trained."""
    sign = -1.0 if groups[0].higher_is_better else 1.0
    ours = min((g for g in groups if g.kind == "pre-trained"), key=lambda g: sign * g.primary().mean)
    return ours, [g for g in groups if g.kind != "pre-trained"]


def _wins(groups: Sequence[Group]) -> bool:
    ours, others = _split(groups)
    sign = 1.0 if ours.higher_is_better else -1.0
    return all(sign * ours.primary().mean > sign * g.primary().mean for g in others)


def _margin(groups: Sequence[Group]) -> bool | None:
    """Whether the winner's interval overlaps that of any other; None where one has no interval."""
    ours, others = _split(groups)
    found = [overlap(ours.primary(), g.primary()) for g in others]
    return True if True in found else (None if None in found else False)


def _winners(tasks: Mapping[str, Sequence[Group]]) -> str:
    parts = [
        f"“{'” and “'.join(sorted(best_labels(g)))}” on {task_title(t)} ({metric_title(g[0].metric)})"
        for t, g in tasks.items()
    ]
    return f"Best mean: {join_words(parts)}."
