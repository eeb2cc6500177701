"""Tries settings on dev and measures on test the best of them alone: `speechssl run --sweep lr=1e-2,1e-3,1e-4`.

SUPERB tunes the learning rate and nothing else. Every candidate is trained as a run of its own below the folder of the
run, without a look at test; the one that is best on dev, as a mean over seeds, becomes the run.

Paper: Yang et al. 2021 (SUPERB), sec. 3, arXiv:2105.01051.
"""

import logging
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

from speechssl.config import load_config
from speechssl.errors import ConfigError, SpeechsslError
from speechssl.fitting import CHECKPOINT, LOG
from speechssl.jobs import Work, build_task, run_candidates
from speechssl.probe import HEAD

logger = logging.getLogger(__name__)
FOLDER = "sweep"
"""Of the candidates, in that of the run."""
SHORT = {"lr": "train.learning_rate"}
FIXED = ("train.max_duration",)
"""What decides which features there are."""


@dataclass(frozen=True)
class Sweep:
    """Values of one setting."""

    setting: str
    values: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.setting.startswith(("train.", "adapt.")) or self.setting in FIXED:
            raise ConfigError(
                f"`--sweep` tries a setting of `train`, such as lr=1e-3,1e-4, but is of `{self.setting}`."
            )
        if not all(self.values) or len(set(self.values)) != len(self.values):
            raise ConfigError(f"`--sweep` needs distinct values of `{self.setting}`, but has {','.join(self.values)}.")

    def candidates(self, config: Any) -> dict[str, Any]:
        """'setting=value' -> the config with it."""
        texts = [f"{self.setting}={value}" for value in self.values]
        return {text: load_config(config, overrides=[text]) for text in texts}


def parse_sweep(text: str) -> Sweep:
    """Reads 'lr=1e-2,1e-3'; 'lr' is short for `train.learning_rate`.

    Raises:
        ConfigError: not of that form.
    """
    setting, separator, values = text.partition("=")
    if not separator or not values:
        raise ConfigError(f"`--sweep` must look like lr=1e-2,1e-3,1e-4, but is '{text}'.")
    return Sweep(SHORT.get(setting, setting), tuple(value.strip() for value in values.split(",")))


def choose(work: Sequence[Work], sweep: Sweep) -> list[Work]:
    """Trains every candidate of every run, and returns the runs with the settings that dev chose.

    What is best for an upstream (with one head, on one fold) is chosen for all its seeds together. The winner's weights
    are laid where the run finds them, so that it trains no more and only measures.

    Raises:
        SpeechsslError: a run all of whose candidates diverge.
    """
    tried = [_tries(one, sweep) for one in work]
    found = run_candidates([candidate for candidates in tried for candidate in candidates.values()])
    groups: dict[tuple[str, Path], list[int]] = defaultdict(list)
    for place, one in enumerate(work):
        groups[one.job.card.spec.label, one.job.folder.parent].append(place)
    chosen: dict[int, Work] = {}
    for (label, _), places in groups.items():
        scores = _scores([tried[place] for place in places], found)
        sound = {text: score for text, score in scores.items() if score is not None}
        if not sound:
            raise SpeechsslError(f"Every candidate of '{label}' diverged: sweep lower values of `{sweep.setting}`.")
        pick = max if work[places[0]].task.higher_is_better else min
        best = pick(sound, key=lambda text: sound[text])
        logger.info("%s: dev chose %s of %s", label, best, scores)
        for place in places:
            chosen[place] = _promote(work[place], tried[place][best], scores)
    return [chosen[place] for place in range(len(work))]


def tidy(work: Sequence[Work]) -> None:
    """Removes the weights of the candidates of finished runs; their logs stay."""
    for one in work:
        for name in (CHECKPOINT, HEAD):
            for path in (one.job.folder / FOLDER).glob(f"*/{name}"):
                path.unlink()


def _tries(one: Work, sweep: Sweep) -> dict[str, Work]:
    tries = {}
    for text, config in sweep.candidates(one.job.config).items():
        folder = one.job.folder / FOLDER / text.rpartition(".")[2]
        job = replace(one.job, config=config, folder=folder)
        tries[text] = replace(one, job=job, task=build_task(job.task, config))
    return tries


def _scores(tried: Sequence[Mapping[str, Work]], found: Mapping[Path, float | None]) -> dict[str, float | None]:
    """'setting=value' -> mean of the dev metric over seeds; None where a seed diverged."""
    scores: dict[str, float | None] = {}
    for text in tried[0]:
        values = [found[candidates[text].job.folder] for candidates in tried]
        sound = [value for value in values if value is not None]
        scores[text] = mean(sound) if len(sound) == len(values) else None
    return scores


def _promote(one: Work, winner: Work, scores: Mapping[str, float | None]) -> Work:
    one.job.folder.mkdir(parents=True, exist_ok=True)
    for name in (CHECKPOINT, HEAD, LOG):
        shutil.copyfile(winner.job.folder / name, one.job.folder / name)
    return replace(winner, job=replace(winner.job, folder=one.job.folder, sweep=dict(scores)))
