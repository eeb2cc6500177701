"""What a task can be run with side by side: its heads, and the folds of its corpus.

A task says both in its `config.py`: `HEADS`, name -> settings such as 'head=mlp', and `FOLDS`, how many values from 1
on its setting `fold` has; where not every head fits every config, also `heads_of(config)`, which returns those that do.
A score over folds is their mean; rankings of upstreams change with the head.

Paper: Zaiem et al. 2023, "Speech self-supervised representation benchmarking: are we doing it right?",
arXiv:2306.00452.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import mean
from typing import Any

from speechssl.errors import ConfigError, UnknownNameError
from speechssl.registry import task_module
from speechssl.result import RunResult

ALL = "all"


@dataclass(frozen=True)
class Variant:
    """One way to run a task."""

    head: str = ""
    """A key of the task's `HEADS`; '' = the head that the config has."""
    fold: int = 0
    """0 = the fold that the config has."""
    overrides: tuple[str, ...] = ()
    """The settings that make it."""

    @property
    def folders(self) -> tuple[str, ...]:
        """Of its results, below the upstream's; none for what the config has."""
        named = (f"head_{self.head}" if self.head else "", f"fold{self.fold}" if self.fold else "")
        return tuple(part for part in named if part)


def make_variants(
    task: str, config: Any, *, heads: Sequence[str] = (), folds: Sequence[int | str] = ()
) -> list[Variant]:
    """Every head with every fold.

    Args:
        config: of the task; what it can't have is none of its heads.
        heads: of the task; 'all' stands for all of them.
        folds: from 1 on; 'all' likewise.

    Raises:
        UnknownNameError: a head that the task lacks, or that the config can't have.
        ConfigError: a fold that it lacks.
    """
    known = known_heads(task, config)
    count: int = getattr(task_module(task, "config"), "FOLDS", 0)
    chosen = list(known) if ALL in heads else list(dict.fromkeys(heads))
    for head in chosen:
        if head not in known:
            raise UnknownNameError(f"head of '{task}'", head, known)
    if heads and not chosen:
        raise ConfigError(f"The task '{task}' has one head: leave out `--heads`.")
    numbers = list(range(1, count + 1)) if ALL in folds else [int(fold) for fold in dict.fromkeys(folds)]
    wrong = [fold for fold in numbers if not 1 <= fold <= count]
    if wrong or (folds and not numbers):
        there = f"they are 1 to {count}" if count else "it has none"
        raise ConfigError(f"`--folds` can't be {wrong[0] if wrong else ALL} for the task '{task}': {there}.")
    return [
        Variant(head, fold, (*known.get(head, ()), *((f"fold={fold}",) if fold else ())))
        for head in chosen or [""]
        for fold in numbers or [0]
    ]


def known_heads(task: str, config: Any) -> Mapping[str, tuple[str, ...]]:
    """The heads that a task can have with a config, each with its settings."""
    module = task_module(task, "config")
    if hasattr(module, "heads_of"):
        found: Mapping[str, tuple[str, ...]] = module.heads_of(config)
        return found
    return getattr(module, "HEADS", {})


def rank_correlations(results: Sequence[RunResult]) -> dict[tuple[str, str], float]:
    """How alike two heads of a task rank the upstreams: Spearman's correlation of their means over seeds and folds.

    Args:
        results: of one task; each upstream with each head.

    Returns:
        (head, other head) -> from -1 (turned round) to 1 (the same order); of heads that share at least three
        upstreams, and do not give all of them one value.
    """
    from scipy.stats import spearmanr

    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for result in results:
        values[result.head][result.upstream.label].append(result.test.metrics[result.metric].value)
    found: dict[tuple[str, str], float] = {}
    for first, second in combinations(values, 2):
        shared = [label for label in values[first] if label in values[second]]
        sides = [[mean(values[head][label]) for label in shared] for head in (first, second)]
        if len(shared) >= 3 and all(len(set(side)) > 1 for side in sides):
            found[first, second] = float(spearmanr(*sides).statistic)
    return found
