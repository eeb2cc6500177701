"""What a task may say besides what every task says (`speechssl.task`), and the runner looks for.

B batch, T frames, D width, S samples.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from speechssl.adapt.reading import Disturb
from speechssl.feature_batches import Features
from speechssl.probe import Probe
from speechssl.result import Evaluation
from speechssl.task import TaskData
from speechssl.types import Utterance
from speechssl.upstream import Upstream

Report = Callable[[float, str], None]
"""report(steps done since the last call, note such as the loss)."""
Joined = tuple[Tensor, Tensor, Sequence[Utterance]]
"""A batch as a head gets it: (B, T, D), or (B, D) where pooled; valid frames (B,); and whose they are."""
Passes = Callable[[], Iterator[Joined]]


@runtime_checkable
class MeasuresFeatures(Protocol):
    """A task that measures the layers themselves, rather than what its head predicts from them."""

    def measure(  # noqa: PLR0917  what `Task.evaluate` gets, and where the predictions would come from
        self,
        probe: Probe,
        features: Features,
        data: TaskData,
        split: str,
        folder: Path,
        report: Report,
    ) -> Evaluation:
        """Measures one split, 'dev' before 'test'.

        Args:
            probe: what dev chooses may be put into it: it is saved after test.
            features: holds the utterances of all splits.
            folder: as in `Task.evaluate`.
            report: takes what share of the work of both splits was done since the last call, and a note.
        """


@runtime_checkable
class FitsInPasses(Protocol):
    """A task some of whose heads are fitted in passes over the features, and follow no gradient: `train.steps=0`."""

    def fit_head(
        self, head: nn.Module, passes: Passes, data: TaskData, *, generator: torch.Generator, report: Report
    ) -> None:
        """Fits a head, or leaves one as it is that has nothing to fit.

        Args:
            passes: each call goes once through all that training hears.
            generator: derived from the seed of the run.
            report: takes what share of the work was done since the last call, and a note. The state of the head is
                then saved: a run that was interrupted calls this again, with that state.
        """


@runtime_checkable
class StartsFromFeatures(Protocol):
    """A task some of whose heads hold what is found in the features before they are trained, such as centroids."""

    def start_head(self, head: nn.Module, passes: Passes, data: TaskData, *, generator: torch.Generator) -> None:
        """Puts into a new head what must be found first, in buffers, so that a run goes on with the same; or nothing.

        Args:
            passes: each call goes once through all that training hears.
            generator: derived from the seed of the run.
        """


@runtime_checkable
class ChecksUpstream(Protocol):
    """A task that goes with certain upstreams alone."""

    def check_upstream(self, upstream: Upstream) -> None:
        """Raises a SpeechsslError unless it can be run on this one; asked before anything is computed."""


@runtime_checkable
class Disturbs(Protocol):
    """A task that may disturb what training hears, anew at each visit: for upstreams that learn from the waveform."""

    def disturbance(self) -> Disturb | None:
        """What is done to a waveform; None = nothing."""
