"""Second moments of several views of the same frames, gathered in folds: what similarities are computed of.

A view is a layer, the log-mel spectrum, one-hot phones, or a layer of another model; row i of each is the same frame
(or segment, or utterance). Memory is folds * (sum of the widths)^2 * 8 bytes, whatever the number of rows N: for a
layer of 768 beside 80 bands and 40 phones in 10 folds 63 MB. So layers are best measured one after the other.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from speechssl.analysis.arrays import Frames, as_rows
from speechssl.errors import SpeechsslError
from speechssl.moments import Moments

FOLDS = 10
CHUNK = 1024
"""Rows of a fold that wait for a common product."""


class Views:
    """Gathers views of the same rows."""

    def __init__(self, *, folds: int = FOLDS) -> None:
        """
        Args:
            folds: parts that are kept apart, so that some can test what was fitted to the others.
        """
        if folds < 1:
            raise SpeechsslError(f"`folds` must be >= 1, but is {folds}.")
        self._slices: dict[str, slice] = {}
        self._moments = [Moments() for _ in range(folds)]
        self._waiting: list[list[Tensor]] = [[] for _ in range(folds)]
        self._calls = 0

    def add(self, views: Mapping[str, Frames], *, fold: int | None = None) -> None:
        """Adds the same rows of each view.

        Args:
            views: name -> (N, D); the same names and widths at each call.
            fold: which part they belong to; None = each call takes the next one in turn. Frames of one utterance, or
                better of one speaker, should be in the same fold: else what is tested is nearly what was fitted.
        """
        rows = {name: as_rows(frames, name, width=self._width(name)) for name, frames in views.items()}
        lengths = {name: len(x) for name, x in rows.items()}
        if not rows or len(set(lengths.values())) != 1:
            raise SpeechsslError(f"All views must have the same rows, but they have {lengths}.")
        if not self._slices:
            start = 0
            for name, x in rows.items():
                self._slices[name] = slice(start, start + x.size(1))
                start += x.size(1)
        if set(rows) != set(self._slices):
            raise SpeechsslError(f"Each call must give the views {', '.join(self._slices)}, but has {', '.join(rows)}.")
        place = (self._calls if fold is None else fold) % len(self._moments)
        self._calls += 1
        waiting = self._waiting[place]
        waiting.append(torch.cat([rows[name] for name in self._slices], dim=1))
        if sum(map(len, waiting)) >= CHUNK:
            self._flush(place)

    def blocks(self, first: str, second: str, folds: Sequence[int] | None = None) -> "Blocks":
        """The covariances of two views over some folds; None = all.

        Raises:
            SpeechsslError: an unknown view, or no rows.
        """
        for name in (first, second):
            if name not in self._slices:
                raise SpeechsslError(f"There is no view '{name}', only {', '.join(self._slices) or 'none yet'}.")
        merged = Moments()
        for fold in range(len(self._moments)) if folds is None else folds:
            self._flush(fold)
            merged.merge(self._moments[fold])
        if not merged.count:
            raise SpeechsslError("The views have no rows: is every utterance without labels?")
        covariance, x, y = merged.covariance(), self._slices[first], self._slices[second]
        return Blocks(merged.count, covariance[x, x], covariance[y, y], covariance[x, y])

    def filled(self) -> list[int]:
        """The folds that hold rows."""
        return [i for i, moments in enumerate(self._moments) if moments.count or self._waiting[i]]

    def _width(self, name: str) -> int | None:
        known = self._slices.get(name)
        return None if known is None else known.stop - known.start

    def _flush(self, place: int) -> None:
        if self._waiting[place]:
            self._moments[place].add(torch.cat(self._waiting[place]))
            self._waiting[place] = []


class Blocks:
    """The covariances of two views, float64."""

    def __init__(self, count: int, xx: Tensor, yy: Tensor, xy: Tensor) -> None:
        self.count = count
        self.xx = xx
        """(D, D)."""
        self.yy = yy
        """(E, E)."""
        self.xy = xy
        """(D, E)."""


def one_hot(labels: Sequence[int] | Tensor, classes: int) -> Tensor:
    """(N,) class numbers below `classes` -> (N, classes) float32 of 0 and 1, a view of labels.

    Raises:
        SpeechsslError: a number out of range.
    """
    numbers = torch.as_tensor(labels, dtype=torch.int64)
    if numbers.numel() and not 0 <= int(numbers.min()) <= int(numbers.max()) < classes:
        raise SpeechsslError(
            f"`labels` must lie in 0..{classes - 1}, but reach from {int(numbers.min())} to {int(numbers.max())}."
        )
    return torch.nn.functional.one_hot(numbers, classes).float()
