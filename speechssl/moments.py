"""Mean and covariance of any number of rows, gathered piece by piece in float64."""

import torch
from torch import Tensor


class Moments:
    """What has been added up so far; N rows of C numbers each.

    Paper: Chan, Golub and LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances",
    Stanford STAN-CS-79-773, for the merging of two parts.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros(0, dtype=torch.float64)
        """(C,)."""
        self._scatter = torch.zeros(0, 0, dtype=torch.float64)  # (C, C): summed products of the centred rows

    def add(self, rows: Tensor) -> None:
        """Adds (N, C)."""
        rows = rows.double()
        if not self.count:
            self.mean = rows.new_zeros(rows.size(1))
            self._scatter = rows.new_zeros(rows.size(1), rows.size(1))
        if not len(rows):
            return
        mean = rows.mean(dim=0)
        centred = rows - mean
        self._join(len(rows), mean, centred.T @ centred)

    def merge(self, other: "Moments") -> None:
        """Adds the rows that `other` has seen; both have C columns, or one has seen none."""
        if not self.count:
            self.count, self.mean, self._scatter = other.count, other.mean.clone(), other._scatter.clone()
        elif other.count:
            self._join(other.count, other.mean, other._scatter)

    def _join(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        shift = mean - self.mean
        total = self.count + count
        self._scatter += scatter
        self._scatter += torch.outer(shift, shift) * (self.count * count / total)
        self.mean = self.mean + shift * (count / total)
        self.count = total

    def covariance(self) -> Tensor:
        """(C, C), of the rows themselves (divided by their number)."""
        return self._scatter / self.count

    def variance(self, *, correction: int = 0) -> Tensor:
        """(C,); correction 1 for the unbiased one."""
        return self._scatter.diagonal() / max(self.count - correction, 1)
