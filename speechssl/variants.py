"""What a task can be run with side by side: its heads, and the folds of its corpus.

A task says both in its `config.py`: `HEADS`, name -> settings such as 'head=mlp', and `FOLDS`, how many values from 1
on its setting `fold` has. A score over folds is their mean; rankings of upstreams change with the head.

Paper: Zaiem et al. 2023, "Speech self-supervised representation benchmarking: are we doing it right?",
arXiv:2306.00452.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from speechssl.errors import ConfigError, UnknownNameError
from speechssl.registry import task_module

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


def make_variants(task: str, *, heads: Sequence[str] = (), folds: Sequence[int | str] = ()) -> list[Variant]:
    """Every head with every fold.

    Args:
        heads: of the task; 'all' stands for all of them.
        folds: from 1 on; 'all' likewise.

    Raises:
        UnknownNameError: a head that the task lacks.
        ConfigError: a fold that it lacks.
    """
    known: Mapping[str, tuple[str, ...]] = getattr(task_module(task, "config"), "HEADS", {})
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
