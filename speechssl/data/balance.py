"""Up-sampling of rare languages, corpora or any other label: what one epoch draws.

p_l ~ (n_l / N) ** alpha, with n_l the seconds of audio of label l and N their sum. An epoch draws about N seconds, of
label l the share p_l: so that label's utterances come p_l * N / n_l times on average. They are taken from an endless
series of permutations, on which epoch e + 1 goes on where epoch e ended: within a label no utterance is drawn a
second time before all others were drawn once, and any epoch can be made without those before it.

Paper: Conneau et al. 2020, sec. 3, arXiv:2006.13979.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from speechssl.data.seeds import make_generator
from speechssl.errors import ConfigError


class Balance:
    """The draws of every epoch."""

    def __init__(
        self,
        codes: NDArray[np.int32],
        names: Sequence[str],
        durations: NDArray[np.float64],
        *,
        alpha: float,
        seed: int,
    ) -> None:
        """
        Args:
            codes: label of each utterance, a place in `names`, (U,).
            durations: seconds of audio that are used of each utterance, (U,).
            alpha: 1 = as the data are, 0 = every label equally often.
        """
        if not 0 <= alpha <= 1:
            raise ConfigError(f"`balance_alpha` must be from 0 to 1, but is {alpha}.")
        self.names = list(names)
        self.seed = seed
        self._members = np.argsort(codes, kind="stable").astype(np.int32)
        self._bounds = np.searchsorted(codes[self._members], np.arange(len(names) + 1))
        seconds = np.bincount(codes, weights=durations, minlength=len(names))
        weights = np.where(seconds > 0, (seconds / seconds.sum()) ** alpha, 0.0)
        self.shares = weights / weights.sum()
        """p_l of each label."""
        repeats = self.shares * seconds.sum() / np.maximum(seconds, 1e-9)
        self.draws = np.maximum(np.rint(repeats * np.diff(self._bounds)).astype(np.int64), seconds > 0)
        """Utterances of each label that one epoch draws."""

    def draw(self, epoch: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """The utterances of an epoch and, of each, how often it was drawn before in the run, two of (E,)."""
        parts = [self._draw(label, epoch) for label in range(len(self.names)) if self.draws[label]]
        return np.concatenate([p for p, _ in parts]), np.concatenate([n for _, n in parts])

    def _draw(self, label: int, epoch: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        members = self._members[self._bounds[label] : self._bounds[label + 1]]
        size, count = len(members), int(self.draws[label])
        begin, end = epoch * count, (epoch + 1) * count
        items, passes = [], []
        for number in range(begin // size, (end - 1) // size + 1):
            generator = make_generator(self.seed, "balance", self.names[label], number)
            order = torch.randperm(size, generator=generator).numpy()
            order = order[max(begin - number * size, 0) : end - number * size]
            items.append(members[order])
            passes.append(np.full(len(order), number, dtype=np.int32))
        return np.concatenate(items), np.concatenate(passes)
