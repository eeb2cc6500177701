"""Vector quantization with a codebook of moving averages.

N frames, D width, V entries, R entries that restart.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from speechssl.objective import Reduce
from speechssl.quantizer.base import Quantizer, QuantizerOutput
from speechssl.quantizer.codebook import (
    check_codes,
    check_frames,
    check_positive,
    check_share,
    fitted_entries,
    nearest_codes,
    output,
    straight_through,
    summed_error,
)
from speechssl.quantizer.restart import Candidates


@dataclass(frozen=True)
class EmaConfig:
    """Shape and loss."""

    width: int = 256
    entries: int = 1024
    decay: float = 0.99
    """Of the averages, per update."""
    commitment: float = 0.25
    """Weight of the pull of frames towards their entries; BEATs has 1."""
    normalize: bool = False
    """Whether frames and entries are brought to length 1, as in BEATs; an entry that was not used stays then."""
    restart_below: float = 0.0
    """An entry that on average has fewer frames per update restarts at a random frame; 0 = never."""
    eps: float = 1e-5
    """Added to counts, so that entries of few frames do not diverge."""


class EmaQuantizer(Quantizer):
    """The nearest entry; each entry is the moving average of the frames that chose it.

    Counts and sums are gathered over a step's micro-batches and processes, and change the codebook in `end_step`.
    Buffers are float32, and stay so under autocast.

    Papers: van den Oord et al. 2017, app. A.1, arXiv:1711.00937; with `normalize` Chen et al. 2022 (BEATs), sec. 3.2,
    arXiv:2212.09058, and unilm's beats/quantizer.py; restarts after Dhariwal et al. 2020, sec. 3.1, arXiv:2005.00341.
    """

    codebook: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(self, config: EmaConfig) -> None:
        super().__init__()
        check_positive(width=config.width, entries=config.entries, eps=config.eps)
        check_share(decay=config.decay)
        self.config = config
        self.width, self.groups, self.entries = config.width, 1, config.entries
        first = torch.randn(config.entries, config.width)
        self.register_buffer("codebook", F.normalize(first, dim=1) if config.normalize else first)  # (V, D)
        self.register_buffer("counts", torch.full((config.entries,), self._first_count))  # frames per update
        if not config.normalize:
            self.register_buffer("sums", self.codebook * self.counts[:, None])  # (V, D)
        # Not buffers, since DDP would overwrite them with those of its first process.
        self._gathered: dict[str, Tensor] = {}
        self._candidates = Candidates()

    @property
    def _first_count(self) -> float:
        return max(1.0, self.config.restart_below)

    def forward(self, frames: Tensor, *, generator: torch.Generator | None = None) -> QuantizerOutput:
        """See `Quantizer.forward`; draws only where entries may restart."""
        with torch.autocast(frames.device.type, enabled=False):
            x = self._prepare(frames)
            codes = nearest_codes(x, self.codebook)
            chosen = self.codebook[codes]  # (N, D)
            loss = self.config.commitment * summed_error(x, chosen)
            result = output(straight_through(x, chosen), codes[:, None], loss, entries=self.entries)
            if self.training:
                self._gather(x.detach(), codes, result.usage[0], generator)
        return result

    def encode(self, frames: Tensor) -> Tensor:
        """See `Quantizer.encode`."""
        with torch.autocast(frames.device.type, enabled=False):
            return nearest_codes(self._prepare(frames), self.codebook)[:, None]

    def decode(self, codes: Tensor) -> Tensor:
        """See `Quantizer.decode`."""
        return self.codebook[check_codes(codes, 1, self.entries)[:, 0]]

    def _prepare(self, frames: Tensor) -> Tensor:
        x = check_frames(frames, self.width)
        return F.normalize(x, dim=1) if self.config.normalize else x

    @torch.no_grad()
    def _gather(self, x: Tensor, codes: Tensor, counts: Tensor, generator: torch.Generator | None) -> None:
        sums = torch.zeros_like(self.codebook).index_add_(0, codes, x)
        seen = self._gathered
        self._gathered = {
            "counts": seen["counts"] + counts if seen else counts,
            "sums": seen["sums"] + sums if seen else sums,
        }
        if self.config.restart_below > 0:
            self._candidates.offer(x, self.entries, generator)

    @torch.no_grad()
    def end_step(self, reduce: Reduce, *, generator: torch.Generator | None = None) -> None:  # noqa: ARG002
        """See `Quantizer.end_step`; a step without frames changes nothing. The draws were made in `forward`."""
        nothing = {"counts": torch.zeros_like(self.counts), "sums": torch.zeros_like(self.codebook)}
        total = reduce(self._gathered or nothing)
        self._gathered = {}
        count, total_sum = total["counts"], total["sums"]
        decay = torch.where(count.sum() > 0, self.config.decay, 1.0)
        self.counts.copy_(decay * self.counts + (1 - decay) * count)
        if self.config.normalize:
            mean = F.normalize(total_sum, dim=1)  # of the mean as well
            moved = F.normalize(decay * self.codebook + (1 - decay) * mean, dim=1)
            self.codebook.copy_(torch.where(count[:, None] > 0, moved, self.codebook))
        else:
            self.sums.copy_(decay * self.sums + (1 - decay) * total_sum)
            whole = self.counts.sum()
            smooth = (self.counts + self.config.eps) / (whole + self.entries * self.config.eps) * whole
            self.codebook.copy_(self.sums / smooth[:, None])
        self._restart(reduce)

    def _restart(self, reduce: Reduce) -> None:
        if self.config.restart_below <= 0:
            return
        unused = (self.counts < self.config.restart_below).nonzero()[:, 0]  # (R,), the same in every process
        if len(unused):
            self.codebook[unused] = self._candidates.draw(unused, self.codebook[unused], reduce)
            self.counts[unused] = self._first_count
            if not self.config.normalize:
                self.sums[unused] = self.codebook[unused] * self._first_count
        self._candidates.clear()

    @torch.no_grad()
    def fit(self, frames: Tensor, *, generator: torch.Generator) -> None:
        """Puts the entries at the k-means centroids of frames (N, D), N >= V; the generator is on the CPU."""
        x = self._prepare(frames.detach())
        centroids = fitted_entries(x, self.entries, generator=generator)
        centroids = F.normalize(centroids, dim=1) if self.config.normalize else centroids
        counts = torch.bincount(nearest_codes(x, centroids), minlength=self.entries)
        self.codebook.copy_(centroids)
        self.counts.copy_(counts.clamp(min=self._first_count))
        if not self.config.normalize:
            self.sums.copy_(self.codebook * self.counts[:, None])
