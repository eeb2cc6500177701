"""DinoSR's online codebooks: moving averages of the frames that were nearest to each entry.

K codebooks, V entries, N frames, D width.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.objective import Reduce


class OnlineCodebooks(nn.Module):
    """One codebook per layer, kept as decayed sums of frames and their counts, of which an entry is the quotient.

    Entries that nothing was assigned to stay as they are: nothing restarts them.

    Paper: Liu et al. 2023, eq. 3 and 4, arXiv:2305.10005; beginning and treatment of dead entries as the official code.
    """

    sums: Tensor
    counts: Tensor

    def __init__(self, codebooks: int, *, entries: int, width: int, decay: float) -> None:
        """
        Args:
            codebooks: K.
            entries: V.
            width: D.
            decay: share of the old sums in the new ones.
        """
        super().__init__()
        self.decay = decay
        # Every channel has zero mean and unit variance over the entries, as the frames have over time.
        drawn = F.instance_norm(torch.randn(codebooks, width, entries)).transpose(1, 2)
        self.register_buffer("sums", drawn.contiguous())  # (K, V, D)
        self.register_buffer("counts", torch.ones(codebooks, entries))
        # No buffers, which DistributedDataParallel may overwrite with those of the first process.
        self._new_sums: Tensor | None = None
        self._new_counts: Tensor | None = None

    def entries(self) -> Tensor:
        """(K, V, D)."""
        return self.sums / self.counts[:, :, None]

    @torch.no_grad()
    def begin_with(self, layers: Iterable[Tensor], *, generator: torch.Generator) -> None:
        """Makes random frames of each layer, (N, D) float32, its entries; where N < V, some more than once."""
        for number, frames in enumerate(layers):
            order = torch.randperm(len(frames), generator=generator)
            chosen = order.repeat(-(-self.counts.size(1) // len(frames)))[: self.counts.size(1)]
            self.sums[number] = frames[chosen.to(frames.device)]
        self.counts.fill_(1.0)

    @torch.no_grad()
    def assign(self, layers: Iterable[Tensor]) -> Tensor:
        """The nearest entries by Euclidean distance; in training, their statistics are gathered.

        Args:
            layers: (N, D) float32 for each codebook.

        Returns:
            (N, K) int64.
        """
        entries = self.entries()
        codes = []
        if self.training and (self._new_sums is None or self._new_counts is None):
            self._new_sums, self._new_counts = torch.zeros_like(self.sums), torch.zeros_like(self.counts)
        for number, frames in enumerate(layers):
            with torch.autocast(frames.device.type, enabled=False):  # here, since `layers` may yet have to be computed
                nearest = (2.0 * frames @ entries[number].T - entries[number].square().sum(dim=1)).argmax(dim=1)  # (N,)
                codes.append(nearest)
                if self.training and self._new_sums is not None and self._new_counts is not None:
                    chosen = F.one_hot(nearest, entries.size(1)).float()  # (N, V)
                    self._new_sums[number] += chosen.T @ frames
                    self._new_counts[number] += chosen.sum(dim=0)
        return torch.stack(codes, dim=1)

    def end_step(self, reduce: Reduce) -> None:
        """Moves the entries that were chosen since the last call, in whatever process."""
        if self._new_sums is None or self._new_counts is None:
            return
        new = reduce({"codebook_sums": self._new_sums, "codebook_counts": self._new_counts})
        seen = new["codebook_counts"] > 0  # (K, V)
        sums = torch.lerp(new["codebook_sums"], self.sums, self.decay)
        counts = torch.lerp(new["codebook_counts"], self.counts, self.decay)
        self.sums.copy_(torch.where(seen[:, :, None], sums, self.sums))
        self.counts.copy_(torch.where(seen, counts, self.counts))
        self._new_sums = self._new_counts = None
